package nbd

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/test/lab/pki"
)

// realm is an authority, and what it has signed.
type realm struct {
	authority *pki.Authority
	pair      *pki.Pair // good for both sides
}

func newRealm(t *testing.T) realm {
	t.Helper()
	a, err := pki.New("authority")
	if err != nil {
		t.Fatal(err)
	}
	p, err := a.Issue(pki.Request{Names: []string{"127.0.0.1", "localhost"}, Server: true, Client: true})
	if err != nil {
		t.Fatal(err)
	}
	return realm{a, p}
}

func (r realm) config(t *testing.T, believes realm) *tls.Config {
	t.Helper()
	own, err := r.pair.TLS()
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(believes.authority.Cert)
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{own}, RootCAs: pool, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, ServerName: "127.0.0.1",
	}
}

// folder is where QEMU and libnbd look for the certificates of a client.
func (r realm) folder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, b := range map[string][]byte{"ca-cert.pem": r.authority.PEM, "client-cert.pem": r.pair.Cert, "client-key.pem": r.pair.Key} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// startTLS serves s over TCP until the test ends, and returns HOST:PORT.
func startTLS(t *testing.T, s *Server, config *tls.Config) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Name = "vol"
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.ServeTLS(ctx, l, config) }()
	t.Cleanup(func() {
		cancel()
		s.Close()
		if err := <-served; err != context.Canceled {
			t.Errorf("ServeTLS returned %v", err)
		}
	})
	return l.Addr().String()
}

func TestTLS(t *testing.T) {
	r := newRealm(t)
	eachLoop(t, func(t *testing.T, noRing bool) {
		blockdevtest.Conformance(t, func(t *testing.T) blockdev.Device {
			address := startTLS(t, testServer(newMemory(8<<20), noRing), r.config(t, r))
			c, err := Dial(context.Background(), "nbds://"+address+"/vol", Options{TLS: r.config(t, r)})
			if err != nil {
				t.Fatal(err)
			}
			return c
		}, blockdevtest.WithFreshZeros())
	})
}

// Whoever is not known, on either side, learns nothing.
func TestTLSRefuses(t *testing.T) {
	r, other := newRealm(t), newRealm(t)
	log := &syncLog{}
	s := testServer(newMemory(1<<20), true)
	s.Log = zerolog.New(log)
	address := startTLS(t, s, r.config(t, r))
	for name, c := range map[string]struct {
		uri  string
		tls  *tls.Config
		says string
	}{
		"no TLS":               {"nbd://" + address + "/vol", nil, "it requires TLS"},
		"TLS, no certificates": {"nbds://" + address + "/vol", nil, "TLS is not supported here"},
		"certificates, no TLS": {"nbd://" + address + "/vol", r.config(t, r), "TLS is not supported here"},
		"another client":       {"nbds://" + address + "/vol", other.config(t, r), "unknown certificate authority"},
		"another server":       {"nbds://" + address + "/vol", r.config(t, other), "unknown authority"},
		"another export":       {"nbds://" + address + "/other", r.config(t, r), "no such export"},
		"no certificate":       {"nbds://" + address + "/vol", &tls.Config{RootCAs: r.config(t, r).RootCAs, ServerName: "127.0.0.1"}, "certificate required"},
	} {
		d, err := Dial(t.Context(), c.uri, Options{TLS: c.tls, Timeout: time.Minute})
		if err == nil {
			d.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	until(t, "the log says who was sent away", func() bool {
		return strings.Contains(log.String(), "client sent away") && strings.Contains(log.String(), "unknown authority")
	})
	// The old way into transmission, and silence, lead nowhere either.
	for _, say := range [][]byte{
		pack(uint32(1), option(optExportName, "vol")), pack(uint32(1), option(optStartTLS)), pack(uint32(9)), nil,
	} {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(time.Minute))
		c.Write(say)
		c.(*net.TCPConn).CloseWrite()
		got, err := io.ReadAll(c)
		if err != nil || len(got) > 18+20 || bytes.Contains(got, []byte("vol")) {
			t.Errorf("%q: %q, %v", say, got, err)
		}
		c.Close()
	}
	until(t, "nobody is left", func() bool { return s.Conns() == 0 })
}

// Strangers cost each other their places, and nobody else.
func TestTLSStrangers(t *testing.T) {
	r := newRealm(t)
	s := testServer(newMemory(1<<20), true)
	s.Limits.Handshake = 10 * time.Minute
	address := startTLS(t, s, r.config(t, r))
	for range 3 * maxStrangers {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	d, err := Dial(t.Context(), "nbds://"+address+"/vol", Options{TLS: r.config(t, r)})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Error(err)
	}
}

// What others make of it.
func TestTLSTools(t *testing.T) {
	need(t, "nbdinfo", "nbdcopy", "qemu-img")
	r := newRealm(t)
	m := newMemory(8 << 20)
	copy(m.data[3<<20:], bytes.Repeat([]byte("data"), 1<<18))
	m.readOnly = true
	address := startTLS(t, testServer(m, true), r.config(t, r))
	uri := "nbds://" + address + "/vol?tls-certificates=" + r.folder(t)
	var info struct {
		TLS     bool `json:"TLS"`
		Exports []struct {
			Size     int64 `json:"export-size"`
			ReadOnly bool  `json:"is_read_only"`
		}
	}
	if err := json.Unmarshal([]byte(sh(t, "nbdinfo", "--json", uri)), &info); err != nil || !info.TLS || len(info.Exports) != 1 ||
		info.Exports[0].Size != 8<<20 || !info.Exports[0].ReadOnly {
		t.Errorf("%+v, %v", info, err)
	}
	if out := sh(t, "nbdinfo", "--map", uri); !strings.Contains(out, "hole,zero") || !strings.Contains(out, "data") {
		t.Error(out)
	}
	dir := t.TempDir()
	copied := filepath.Join(dir, "copied")
	sh(t, "nbdcopy", uri, copied)
	host, port, _ := net.SplitHostPort(address)
	image := filepath.Join(dir, "image")
	sh(t, "qemu-img", "convert", "--object", "tls-creds-x509,id=tls,endpoint=client,dir="+r.folder(t), "--image-opts",
		fmt.Sprintf("driver=nbd,server.type=inet,server.host=%s,server.port=%s,export=vol,tls-creds=tls", host, port), "-O", "raw", image)
	for _, path := range []string{copied, image} {
		if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, m.data) {
			t.Errorf("%s is another: %v", path, err)
		}
	}
}
