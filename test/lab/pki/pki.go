// Package pki makes certificates for tests, as a site makes them for libvirt: an authority, a server certificate a
// host, an administrator's client certificate. They are placed as libvirt places them, and good for a day.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Where libvirt has its certificates, below /etc/pki.
const (
	CACert     = "CA/cacert.pem"
	ServerCert = "libvirt/servercert.pem"
	ServerKey  = "libvirt/private/serverkey.pem"
	ClientCert = "libvirt/clientcert.pem"
	ClientKey  = "libvirt/private/clientkey.pem"
)

// Authority signs certificates. Its methods may be called at the same time.
type Authority struct {
	Cert *x509.Certificate
	PEM  []byte // the certificate, as in cacert.pem

	key crypto.Signer
}

// Pair is a certificate and its key, as PEM (PKCS #8 the key).
type Pair struct{ Cert, Key []byte }

// Request says what a certificate is to be. The common name is the first of Names.
type Request struct {
	Names    []string // DNS names and IP addresses, at least one
	Server   bool     // extended key usage serverAuth
	Client   bool     // extended key usage clientAuth; neither: the certificate has no extended key usage at all
	NoSAN    bool     // the names stand in no subject alternative name
	NotAfter time.Time
}

// New makes an authority of this name.
func New(name string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template, err := blank(name)
	if err != nil {
		return nil, err
	}
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &Authority{Cert: cert, PEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key: key}, nil
}

// Pool is the authority alone.
func (a *Authority) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.Cert)
	return p
}

// Server makes a host's certificate as libvirt's documentation has it: names and addresses, serverAuth only.
func (a *Authority) Server(names ...string) (*Pair, error) {
	return a.Issue(Request{Names: names, Server: true})
}

// Client makes an administrator's certificate: clientAuth only.
func (a *Authority) Client(names ...string) (*Pair, error) {
	return a.Issue(Request{Names: names, Client: true})
}

// Issue makes any certificate.
func (a *Authority) Issue(r Request) (*Pair, error) {
	if len(r.Names) == 0 {
		return nil, errors.New("a certificate without a name")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template, err := blank(r.Names[0])
	if err != nil {
		return nil, err
	}
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment // libvirt wants both
	if r.Server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if r.Client {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	if !r.NotAfter.IsZero() {
		template.NotAfter = r.NotAfter
		template.NotBefore = r.NotAfter.Add(-day)
	}
	for _, n := range r.Names {
		switch ip := net.ParseIP(n); {
		case r.NoSAN:
		case ip != nil:
			template.IPAddresses = append(template.IPAddresses, ip)
		default:
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.Cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return &Pair{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}),
	}, nil
}

const day = 24 * time.Hour

func blank(name string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name, Organization: []string{"virt-cow lab"}},
		NotBefore:    now.Add(-day),
		NotAfter:     now.Add(day),
	}, nil
}

// TLS is the pair for crypto/tls.
func (p *Pair) TLS() (tls.Certificate, error) { return tls.X509KeyPair(p.Cert, p.Key) }

// WriteServer places an authority's certificate and a host's pair below dir, which is /etc/pki or stands for it. What
// is there is replaced, each file at once.
func (p *Pair) WriteServer(dir string, a *Authority) error {
	return p.write(dir, a, ServerCert, ServerKey)
}

// WriteClient places an authority's certificate and an administrator's pair below dir.
func (p *Pair) WriteClient(dir string, a *Authority) error {
	return p.write(dir, a, ClientCert, ClientKey)
}

func (p *Pair) write(dir string, a *Authority, cert, key string) error {
	return errors.Join(
		place(filepath.Join(dir, CACert), a.PEM, 0o644),
		place(filepath.Join(dir, key), p.Key, 0o600),
		place(filepath.Join(dir, cert), p.Cert, 0o644),
	)
}

func place(path string, b []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", b, mode); err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	return os.Rename(path+".new", path)
}
