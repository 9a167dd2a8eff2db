package pki

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"path/filepath"
	"testing"
	"time"
)

func authority(t *testing.T, name string) *Authority {
	t.Helper()
	a, err := New(name)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// verify is what a peer with this authority says of a pair under a name.
func verify(t *testing.T, a *Authority, p *Pair, name string, usage x509.ExtKeyUsage) error {
	t.Helper()
	pair, err := p.TLS()
	if err != nil {
		t.Fatal(err)
	}
	_, err = pair.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: a.Pool(), KeyUsages: []x509.ExtKeyUsage{usage}})
	return err
}

func TestCertificates(t *testing.T) {
	ours, theirs := authority(t, "ours"), authority(t, "theirs")
	issue := func(a *Authority, r Request) *Pair {
		p, err := a.Issue(r)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	server := x509.ExtKeyUsageServerAuth
	for _, c := range []struct {
		what  string
		pair  *Pair
		name  string
		usage x509.ExtKeyUsage
		good  bool
	}{
		{"by name", issue(ours, Request{Names: []string{"ha", "10.77.0.1"}, Server: true}), "ha", server, true},
		{"by address", issue(ours, Request{Names: []string{"ha", "10.77.0.1"}, Server: true}), "10.77.0.1", server, true},
		{"of another name", issue(ours, Request{Names: []string{"hb"}, Server: true}), "ha", server, false},
		{"of another authority", issue(theirs, Request{Names: []string{"ha"}, Server: true}), "ha", server, false},
		{"an administrator's", issue(ours, Request{Names: []string{"ha"}, Client: true}), "ha", server, false},
		{"a server's as a client's", issue(ours, Request{Names: []string{"ha"}, Server: true}), "ha", x509.ExtKeyUsageClientAuth, false},
		{"expired", issue(ours, Request{Names: []string{"ha"}, Server: true, NotAfter: time.Now().Add(-time.Hour)}), "ha", server, false},
		{"without alternative names", issue(ours, Request{Names: []string{"ha"}, Server: true, NoSAN: true}), "ha", server, false},
	} {
		if err := verify(t, ours, c.pair, c.name, c.usage); (err == nil) != c.good {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

// TestHandshake: what stands on the disk is good for TLS 1.3.
func TestHandshake(t *testing.T) {
	a := authority(t, "ours")
	dir := t.TempDir()
	p, err := a.Server("ha", "10.77.0.1")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // replacing what is there
		if err := p.WriteServer(dir, a); err != nil {
			t.Fatal(err)
		}
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, ServerCert), filepath.Join(dir, ServerKey))
	if err != nil {
		t.Fatal(err)
	}
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	done := make(chan error, 1)
	go func() {
		done <- tls.Server(there, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}).HandshakeContext(t.Context())
	}()
	if err := tls.Client(here, &tls.Config{RootCAs: a.Pool(), ServerName: "ha"}).HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
