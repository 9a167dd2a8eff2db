package peer

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Names are what a host is called by its certificate.
type Names struct {
	DNS []string     // in lower case; the first label may be * and stands for any one label
	IPs []netip.Addr // without zones
}

// Match says whether the certificate is for a host: a name, or an IP address in any of its spellings.
func (n Names) Match(host string) bool {
	if ip, ok := parseIP(host); ok {
		return slices.Contains(n.IPs, ip)
	}
	host, ok := hostName(host)
	return ok && slices.ContainsFunc(n.DNS, func(name string) bool {
		return name == host || strings.HasPrefix(name, "*.") && name[1:] == parent(host)
	})
}

// String lists the names, at most six.
func (n Names) String() string {
	all := slices.Clone(n.DNS)
	for _, ip := range n.IPs {
		all = append(all, ip.String())
	}
	if more := len(all) - 6; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:6], ", "), more)
	}
	return strings.Join(all, ", ")
}

func (n Names) none() bool { return len(n.DNS)+len(n.IPs) == 0 }

// Host is a configured host that may ask: a name, a name whose first label is *, which stands for any one label, or an
// IP address.
type Host struct {
	name string
	ip   netip.Addr
}

// ParseHost reads a Host.
func ParseHost(text string) (Host, error) {
	if ip, ok := parseIP(text); ok {
		return Host{ip: ip}, nil
	}
	star := strings.HasPrefix(text, "*.")
	name, ok := hostName(strings.TrimPrefix(text, "*."))
	switch {
	case ok && star:
		return Host{name: "*." + name}, nil
	case ok:
		return Host{name: name}, nil
	case strings.Contains(text, "*"):
		return Host{}, fmt.Errorf("%q is no host: a * is only for the whole first part of a name, as in *.hv.example.com", text)
	case strings.Contains(text, "/"):
		return Host{}, fmt.Errorf("%q is no host: networks can't be given, as a certificate has no network in it", text)
	}
	return Host{}, fmt.Errorf("%q is no host: write hv1.example.com, *.hv.example.com or an IP address, without a port", text)
}

// ParseHosts reads a list of them.
func ParseHosts(texts []string) ([]Host, error) {
	hosts := make([]Host, 0, len(texts))
	for _, t := range texts {
		h, err := ParseHost(t)
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, h)
	}
	return hosts, nil
}

// Has says whether a certificate with these names is this host's, or one of those that the pattern stands for.
func (h Host) Has(n Names) bool {
	pattern, star := strings.CutPrefix(h.name, "*.")
	switch {
	case h.ip.IsValid():
		return slices.Contains(n.IPs, h.ip)
	case star:
		return slices.ContainsFunc(n.DNS, func(name string) bool { return parent(name) == "."+pattern })
	}
	return n.Match(h.name)
}

func (h Host) String() string {
	if h.ip.IsValid() {
		return h.ip.String()
	}
	return h.name
}

// parent is a name without its first label, with the dot.
func parent(name string) string {
	if i := strings.IndexByte(name, '.'); i >= 0 {
		return name[i:]
	}
	return ""
}

// parseIP reads an address, in brackets or with a zone too; 4-in-6 is the same as 4.
func parseIP(text string) (netip.Addr, bool) {
	if strings.HasPrefix(text, "[") && strings.HasSuffix(text, "]") {
		text = text[1 : len(text)-1]
	}
	ip, err := netip.ParseAddr(text)
	if err != nil || strings.ContainsAny(ip.Zone(), "[]%/:") { // any text is a zone for netip
		return netip.Addr{}, false
	}
	return ip.Unmap().WithZone(""), true
}

// hostName is a host's name in lower case and without the last dot. It is none if it could be no host's: what comes out
// of certificates is shown to people.
func hostName(text string) (name string, ok bool) {
	name = strings.ToLower(strings.TrimSuffix(text, "."))
	if len(name) > 253 {
		return "", false
	}
	last := ""
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return "", false
		}
		last = label
	}
	return name, strings.Trim(last, "0123456789") != "" // 10.0.0.300 is neither
}
