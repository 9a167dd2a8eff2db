package peer

import (
	"net"
	"net/netip"
	"strings"
	"testing"
)

func TestHosts(t *testing.T) {
	names := Names{DNS: []string{"a.hv.test", "*.wild.test", "single"}, IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}}
	for text, want := range map[string]bool{
		"a.hv.test": true, "A.HV.test.": true, "b.hv.test": false, "hv.test": false, "*.hv.test": true, "*.test": false, "*.a.hv.test": false,
		"x.wild.test": true, "x.y.wild.test": false, "wild.test": false, "*.wild.test": true, "*.y.wild.test": false,
		"single": true, "*.single": false, "10.0.0.1": true, "::ffff:10.0.0.1": true, "10.0.0.2": false, "fd00:0:0::1": true, "[fd00::1]": true, "fd00::2": false,
	} {
		h, err := ParseHost(text)
		if err != nil || h.Has(names) != want {
			t.Errorf("%s: %v %v", text, h.Has(names), err)
		}
		if !strings.Contains(text, "*") && names.Match(text) != want {
			t.Errorf("Match %s: %v", text, !want)
		}
	}
	for _, text := range []string{"", "*", "*.", "a*.test", "a.*.test", "**.test", "a b", "a:1", "10.0.0.300", "10.0.0.0/8", "-a", "a-", "a..b", "ä.test",
		"*.10", "a\n", strings.Repeat("a", 64), strings.Repeat("a.", 127) + "a"} {
		if h, err := ParseHost(text); err == nil || h.Has(names) || names.Match(text) {
			t.Errorf("%q is taken for a host", text)
		}
	}
	if (Names{}).Match("") || From(t.Context()).Match("a") || (Host{}).Has(Names{DNS: []string{""}}) {
		t.Error("nobody is somebody")
	}
	if got := From(With(t.Context(), names)).String(); got != "a.hv.test, *.wild.test, single, 10.0.0.1, fd00::1" {
		t.Error(got)
	}
}

func TestAddresses(t *testing.T) {
	for text, want := range map[string]string{
		"hv1": "hv1 hv1:7", "HV1.test.": "hv1.test hv1.test:7", "hv1:8": "hv1 hv1:8", "10.0.0.1": "10.0.0.1 10.0.0.1:7", "10.0.0.1:8": "10.0.0.1 10.0.0.1:8",
		"::1": "::1 [::1]:7", "[::1]": "::1 [::1]:7", "[::1]:8": "::1 [::1]:8", "fe80::1%eth0": "fe80::1 [fe80::1%eth0]:7",
		"": "", "hv1:": "", "hv1:0": "", "hv1:08": "", "hv1:x": "", "hv1:70000": "", ":8": "", "a b": "", "10.0.0.300": "", "[hv1]:8": "hv1 hv1:8", "*.hv": "", "a/b": "", "u@h:1": "",
	} {
		host, hostPort, err := ParseAddress(text, "7")
		if got := strings.TrimSpace(host + " " + hostPort); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q %v", text, got, err)
		}
	}
	for _, c := range [][4]string{
		{"", ":5", "hv1", "hv1:5"}, {"", "", "hv1", "hv1:16589"}, {"hv2", "10.0.0.1:5", "hv1", "hv2:5"}, {"hv2:6", ":5", "hv1", "hv2:6"},
		{"", "5", "hv1", ""}, {"", ":0", "hv1", ""}, {"", "hv1:5", "hv1", ""}, {"", ":5", "", ""}, {"", "[::]:5", "hv1", "hv1:5"},
	} {
		if got, err := OwnAddress(c[0], c[1], c[2]); got != c[3] || (err == nil) != (c[3] != "") {
			t.Errorf("%v: %q %v", c, got, err)
		}
	}
}

// FuzzHost: what is taken for a host reads the same when it is written out, and matches only what it says.
func FuzzHost(f *testing.F) {
	for _, s := range []string{"a.test", "*.a.test", "10.0.0.1", "[fd00::1]", "fe80::1%x", "*", "a..b", "::ffff:1.2.3.4", "A."} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, text, other string) {
		h, err := ParseHost(text)
		if err != nil {
			if h != (Host{}) {
				t.Errorf("%q: %v", text, h)
			}
			return
		}
		again, err := ParseHost(h.String())
		if err != nil || again != h {
			t.Errorf("%q: %v, then %v %v", text, h, again, err)
		}
		name, ok := hostName(other)
		if n := (Names{DNS: []string{name}}); ok && h.Has(n) {
			if !strings.EqualFold(strings.TrimSuffix(text, "."), name) && !(strings.HasPrefix(text, "*.") && strings.HasSuffix(name, h.name[1:]) &&
				strings.Count(name, ".") == strings.Count(h.name, ".")) {
				t.Errorf("%q has %q", text, name)
			}
		}
		if h.Has(Names{}) {
			t.Errorf("%q has nobody", text)
		}
	})
}

// FuzzAddress: what is taken for an address can be dialled, and its host is what it says.
func FuzzAddress(f *testing.F) {
	for _, s := range []string{"hv1", "hv1:8", "[::1]:8", "::1", "fe80::1%eth0", "[fe80::1%25x]:8", "a:b:c", "10.0.0.1:65535", "::0%]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		host, hostPort, err := ParseAddress(text, "7")
		if err != nil {
			return
		}
		h, port, err := net.SplitHostPort(hostPort)
		if err != nil || !isPort(port) {
			t.Fatalf("%q: %q %v", text, hostPort, err)
		}
		zoneless, _, _ := strings.Cut(h, "%")
		ip, isIP := parseIP(h)
		if isIP && ip.String() != host || !isIP && h != host {
			t.Errorf("%q: %q %q (%s)", text, host, hostPort, zoneless)
		}
		again, hostPort2, err := ParseAddress(hostPort, "9")
		if err != nil || again != host || hostPort2 != hostPort {
			t.Errorf("%q: %q, then %q %v", text, hostPort, hostPort2, err)
		}
		if _, _, err := ParseListen(text); err == nil && isIP {
			if _, err := OwnAddress("", text, "hv1"); err != nil {
				t.Errorf("%q: %v", text, err)
			}
		}
	})
}
