package peer

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/test/lab/pki"
)

func goodServer(t *testing.T, patience time.Duration) *running {
	t.Helper()
	return newHost(t, ours(), issue(t, ours(), server("127.0.0.1", "::1"))).serveAt(t, "127.0.0.1:0", patience, "hb.test")
}

// dialRaw is a connection that must be over before the test's patience is.
func dialRaw(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestStrangers has those knock who are no hosts at all.
func TestStrangers(t *testing.T) {
	pair, err := issue(t, ours(), server("hb.test")).TLS()
	if err != nil {
		t.Fatal(err)
	}
	ask := "POST /say HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n{\"Say\":\"moo\"}"
	overTLS := func(config *tls.Config) func(net.Conn) (string, error) {
		return func(c net.Conn) (string, error) {
			conn := tls.Client(c, config)
			if _, err := io.WriteString(conn, ask); err != nil {
				return "", err
			}
			b, err := io.ReadAll(conn)
			return string(b), err
		}
	}
	write := func(text string) func(net.Conn) (string, error) {
		return func(c net.Conn) (string, error) {
			if _, err := io.WriteString(c, text); err != nil {
				return "", err
			}
			b, err := io.ReadAll(c)
			return string(b), err
		}
	}
	for _, c := range []struct {
		name string
		do   func(net.Conn) (string, error)
		hear string // what comes back, or its error
		log  string
	}{
		{"no certificate", overTLS(&tls.Config{RootCAs: ours().Pool(), ServerName: "127.0.0.1"}), "certificate required", "it shows no certificate"},
		{"TLS 1.2", overTLS(&tls.Config{RootCAs: ours().Pool(), ServerName: "127.0.0.1", MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}),
			"protocol version not supported", "it does not speak TLS 1.3"},
		{"HTTP/2 only", overTLS(&tls.Config{RootCAs: ours().Pool(), ServerName: "127.0.0.1", NextProtos: []string{"h2"}, Certificates: []tls.Certificate{pair}}),
			"no application protocol", "h2"},
		{"plain HTTP", write(ask), "virt-cow speaks TLS here", "it does not speak TLS"},
		{"garbage", write(strings.Repeat("\x00\xff moo", 1000)), "", "it does not speak TLS"},
		{"half a hello", write("\x16\x03\x01\x02\x00\x01\x00"), "", "it did not say who it is within 300ms"},
		{"huge hello", write("\x16\x03\x01\xff\xff" + strings.Repeat("x", 70000)), "", "it does not speak TLS"},
		{"silence", write(""), "", "it did not say who it is within 300ms"},
		{"goes away", func(c net.Conn) (string, error) { return "", c.Close() }, "", "it went away before it said who it is"},
	} {
		t.Run(c.name, func(t *testing.T) {
			patience := wait
			if strings.Contains(c.log, "within 300ms") {
				patience = 300 * time.Millisecond
			}
			a := goodServer(t, patience)
			heard, err := c.do(dialRaw(t, a.address))
			t.Logf("%.100q %v", heard, err)
			if !strings.Contains(fmt.Sprint(heard, err), c.hear) {
				t.Errorf("want %q", c.hear)
			}
			if isTimeout(err) || strings.Contains(heard, "moo\",") {
				t.Error(err)
			}
			a.log.await(t, c.log)
			if a.count() != 0 || strings.Contains(a.log.String(), "asked by") {
				t.Error("it came past the handshake")
			}
		})
	}
}

// TestSlowHost has a host that may ask take its time with that.
func TestSlowHost(t *testing.T) {
	a := goodServer(t, 3*time.Second)
	pair, err := issue(t, ours(), server("hb.test")).TLS()
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for _, text := range []string{"", "POST /say HT", "POST /say HTTP/1.1\r\nHost: x\r\n", "POST /say HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"} {
		var conn *tls.Conn
		for end := time.Now().Add(wait); ; { // on a busy machine the time may not do for the handshake
			conn = tls.Client(dialRaw(t, a.address), &tls.Config{RootCAs: ours().Pool(), ServerName: "127.0.0.1", Certificates: []tls.Certificate{pair}})
			_, err := io.WriteString(conn, text)
			if err = errors.Join(err, conn.Handshake()); err == nil {
				break
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
		all.Go(func() {
			if b, err := io.ReadAll(conn); isTimeout(err) || strings.Contains(string(b), "200 OK") {
				t.Errorf("%q: %q %v", text, b, err)
			}
		})
	}
	all.Wait()
	if err := newHost(t, ours(), issue(t, ours(), server("hb.test"))).client().Call(t.Context(), a.address, "/say", sayIn{"moo"}, nil); err != nil {
		t.Error(err)
	}
}

// TestCrowd has many strangers hold the door; a host gets in all the same.
func TestCrowd(t *testing.T) {
	a := goodServer(t, wait)
	b := newHost(t, ours(), issue(t, ours(), server("hb.test")))
	for range 3 * maxStrangers {
		dialRaw(t, a.address)
	}
	for range 5 {
		if err := b.client().Call(t.Context(), a.address, "/say", sayIn{"moo"}, nil); err != nil {
			t.Fatal(err)
		}
	}
	a.log.await(t, "too many others came before it said who it is")
	if n := strings.Count(a.log.String(), "\"refused: "); n > 2 {
		t.Errorf("the same was told %d times", n)
	}
}

// TestManyHosts takes all places there are for hosts.
func TestManyHosts(t *testing.T) {
	a := goodServer(t, wait)
	b := newHost(t, ours(), issue(t, ours(), server("hb.test")))
	pair, err := issue(t, ours(), server("hb.test")).TLS()
	if err != nil {
		t.Fatal(err)
	}
	var held []net.Conn
	for range maxHosts {
		conn := tls.Client(dialRaw(t, a.address), &tls.Config{RootCAs: ours().Pool(), ServerName: "127.0.0.1", Certificates: []tls.Certificate{pair}})
		if err := conn.Handshake(); err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
	}
	call := func() error { return b.client().Call(t.Context(), a.address, "/say", sayIn{"moo"}, nil) }
	end := time.Now().Add(wait)
	for err := call(); !errors.Is(err, ErrUnreachable); err = call() { // the server may have some handshakes before it yet
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	a.log.await(t, errFull.Error())
	for _, c := range held {
		c.Close()
	}
	for err := call(); err != nil; err = call() {
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// TestRefusalArrives: whoever is refused hears of it, and not of a reset, however much it has sent meanwhile.
func TestRefusalArrives(t *testing.T) {
	a := goodServer(t, wait)
	b := newHost(t, ours(), issue(t, ours(), server("hc.test")))
	for range 30 {
		err := b.client().Call(t.Context(), a.address, "/say", sayIn{strings.Repeat("x", maxBody-100)}, nil)
		if !errors.Is(err, ErrRefused) {
			t.Fatal(err)
		}
	}
	if a.count() != 0 {
		t.Error("it came past the handshake")
	}
}

// TestOtherAlert: an alert that is not about certificates is no proof that nothing was done.
func TestOtherAlert(t *testing.T) {
	q := &question{caller: t.Context(), address: "ha:1"}
	alert := &net.OpError{Op: "remote error", Err: errors.New("tls: bad record MAC")}
	if err := q.notAnswered(alert, nil); !errors.Is(err, ErrUnreachable) || errors.Is(err, ErrRefused) {
		t.Error(err)
	}
}

// TestNoPeer dials what is no virt-cow.
func TestNoPeer(t *testing.T) {
	b := newHost(t, ours(), issue(t, ours(), server("hb.test")))
	listen := func(serve func(net.Conn)) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				serve(c)
			}
		}()
		return l.Addr().String()
	}
	nobody, err := net.Listen("tcp", "127.0.0.2:0") // where nobody else will take the port
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	old, err := issue(t, ours(), server("127.0.0.1")).TLS()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, address string
		timeout       time.Duration
		kind          error
		says          string
	}{
		{"nobody", nobody.Addr().String(), wait, ErrUnreachable, "connection refused: nobody listens there"},
		{"no such name", "no-such-host.invalid", wait, ErrUnreachable, "no address is known for this name"},
		{"silent", listen(func(c net.Conn) { t.Cleanup(func() { c.Close() }) }), time.Second, ErrUnreachable, "though it takes connections"},
		{"closes", listen(func(c net.Conn) { c.Close() }), wait, ErrUnreachable, "ended before it showed who it is"},
		{"plain HTTP", listen(func(c net.Conn) {
			if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
				_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			}
			c.Close()
		}), wait, ErrRefused, "does not speak TLS"},
		{"TLS 1.2", listen(func(c net.Conn) {
			_ = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{old}, MaxVersion: tls.VersionTLS12}).Handshake()
			c.Close()
		}), wait, ErrRefused, "no virt-cow, or an older one"},
		{"ends after the handshake", listen(func(c net.Conn) {
			_ = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{old}}).Handshake()
			c.Close()
		}), wait, ErrUnreachable, "ended before its answer"},
		{"no address", "a b", wait, nil, "is no address"},
	} {
		err := dialled(func(timeout time.Duration) error {
			return (&Client{Identity: b.id, Timeout: timeout}).Call(t.Context(), c.address, "/say", sayIn{"moo"}, nil)
		}, c.timeout)
		t.Log(err)
		if err == nil || c.kind != nil && !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) ||
			errors.Is(err, ErrUnreachable) && errors.Is(err, ErrRefused) {
			t.Errorf("%s: want %q, got %v", c.name, c.says, err)
		}
	}
	none := newHost(t, nil, nil)
	if err := none.client().Call(t.Context(), nobody.Addr().String(), "/", nil, nil); !errors.Is(err, ErrRefused) ||
		!strings.Contains(err.Error(), "this host has no certificate to show") {
		t.Error(err)
	}
}

func TestListenAndServe(t *testing.T) {
	for _, c := range []struct {
		listen string
		hosts  []Host
		says   string
		fails  bool
	}{
		{"", []Host{{name: "a"}}, "listen is empty in [migration]", false},
		{"127.0.0.1:0", nil, `such as hosts = [\"*.hv.example.com\"]`, false},
		{"203.0.113.7:1", []Host{{name: "a"}}, "", true},
	} {
		h := newHost(t, ours(), issue(t, ours(), pki.Request{Names: []string{"a"}, Server: true}))
		s := &Server{Identity: h.id, Hosts: c.hosts, Log: h.id.log, Handler: http.NotFoundHandler()}
		if err := s.ListenAndServe(t.Context(), c.listen); (err != nil) != c.fails || !strings.Contains(h.log.String(), c.says) {
			t.Errorf("%+v: %v %s", c, err, h.log)
		}
	}
}

func TestIPv6(t *testing.T) {
	h := newHost(t, ours(), issue(t, ours(), server("::1")))
	a := h.serveAt(t, "[::1]:0", wait, "fd00::7")
	b := newHost(t, ours(), issue(t, ours(), server("fd00:0::7")))
	var out sayOut
	if err := b.client().Call(t.Context(), a.address, "/say", sayIn{"moo"}, &out); err != nil || out.By != "fd00::7" {
		t.Error(err, out)
	}
}
