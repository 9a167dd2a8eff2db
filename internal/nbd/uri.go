package nbd

import (
	"fmt"
	"net"
	"net/url"
	"strings"
)

// address is where an export is.
type address struct {
	uri              string // as given, for messages
	network, address string
	export           string
	tls              bool
}

// parseURI understands nbd+unix:///EXPORT?socket=PATH and nbd[s]://HOST[:PORT]/EXPORT, of doc/uri.md of
// github.com/NetworkBlockDevice/nbd.
func parseURI(s string) (address, error) {
	u, err := url.Parse(s)
	if err != nil {
		return address{}, fmt.Errorf("NBD address %q: %w", s, err)
	}
	a := address{uri: s, export: strings.TrimPrefix(u.Path, "/")}
	if len(a.export) > maxString {
		return address{}, fmt.Errorf("NBD address %q: the export's name is longer than %d bytes", s, maxString)
	}
	switch u.Scheme {
	case "nbd+unix":
		a.network, a.address = "unix", u.Query().Get("socket")
		if a.address == "" || u.Host != "" {
			return address{}, fmt.Errorf("NBD address %q: want nbd+unix:///EXPORT?socket=PATH", s)
		}
	case "nbd", "nbds":
		if u.Hostname() == "" {
			return address{}, fmt.Errorf("NBD address %q: want nbd://HOST[:PORT]/EXPORT", s)
		}
		port := u.Port()
		if port == "" {
			port = defaultPort
		}
		a.tls = u.Scheme == "nbds"
		a.network, a.address = "tcp", net.JoinHostPort(u.Hostname(), port)
	case "nbds+unix":
		return address{}, fmt.Errorf("NBD address %q: TLS is not supported, use a tunnel", s)
	default:
		return address{}, fmt.Errorf("NBD address %q: want nbd+unix:///EXPORT?socket=PATH or nbd://HOST[:PORT]/EXPORT", s)
	}
	return a, nil
}
