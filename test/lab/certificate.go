package lab

import (
	"path/filepath"

	"github.com/virt-cow/virt-cow/test/lab/pki"
)

// ServerCertificate makes a certificate for a host of the site: its names and addresses, serverAuth only.
func (s *Site) ServerCertificate(h *Host) (*pki.Pair, error) { return s.serverCertificate(h, s.CA) }

func (s *Site) serverCertificate(h *Host, ca *pki.Authority) (*pki.Pair, error) {
	return ca.Server(h.Name, h.Name+"-ctl", h.Address(Mgmt), h.Address(Control))
}

// SetCertificate replaces what a host of a site has in /etc/pki: the certificate of another host or name, of another
// authority, an administrator's. A nil pair is one for this host, signed by ca; a nil ca is the site's.
func (h *Host) SetCertificate(p *pki.Pair, ca *pki.Authority) error { return h.writeCertificate(p, ca) }

func (h *Host) writeCertificate(p *pki.Pair, ca *pki.Authority) error {
	if ca == nil {
		ca = h.site.CA
	}
	if p == nil {
		var err error
		if p, err = h.site.serverCertificate(h, ca); err != nil {
			return err
		}
	}
	return p.WriteServer(filepath.Join(h.Dir, "pki"), ca)
}
