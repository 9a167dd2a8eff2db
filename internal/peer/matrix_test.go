package peer

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/test/lab/pki"
)

// TestWhoGetsIn has hosts with all kinds of certificates ask one that is well, and looks at what both sides say.
func TestWhoGetsIn(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name     string
		believes *pki.Authority
		shows    *pki.Pair
		kind     error  // nil: gets in
		asker    string // what the one who asks says, or, of one who gets in, who he is
		asked    string // what the other logs
	}{
		{"right host", ours(), issue(t, ours(), server("hb.test")), nil, "hb.test", `"host":"hb.test"`},
		{"one of a pattern", ours(), issue(t, ours(), server("n7.hv.test", "10.0.0.9")), nil, "n7.hv.test, 10.0.0.9", `"path":"/say"`},
		{"by address", ours(), issue(t, ours(), server("10.7.7.7")), nil, "10.7.7.7", "asked by another host"},
		{"wildcard certificate", ours(), issue(t, ours(), server("*.hv.test")), nil, "*.hv.test", "asked by another host"},
		{"for both purposes", ours(), issue(t, ours(), pki.Request{Names: []string{"HB.test"}, Server: true, Client: true}), nil, "hb.test", "asked by"},
		{"common name only", ours(), issue(t, ours(), pki.Request{Names: []string{"hb.test"}, Server: true, NoSAN: true}), nil, "hb.test", "asked by"},

		{"administrator's", ours(), issue(t, ours(), pki.Request{Names: []string{"hb.test"}, Client: true}), ErrRefused,
			"is for a client (clientAuth), such as an administrator", "its certificate is for a client (clientAuth)"},
		{"no purpose", ours(), issue(t, ours(), pki.Request{Names: []string{"hb.test"}}), ErrRefused,
			"certtool: tls_www_server", "its certificate does not say what it is for"},
		{"other CA", ours(), issue(t, theirs(), server("hb.test")), ErrRefused,
			`comes from another CA, "CN=theirs`, "its certificate comes from another CA"},
		{"believes another CA", theirs(), issue(t, theirs(), server("hb.test")), ErrRefused,
			`not trusted: its certificate comes from another CA, "CN=ours`, "it does not want this host's certificate"},
		{"expired", ours(), issue(t, ours(), pki.Request{Names: []string{"hb.test"}, Server: true, NotAfter: now.Add(-time.Hour)}), ErrRefused,
			"has expired on ", "its certificate has expired on "},
		{"not yet valid", ours(), issue(t, ours(), pki.Request{Names: []string{"hb.test"}, Server: true, NotAfter: now.Add(48 * time.Hour)}), ErrRefused,
			"is not valid before ", "its certificate is not valid before "},
		{"wrong name", ours(), issue(t, ours(), server("hc.test")), ErrRefused,
			"it refused this host's certificate ", "its certificate is for hc.test, which is not among hosts in [migration]"},
		{"name above the pattern", ours(), issue(t, ours(), server("hv.test", "a.b.hv.test")), ErrRefused, "one of these names must be among hosts", "not among hosts"},
		{"common name beside another", ours(), issue(t, ours(), pki.Request{Names: []string{"10.9.9.9", "hb"}, Server: true}), ErrRefused, "it refused", "not among hosts"},
		{"no name", ours(), issue(t, ours(), pki.Request{Names: []string{"not a host"}, Server: true, NoSAN: true}), ErrRefused, "has no name of a host", "has no name of a host"},
		{"signed by itself", ours(), selfSigned(t, "hb.test", false), ErrRefused, "is signed by itself, not by the CA in ", "its certificate is signed by itself"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newHost(t, ours(), issue(t, ours(), server("ha.test", "127.0.0.1"))).serve(t, "hb.test", "*.hv.test", "10.7.7.7")
			b := newHost(t, c.believes, c.shows)
			var out sayOut
			err := b.client().Call(t.Context(), a.address, "/say", sayIn{"moo"}, &out)
			t.Log(err)
			a.log.await(t, c.asked)
			if c.kind == nil {
				if err != nil || out.Said != "moo" || out.By != c.asker || out.IsHost != (strings.ToLower(c.asker) == "hb.test") {
					t.Errorf("%v %+v", err, out)
				}
				return
			}
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.asker) || !strings.HasPrefix(err.Error(), "host "+a.address+": ") {
				t.Errorf("want %q, got %v", c.asker, err)
			}
			if a.count() != 0 || strings.Contains(a.log.String(), "asked by another host") {
				t.Error("it came past the handshake")
			}
			for _, s := range append(secrets(t, a.files), secrets(t, b.files)...) {
				if strings.Contains(a.log.String()+b.log.String()+err.Error(), s) {
					t.Error("a key is in the log")
				}
			}
		})
	}
}

// TestWhoIsAsked has a host that is well ask others that may not be.
func TestWhoIsAsked(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name     string
		believes *pki.Authority
		shows    *pki.Pair // nil: it has none
		dial     string    // instead of the address
		hosts    []string
		kind     error
		says     string
		logs     string
	}{
		{"right", ours(), issue(t, ours(), server("127.0.0.1")), "", nil, nil, "", ""},
		{"right, by name", ours(), issue(t, ours(), server("localhost")), "localhost", nil, nil, "", ""},
		{"another name", ours(), issue(t, ours(), server("ha.test", "10.0.0.7")), "", nil, ErrRefused,
			"its certificate is for ha.test, 10.0.0.7, not for 127.0.0.1: have address in [migration]", "it does not want this host's certificate"},
		{"name is no address", ours(), issue(t, ours(), server("127.0.0.1")), "localhost", nil, ErrRefused, "is for 127.0.0.1, not for localhost", ""},
		{"administrator's", ours(), issue(t, ours(), pki.Request{Names: []string{"127.0.0.1"}, Client: true}), "", nil, ErrRefused, "is for a client", ""},
		{"no purpose", ours(), issue(t, ours(), pki.Request{Names: []string{"127.0.0.1"}}), "", nil, ErrRefused, "does not say what it is for", ""},
		{"other CA", theirs(), issue(t, theirs(), server("127.0.0.1")), "", nil, ErrRefused, "comes from another CA", ""},
		{"expired", ours(), issue(t, ours(), pki.Request{Names: []string{"127.0.0.1"}, Server: true, NotAfter: now.Add(-time.Hour)}), "", nil, ErrRefused, "has expired on", ""},
		{"believes another CA", theirs(), issue(t, ours(), server("127.0.0.1")), "", nil, ErrRefused, "both hosts need the same CA", "comes from another CA"},
		{"no certificates", ours(), nil, "", nil, ErrRefused, "it has no certificate to show: `virt-cow doctor` there", "no such file or directory: `virt-cow doctor` prints"},
		{"nobody may ask", ours(), issue(t, ours(), server("127.0.0.1")), "", []string{}, ErrRefused, "must be among hosts", "but no host may ask: add it to hosts"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.hosts == nil {
				c.hosts = []string{"hb.test"}
			}
			a := newHost(t, c.believes, c.shows).serve(t, c.hosts...)
			address := a.address
			if c.dial != "" {
				address = c.dial + address[strings.LastIndex(address, ":"):]
			}
			err := newHost(t, ours(), issue(t, ours(), server("hb.test"))).client().Call(t.Context(), address, "/say", sayIn{"moo"}, nil)
			t.Log(err)
			if c.kind == nil && err != nil || !errors.Is(err, c.kind) || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("want %q, got %v", c.says, err)
			}
			a.log.await(t, c.logs)
			if c.kind != nil && a.count() != 0 {
				t.Error("it was asked")
			}
		})
	}
}

func TestAnswers(t *testing.T) {
	a := newHost(t, ours(), issue(t, ours(), server("127.0.0.1"))).serve(t, "hb.test")
	b := newHost(t, ours(), issue(t, ours(), server("hb.test")))
	var remote *api.RemoteError
	for _, c := range []struct {
		path, say string
		code      int // of a RemoteError
		kind      error
		says      string
	}{
		{"/say", "fail", 409, nil, "host " + a.address + ": it is in use"},
		{"/say", strings.Repeat("x", maxBody), 409, nil, "request body too large"},
		{"/say", strings.Repeat("x", 64*maxBody), 409, nil, "request body too large"},
		{"/nowhere", "", 404, nil, "404 page not found"},
		{"/" + strings.Repeat("x", 2*maxHeader), "", 431, nil, "431"},
		{"/much", "", 0, nil, "has more than"},
		{"/odd", "", 0, nil, "not understood"},
		{"/gone", "", 0, ErrUnreachable, "ended before its answer"},
	} {
		err := b.client().Call(t.Context(), a.address, c.path, sayIn{c.say}, &struct{}{})
		if err == nil || !strings.Contains(err.Error(), c.says) || errors.Is(err, ErrUnreachable) != (c.kind == ErrUnreachable) || errors.Is(err, ErrRefused) {
			t.Errorf("%.20s %.20s: want %q, got %v", c.path, c.say, c.says, err)
		}
		if errors.As(err, &remote) != (c.code != 0) || c.code != 0 && remote.Code != c.code {
			t.Errorf("%.20s %.20s: %v", c.path, c.say, err)
		}
	}
	err := dialled(func(timeout time.Duration) error {
		return (&Client{Identity: b.id, Timeout: timeout}).Call(t.Context(), a.address, "/hang", nil, nil)
	}, 300*time.Millisecond)
	if !errors.Is(err, ErrUnreachable) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "though it takes connections") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	if err := b.client().Call(ctx, a.address, "/hang", nil, nil); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnreachable) {
		t.Error(err)
	}
}
