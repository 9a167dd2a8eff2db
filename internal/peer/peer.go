// Package peer is how the daemons of two hosts speak: who the other one is, and that nobody else is listened to. What is
// asked stands in package api.
//
// JSON is POSTed over HTTP/1.1 over TLS 1.3, with certificates on both sides, by default those that libvirt has anyway.
// A host shows its server certificate whichever side dialled. It is believed if it
//
//   - comes from the one CA,
//   - has the extended key usage serverAuth, said outright: an administrator's client certificate is no host, and
//     a certificate for any purpose says nothing,
//   - is no CA itself, and is in date,
//   - has the right name: that of the address we dialled, or, of those who dial us, one of the configured hosts.
//
// Names are the certificate's DNS names and IP addresses. Only one without any subject alternative name is known by its
// common name, as libvirt's own check has it, and not below a CA that is limited to certain names: that limit does not
// hold for common names.
//
// Whoever is refused is refused in the handshake, and no byte of what it sends is read as a request. Certificates are
// read again when their files change. There are no revocation lists: who is to be kept out is taken out of hosts.
package peer

import (
	"context"
	"errors"
)

// DefaultPort is where daemons listen for each other, unless configured otherwise.
const DefaultPort = "16589"

// DefaultNodePort is where an image node listens, unless configured otherwise.
const DefaultNodePort = "16590"

// Where libvirt keeps its certificates.
const (
	DefaultCA   = "/etc/pki/CA/cacert.pem"
	DefaultCert = "/etc/pki/libvirt/servercert.pem"
	DefaultKey  = "/etc/pki/libvirt/private/serverkey.pem"
)

var (
	// ErrUnreachable says that there was no answer. It proves nothing: the other host may live, and may have done what
	// it was asked for.
	ErrUnreachable = errors.New("no answer from the other host")

	// ErrRefused says that one of the two hosts does not trust the other, or can't show who it is. Nothing was asked, and
	// somebody has to mend it.
	ErrRefused = errors.New("the hosts do not trust each other")
)

// namesKey keys the Names of who asks.
type namesKey struct{}

// From is who asked the request with this context, as its certificate has it. Of a request that did not come through a
// Server it has no names, and matches no host.
func From(ctx context.Context) Names {
	n, _ := ctx.Value(namesKey{}).(Names)
	return n
}

// With is a context of a request asked by a host with these names, for what calls a handler without a Server.
func With(ctx context.Context, n Names) context.Context {
	return context.WithValue(ctx, namesKey{}, n)
}
