package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"
)

// ourProtocol is what hosts speak to each other.
var ourProtocol = []string{"http/1.1"}

// serverConfig is for a handshake with a host that dials us.
func (id *Identity) serverConfig(protocols []string, believed func(Names) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// In here, so that the other side is told with an alert if there is no certificate to show.
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			certificates, err := id.certificates()
			if err != nil {
				return nil, err
			}
			config := certificates.config(id.now, believed)
			config.NextProtos = protocols
			return config, nil
		},
	}
}

// clientConfig is for a handshake with a host that we dial, by this name or address.
func (c *Certificates) clientConfig(now func() time.Time, host string) *tls.Config {
	config := c.config(now, func(n Names) error {
		if !n.Match(host) {
			return distrustf("is for %s, not for %s: have address in [migration] of its configuration be one of its names, or make "+
				"it a certificate with this one", n, host)
		}
		return nil
	})
	config.ServerName = host
	return config
}

// OnlyFrom is the TLS of another protocol than ours, for a server that only one host may dial. It is believed as ever.
func (id *Identity) OnlyFrom(host string) *tls.Config {
	return id.serverConfig(nil, func(n Names) error {
		if !n.Match(host) {
			return distrustf("is for %s, and only %s may ask here", n, host)
		}
		return nil
	})
}

// To is the TLS of another protocol than ours, for a client that dials an address, HOST or HOST:PORT. explain says why it failed, as
// Call does: an error of the handshake, or of what came first after it.
func (id *Identity) To(ctx context.Context, address string) (config *tls.Config, explain func(error) error, err error) {
	host, hostPort, err := ParseAddress(address, DefaultPort)
	if err != nil {
		return nil, nil, err
	}
	q := &question{caller: ctx, host: host, address: hostPort, began: time.Now(), identity: id}
	if q.certificates, err = id.certificates(); err != nil {
		return nil, nil, q.fail(ErrRefused, err, "can't be asked: this host has no certificate to show: %v", err)
	}
	config = q.certificates.clientConfig(id.now, host)
	config.NextProtos = nil
	return config, q.explain, nil
}

// explain says what an error of a connection is about, if it is the trust of the two hosts.
func (q *question) explain(err error) error {
	var untrusted *distrust
	var remote *net.OpError
	switch {
	case errors.As(err, &untrusted):
		return q.fail(ErrRefused, err, "not trusted: its certificate %v", untrusted)
	case errors.As(err, &remote) && remote.Op == "remote error":
		return q.refused(remote)
	}
	return fmt.Errorf("host %s: %w", q.address, err)
}
