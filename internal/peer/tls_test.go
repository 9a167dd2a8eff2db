package peer

import (
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
)

// Another protocol's TLS trusts as ours does, and says why it does not.
func TestOnlyFrom(t *testing.T) {
	t.Parallel()
	host := func(name string) *Identity { return newHost(t, ours(), issue(t, ours(), server(name, "127.0.0.1"))).id }
	here, node, other := host("here"), host("node"), host("other")
	stranger := newHost(t, theirs(), issue(t, theirs(), server("node", "127.0.0.1"))).id
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				s := tls.Server(c, here.OnlyFrom("node"))
				if s.Handshake() == nil {
					_, _ = s.Write([]byte("x"))
				}
			}()
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for name, c := range map[string]struct {
		who  *Identity
		host string
		says string
	}{
		"the one":            {node, "127.0.0.1", ""},
		"a host that is not": {other, "127.0.0.1", "it refused this host's certificate"},
		"another CA's":       {stranger, "127.0.0.1", "another CA"},
		"another name":       {node, "localhost", "not for localhost"},
	} {
		config, explain, err := c.who.To(t.Context(), net.JoinHostPort(c.host, port))
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		secure := tls.Client(conn, config)
		if err = secure.Handshake(); err == nil {
			_, err = secure.Read(make([]byte, 1))
		}
		conn.Close()
		switch {
		case c.says == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.says == "":
		case err == nil || !errors.Is(explain(err), ErrRefused) || !strings.Contains(explain(err).Error(), c.says):
			t.Errorf("%s: %v", name, explain(err))
		}
	}
}
