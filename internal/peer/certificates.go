package peer

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"
)

// Files are where a host's certificates are, as PEM. Cert may have CAs between it and the CA behind it.
type Files struct{ CA, Cert, Key string }

// End is when the host's own certificate, or what it rests on, expires first.
func (c *Certificates) End() time.Time {
	end := c.Leaf.NotAfter
	chain, _ := c.chain()
	for _, ca := range chain[1:] {
		if ca.NotAfter.Before(end) {
			end = ca.NotAfter
		}
	}
	// Of several CAs with the same name, as a renewed one beside its predecessor, the last to expire counts.
	var last time.Time
	for _, ca := range c.CAs {
		if slices.Equal(ca.RawSubject, chain[len(chain)-1].RawIssuer) && ca.NotAfter.After(last) {
			last = ca.NotAfter
		}
	}
	if !last.IsZero() && last.Before(end) {
		end = last
	}
	return end
}

// chain is the own certificate, and what stands behind it in its file.
func (c *Certificates) chain() ([]*x509.Certificate, error) {
	chain := []*x509.Certificate{c.Leaf}
	for _, der := range c.own.Certificate[1:] {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return chain, fmt.Errorf("%s: certificate %d in it: %w", c.files.Cert, len(chain)+1, err)
		}
		chain = append(chain, cert)
	}
	return chain, nil
}

// maxPEM bounds a file in bytes.
const maxPEM = 1 << 20

// Certificates are what the files hold.
type Certificates struct {
	Leaf *x509.Certificate   // this host's own
	CAs  []*x509.Certificate // whom it believes

	files Files
	pool  *x509.CertPool
	own   tls.Certificate
}

// String keeps the key out of whatever prints this.
func (c *Certificates) String() string { return "certificate " + c.files.Cert }

// GoString is String.
func (c *Certificates) GoString() string { return c.String() }

// Read reads the files. That they can be read does not say that the certificate is any good: see Check.
func Read(f Files) (*Certificates, error) {
	c := &Certificates{files: f, pool: x509.NewCertPool()}
	ca, err := readPEM(f.CA)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(ca); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: certificate %d in it: %w", f.CA, len(c.CAs)+1, err)
		}
		c.CAs = append(c.CAs, cert)
		c.pool.AddCert(cert)
	}
	if c.CAs == nil {
		return nil, fmt.Errorf("%s: there is no certificate in it", f.CA)
	}
	cert, err := readPEM(f.Cert)
	if err != nil {
		return nil, err
	}
	key, err := readPEM(f.Key)
	if err != nil {
		return nil, err
	}
	if bytes.Contains(key, []byte(" ENCRYPTED")) || bytes.Contains(key, []byte(",ENCRYPTED")) {
		return nil, fmt.Errorf("%s: the key has a password: take it off with `openssl pkey`", f.Key)
	}
	if c.own, err = tls.X509KeyPair(cert, key); err != nil {
		return nil, fmt.Errorf("certificate %s and key %s: %w", f.Cert, f.Key, err)
	}
	c.Leaf = c.own.Leaf
	if _, err := c.chain(); err != nil {
		return nil, err
	}
	return c, nil
}

func readPEM(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: `virt-cow doctor` prints the commands that make certificates", err)
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular() || info.Size() > maxPEM:
		return nil, fmt.Errorf("%s: this is no file with certificates", path)
	}
	return os.ReadFile(path)
}
