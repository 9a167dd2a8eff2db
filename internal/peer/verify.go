package peer

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// distrust is why a certificate is not believed. It reads after "its certificate" or "certificate FILE".
type distrust struct{ why string }

func (d *distrust) Error() string { return d.why }

func distrustf(format string, args ...any) error { return &distrust{fmt.Sprintf(format, args...)} }

const day = "2006-01-02 15:04 MST"

// Check says whether other hosts with the same CA believe this host's certificate at that time, and by what names.
func (c *Certificates) Check(now time.Time) (Names, error) {
	chain, err := c.chain()
	if err != nil {
		return Names{}, err
	}
	names, err := c.verify(chain, now)
	if err != nil {
		return names, fmt.Errorf("certificate %s %w", c.files.Cert, err)
	}
	return names, nil
}

// verify says by what names a host is known that has shown these certificates, its own first. Errors are *distrust.
func (c *Certificates) verify(chain []*x509.Certificate, now time.Time) (Names, error) {
	if len(chain) == 0 {
		return Names{}, distrustf("is missing")
	}
	leaf := chain[0]
	between := x509.NewCertPool()
	for _, cert := range chain[1:] {
		between.AddCert(cert)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: c.pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return Names{}, c.explain(leaf, now, err)
	}
	switch {
	case leaf.IsCA:
		return Names{}, distrustf("is a CA's own: each host needs one that the CA signed")
	case !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth):
		return Names{}, distrustf("does not say what it is for: make it again with the extended key usage serverAuth " +
			"(certtool: tls_www_server), as only that tells hosts from people")
	}
	names := namesOf(leaf, chains)
	if names.none() {
		return names, distrustf("has no name of a host in it: make it again with its DNS name or IP address as subject alternative name")
	}
	return names, nil
}

func (c *Certificates) explain(leaf *x509.Certificate, now time.Time, err error) error {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case now.After(leaf.NotAfter):
		return distrustf("has expired on %s: renew it (or this host's clock is wrong, it is %s here)",
			leaf.NotAfter.Local().Format(day), now.Format(day))
	case now.Before(leaf.NotBefore):
		return distrustf("is not valid before %s: is a clock wrong? It is %s here", leaf.NotBefore.Local().Format(day), now.Format(day))
	case errors.As(err, &unknown) && slices.Equal(leaf.RawIssuer, leaf.RawSubject):
		return distrustf("is signed by itself, not by the CA in %s", c.files.CA)
	case errors.As(err, &unknown):
		return distrustf("comes from another CA, %.80q, than the one in %s", leaf.Issuer.String(), c.files.CA)
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage && slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth):
		return distrustf("is for a client (clientAuth), such as an administrator, and not for a host: a host shows its server " +
			"certificate (serverAuth)")
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return distrustf("may not be used for a server: make it again with the extended key usage serverAuth (certtool: tls_www_server)")
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return distrustf("is signed by a CA whose own certificate is out of date: %.200s", err)
	}
	return distrustf("is no good: %.200q", strings.TrimPrefix(err.Error(), "x509: "))
}

// OIDs of two extensions.
var (
	subjectAltName  = asn1.ObjectIdentifier{2, 5, 29, 17}
	nameConstraints = asn1.ObjectIdentifier{2, 5, 29, 30}
)

// namesOf leaves out what is no name of a host.
func namesOf(leaf *x509.Certificate, chains [][]*x509.Certificate) Names {
	var n Names
	for _, name := range leaf.DNSNames {
		rest, star := strings.CutPrefix(name, "*.")
		if rest, ok := hostName(rest); ok && star {
			n.DNS = append(n.DNS, "*."+rest)
		} else if ok {
			n.DNS = append(n.DNS, rest)
		}
	}
	for _, raw := range leaf.IPAddresses {
		if ip, ok := netip.AddrFromSlice(raw); ok {
			n.IPs = append(n.IPs, ip.Unmap())
		}
	}
	if has(leaf, subjectAltName) {
		return n
	}
	for _, chain := range chains {
		for _, ca := range chain[1:] {
			if has(ca, nameConstraints) {
				return n
			}
		}
	}
	if name, ok := hostName(leaf.Subject.CommonName); ok {
		n.DNS = append(n.DNS, name)
	}
	return n
}

func has(c *x509.Certificate, id asn1.ObjectIdentifier) bool {
	for _, e := range c.Extensions {
		if e.Id.Equal(id) {
			return true
		}
	}
	return false
}

// config is what both sides' TLS has in common. believed is called with the names of the other side, and may refuse them.
func (c *Certificates) config(now func() time.Time, believed func(Names) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: ourProtocol, SessionTicketsDisabled: true, Time: now,
		Certificates: []tls.Certificate{c.own},
		// Each side does its own checks, below: crypto/tls would have the client's certificate be one for clients, and one
		// that says no purpose be good for any. VerifyConnection is called whatever these two say.
		InsecureSkipVerify: true, ClientAuth: tls.RequireAnyClientCert,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c.own, nil },
		VerifyConnection: func(s tls.ConnectionState) error {
			names, err := c.verify(s.PeerCertificates, now())
			if err != nil {
				return err
			}
			return believed(names)
		},
	}
}
