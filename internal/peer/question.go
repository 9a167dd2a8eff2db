package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"syscall"
	"time"
)

// question is what is known of a call, for what is said when it fails.
type question struct {
	caller       context.Context
	began        time.Time
	host         string // name or address that the other's certificate must have
	address      string // with its port
	identity     *Identity
	certificates *Certificates
}

func (q *question) fail(kind, cause error, format string, args ...any) error {
	return &callError{kind: kind, cause: cause, text: "host " + q.address + ": " + fmt.Sprintf(format, args...)}
}

// late is a question whose time is up, or that nobody wants an answer to any more. what has a place for the time.
func (q *question) late(cause error, what string) error {
	if errors.Is(q.caller.Err(), context.Canceled) {
		return fmt.Errorf("host %s: %w", q.address, context.Canceled)
	}
	return q.fail(ErrUnreachable, errors.Join(cause, context.DeadlineExceeded), what, time.Since(q.began).Round(time.Millisecond))
}

// notDialled says why there is no connection.
func (q *question) notDialled(err error) error {
	var dns *net.DNSError
	switch {
	case q.caller.Err() != nil || isTimeout(err) && !errors.As(err, &dns):
		return q.late(err, "no connection within %s: is it down, or does a firewall drop what goes to this port?")
	case errors.As(err, &dns):
		return q.fail(ErrUnreachable, err, "no address is known for this name (%s): look at DNS or /etc/hosts here, and at address in "+
			"[migration] of the configuration there", dns.Err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return q.fail(ErrUnreachable, err, "connection refused: nobody listens there: does virt-cow.service run, and has its configuration "+
			"listen and hosts in [migration]?")
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return q.fail(ErrUnreachable, err, "no way there: is it down, or is a network? (%v)", err)
	}
	return q.fail(ErrUnreachable, err, "no connection: %v", err)
}

// notTrusted says why a handshake failed on this side.
func (q *question) notTrusted(err error) error {
	var untrusted *distrust
	var header tls.RecordHeaderError
	var remote *net.OpError
	switch {
	case errors.As(err, &untrusted):
		return q.fail(ErrRefused, err, "not trusted: its certificate %v", untrusted)
	case errors.As(err, &header):
		return q.fail(ErrRefused, err, "what answers there does not speak TLS: is this virt-cow's port?")
	case errors.As(err, &remote) && remote.Op == "remote error":
		return q.refused(remote)
	}
	return q.broken(err, "the connection ended before it showed who it is")
}

// aboutCertificate are the alerts of a host that refuses our certificate. In TLS 1.3 they come after the handshake is well on
// this side, and before the question is looked at. Any other alert may come when the
// question was taken, even answered.
var aboutCertificate = []string{
	"tls: bad certificate", "tls: certificate required", "tls: unsupported certificate", "tls: revoked certificate",
	"tls: expired certificate", "tls: unknown certificate", "tls: unknown certificate authority", "tls: access denied",
}

// notAnswered says why there is no answer, after a handshake that was well on this side; asking is how the question went
// out.
func (q *question) notAnswered(err, asking error) error {
	for _, e := range []error{err, asking} {
		var remote *net.OpError
		if errors.As(e, &remote) && remote.Op == "remote error" && slices.Contains(aboutCertificate, remote.Err.Error()) {
			return q.refused(remote)
		}
	}
	return q.broken(err, "the connection ended before its answer")
}

func (q *question) broken(err error, what string) error {
	switch {
	case q.caller.Err() != nil || isTimeout(err):
		return q.late(err, "no answer within %s, though it takes connections: journalctl -u virt-cow there may say why")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return q.fail(ErrUnreachable, err, "%s: journalctl -u virt-cow there may say why", what)
	}
	return q.fail(ErrUnreachable, err, "%s: %v", what, err)
}

// refused is told by the other side with an alert, which has no room for a reason: what can be seen from here is said,
// and where the rest stands.
func (q *question) refused(alert *net.OpError) error {
	file, said := q.certificates.files.Cert, alert.Err.Error()
	switch said {
	case "tls: internal error":
		return q.fail(ErrRefused, alert, "it has no certificate to show: `virt-cow doctor` there says what is missing")
	case "tls: protocol version not supported", "tls: no application protocol":
		return q.fail(ErrRefused, alert, "what answers there is no virt-cow, or an older one: it says %q", said)
	}
	names, err := q.certificates.Check(q.identity.now())
	if err != nil {
		return q.fail(ErrRefused, alert, "it refused this host: %v", err)
	}
	return q.fail(ErrRefused, alert, "it refused this host's certificate %s, which is for %s (%q): one of these names must be among hosts in "+
		"[migration] of the configuration there, of an image node's in [image_node], and both hosts need the same CA and the right time; journalctl -u virt-cow there has the reason",
		file, names, said)
}
