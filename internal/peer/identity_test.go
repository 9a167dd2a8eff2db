package peer

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/test/lab/pki"
)

// TestRenewal replaces the files of both hosts under connections.
func TestRenewal(t *testing.T) {
	ha, hb := newHost(t, ours(), issue(t, ours(), server("127.0.0.1"))), newHost(t, ours(), issue(t, ours(), server("hb.test")))
	a := ha.serve(t, "hb.test", "new.test")
	by := func() (string, error) {
		var out sayOut
		err := hb.client().Call(t.Context(), a.address, "/say", sayIn{"moo"}, &out)
		return out.By, err
	}
	is := func(want string) {
		t.Helper()
		if got, err := by(); err != nil || got != want {
			t.Errorf("%q %v, want %s", got, err, want)
		}
	}
	is("hb.test")
	hb.put(t, ours(), issue(t, ours(), server("new.test")))
	is("new.test")
	hb.log.await(t, "certificate read again")

	// What can't be used changes nothing, and is told once.
	for _, broken := range []struct {
		pair *pki.Pair
		says string
	}{
		{&pki.Pair{Cert: []byte("moo"), Key: []byte("moo")}, "failed to find any PEM data"},
		{&pki.Pair{Cert: issue(t, ours(), server("hb.test")).Cert, Key: issue(t, ours(), server("hb.test")).Key}, "private key does not match"},
		{issue(t, theirs(), server("hb.test")), "comes from another CA"},
		{issue(t, ours(), pki.Request{Names: []string{"hb.test"}, Client: true}), "is for a client"},
		{issue(t, ours(), pki.Request{Names: []string{"hb.test"}, Server: true, NotAfter: time.Now().Add(-time.Hour)}), "has expired"},
	} {
		hb.put(t, ours(), broken.pair)
		is("new.test")
		is("new.test")
		is("new.test")
		if n := strings.Count(hb.log.String(), broken.says); n != 1 {
			t.Errorf("%q is told %d times:\n%s", broken.says, n, hb.log)
		}
	}
	for _, gone := range []string{hb.files.CA, hb.files.Cert, hb.files.Key} {
		if err := os.Rename(gone, gone+".old"); err != nil {
			t.Fatal(err)
		}
		is("new.test")
		if err := os.Rename(gone+".old", gone); err != nil {
			t.Fatal(err)
		}
	}
	hb.put(t, ours(), issue(t, ours(), server("hb.test")))
	is("hb.test")

	// In place, of the same length, at once: no stamp need show it.
	next := issue(t, ours(), server("new.test"))
	for _, f := range []struct {
		path string
		b    []byte
	}{{hb.files.Key, next.Key}, {hb.files.Cert, next.Cert}} {
		if err := os.WriteFile(f.path, f.b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	is("new.test")

	// The CA changes on both.
	ha.put(t, theirs(), issue(t, theirs(), server("127.0.0.1")))
	hb.put(t, theirs(), issue(t, theirs(), server("hb.test")))
	is("hb.test")

	// Certificates that come later.
	late := newHost(t, nil, nil)
	if err := late.client().Call(t.Context(), a.address, "/say", sayIn{"moo"}, nil); !errors.Is(err, ErrRefused) {
		t.Error(err)
	}
	late.put(t, theirs(), issue(t, theirs(), server("hb.test")))
	if err := late.client().Call(t.Context(), a.address, "/say", sayIn{"moo"}, nil); err != nil {
		t.Error(err)
	}
	if names, err := late.id.Names(); err != nil || !names.Match("hb.test") {
		t.Error(names, err)
	}
}

// TestSettled makes sure that files are not read again for each connection.
func TestSettled(t *testing.T) {
	h := newHost(t, ours(), issue(t, ours(), server("hb.test")))
	for end := time.Now().Add(wait); !h.id.settled; time.Sleep(50 * time.Millisecond) {
		if _, err := h.id.certificates(); err != nil || time.Now().After(end) {
			t.Fatal("never settled", err)
		}
	}
	first, _ := h.id.certificates()
	second, _ := h.id.certificates()
	if first != second {
		t.Error("read again")
	}
}

// TestCertificateShapes are those that package pki does not make.
func TestCertificateShapes(t *testing.T) {
	root := signed(t, &x509.Certificate{Subject: pkix.Name{CommonName: "root"}, IsCA: true}, nil, nil)
	limited := under(t, root, &x509.Certificate{Subject: pkix.Name{CommonName: "limited"}, IsCA: true, PermittedDNSDomains: []string{"hv.test"}, PermittedDNSDomainsCritical: true})
	between := under(t, root, &x509.Certificate{Subject: pkix.Name{CommonName: "between"}, IsCA: true})
	behind := func(p, ca *pki.Pair) *pki.Pair { return &pki.Pair{Cert: append(p.Cert, ca.Cert...), Key: p.Key} }
	leaf := func(cn string, dns ...string) *x509.Certificate {
		return &x509.Certificate{Subject: pkix.Name{CommonName: cn}, DNSNames: dns}
	}
	for _, c := range []struct {
		name string
		pair *pki.Pair
		want string // names, or part of the error
	}{
		{"chain", behind(under(t, between, leaf("x", "a.hv.test")), between), "a.hv.test"},
		{"chain without its middle", under(t, between, leaf("x", "a.hv.test")), "comes from another CA"},
		{"limited CA", behind(under(t, limited, leaf("x", "a.hv.test")), limited), "a.hv.test"},
		{"limited CA, other name", behind(under(t, limited, leaf("x", "a.test")), limited), "is no good"},
		{"limited CA, common name", behind(under(t, limited, leaf("a.test")), limited), "has no name of a host"},
		{"common name", under(t, root, leaf("A.test")), "a.test"},
		{"common name is an address", under(t, root, leaf("10.0.0.1")), "has no name of a host"},
		{"common name beside others", under(t, root, leaf("a.test", "b.test")), "b.test"},
		{"odd names", under(t, root, leaf("x", "a b", "x\ny", "*.b.test", "a.*.test", "*", "c.test")), "*.b.test, c.test"},
		{"a CA", under(t, root, &x509.Certificate{IsCA: true, DNSNames: []string{"a.test"}}), "is a CA's own"},
		{"the CA itself", root, "is a CA's own"},
	} {
		h := &host{dir: t.TempDir()}
		if err := c.pair.WriteServer(h.dir, &pki.Authority{PEM: root.Cert}); err != nil {
			t.Fatal(err)
		}
		certs, err := Read(files(h.dir))
		if err != nil {
			t.Fatal(err)
		}
		names, err := certs.Check(time.Now())
		if err == nil && names.String() != c.want || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %q %v, want %q", c.name, names, err, c.want)
		}
	}
}

// under has a CA sign a certificate.
func under(t *testing.T, ca *pki.Pair, template *x509.Certificate) *pki.Pair {
	t.Helper()
	pair, err := ca.TLS()
	if err != nil {
		t.Fatal(err)
	}
	return signed(t, template, pair.Leaf, pair.PrivateKey)
}

func TestReadRefuses(t *testing.T) {
	good := issue(t, ours(), server("hb.test"))
	for _, c := range []struct {
		name   string
		do     func(Files) error
		says   string
		naming func(Files) string
	}{
		{"no CA", func(f Files) error { return os.Remove(f.CA) }, "`virt-cow doctor` prints the commands", func(f Files) string { return f.CA }},
		{"no key", func(f Files) error { return os.Remove(f.Key) }, "no such file", func(f Files) string { return f.Key }},
		{"empty CA", func(f Files) error { return os.WriteFile(f.CA, nil, 0o600) }, "no certificate in it", func(f Files) string { return f.CA }},
		{"CA is garbage", func(f Files) error {
			return os.WriteFile(f.CA, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), 0o600)
		}, "certificate 1 in it", func(f Files) string { return f.CA }},
		{"password", func(f Files) error {
			return os.WriteFile(f.Key, pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")}), 0o600)
		}, "openssl pkey", func(f Files) string { return f.Key }},
		{"folder", func(f Files) error { return errors.Join(os.Remove(f.Cert), os.Mkdir(f.Cert, 0o700)) }, "no file with certificates", func(f Files) string { return f.Cert }},
		{"huge", func(f Files) error { return os.Truncate(f.Cert, maxPEM+1) }, "no file with certificates", func(f Files) string { return f.Cert }},
	} {
		dir := t.TempDir()
		f := files(dir)
		if err := errors.Join(good.WriteServer(dir, ours()), c.do(f)); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(f); err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), c.naming(f)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestNoKeyIsPrinted prints what has a key in it in every way.
func TestNoKeyIsPrinted(t *testing.T) {
	h := newHost(t, ours(), issue(t, ours(), server("hb.test")))
	c, err := h.id.certificates()
	if err != nil {
		t.Fatal(err)
	}
	key := fmt.Sprintf("%v", c.own.PrivateKey)
	log := new(logs)
	logger := zerolog.New(log)
	logger.Info().Any("c", c).Any("id", h.id).Stringer("s", c).Msg("")
	for _, text := range []string{fmt.Sprint(c), fmt.Sprintf("%+v", c), fmt.Sprintf("%#v", c), fmt.Sprintf("%+v", h.id), log.String()} {
		if strings.Contains(text, key) || strings.Contains(text, "PrivateKey") {
			t.Error(text)
		}
	}
}
