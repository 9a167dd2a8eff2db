// Package rpc is the driver of libvirtx that speaks libvirt's RPC protocol through
// github.com/digitalocean/go-libvirt over the local socket: pure Go, so that the program stays static.
//
// What the library does not do is done here:
//
//   - It has no keepalive and no time-outs: calls run under libvirtx.Session, and a probe finds a libvirtd that hangs.
//   - Ending a subscription can lock its reader up: none is ended before the connection, and none is waited for.
//   - An event between the registration and its stream is lost: who lists after Dial misses nothing.
//   - It trusts the length of a packet, and panics on one that is too short: frames are checked before it sees them.
//   - It takes part in nothing after the connection is gone: the socket itself tells of the end.
//
// What libvirtd can't take is kept from it: a client that is gone while a call of it ends and that has subscriptions
// can crash libvirtd 9.0, for two of its threads then end the subscriptions (remoteClientFreePrivateCallbacks). So there are
// two connections, one for calls and one for events, and on the latter no call is under way once Dial returned.
package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// conn is a libvirtx.Conn over libvirt's RPC protocol. Its session ends with either connection.
type conn struct {
	*libvirtx.Session
	l *libvirt.Libvirt // for calls
}

// Dial connects to the QEMU driver behind a libvirt socket, "" for this host's, and subscribes.
func Dial(ctx context.Context, path string) (libvirtx.Conn, error) {
	return DialKeepalive(ctx, path, libvirtx.DefaultKeepalive)
}

// DialKeepalive is Dial with other times.
func DialKeepalive(ctx context.Context, path string, k libvirtx.Keepalive) (libvirtx.Conn, error) {
	if path == "" {
		path = libvirtx.Socket()
	}
	if strings.Contains(path, "://") {
		return nil, fmt.Errorf("libvirt at %s: give the path of libvirt's socket: this program knows URIs only if it was built with the tag libvirt_cgo", path)
	}
	r := &conn{Session: libvirtx.NewSession()}
	if err := r.setUp(ctx, path, k); err != nil {
		r.End("could not be set up")
		return nil, fmt.Errorf("libvirt at %s: %w", path, err)
	}
	return r, nil
}

// setUp makes both connections. Who lists after it misses no event.
func (r *conn) setUp(ctx context.Context, path string, k libvirtx.Keepalive) error {
	events, heard, err := r.connect(ctx, path)
	if err != nil {
		return err
	}
	if err := r.subscribe(ctx, events); err != nil {
		return err
	}
	l, answered, err := r.connect(ctx, path)
	if err != nil {
		return err
	}
	r.l = l
	go r.Watch(k, func() int64 { return heard.Load() + answered.Load() }, func() {
		_, err := l.ConnectGetLibVersion()
		_ = r.known(err) // that it came back is enough
	})
	return nil
}

// connect makes a connection that ends with the session, and counts the bytes that come.
func (r *conn) connect(ctx context.Context, path string) (*libvirt.Libvirt, *atomic.Int64, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: is libvirtd, or virtqemud, running?", err)
	}
	go func() {
		<-r.Gone()
		c.Close() // ends whatever the library waits for
	}()
	s := &socket{Conn: c, ended: r.End}
	l := libvirt.NewWithDialer(s)
	return l, &s.read, do(ctx, r, "connect", func() error {
		err := l.ConnectToURI(libvirt.QEMUSystem)
		s.read.Add(0) // the library writes, last of all, what it reads once the connection is lost: that comes after this
		return err
	})
}

// call runs one call under the session.
func call[T any](ctx context.Context, r *conn, what string, f func() (T, error)) (T, error) {
	return libvirtx.Do(ctx, r.Session, what, func() (T, error) {
		v, err := f()
		return v, r.known(err)
	})
}

// do is call for what returns nothing.
func do(ctx context.Context, r *conn, what string, f func() error) error {
	_, err := call(ctx, r, what, func() (none struct{}, err error) { return none, f() })
	return err
}

// known gives the library's errors their sentinels.
func (r *conn) known(err error) error {
	var le libvirt.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &le):
		return libvirtx.Known(err, int(le.Code), le.Message)
	case errors.Is(err, libvirt.ErrInterrupted), errors.Is(err, net.ErrClosed), errors.Is(err, syscall.EPIPE),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EINVAL): // the last is the library's word for a call after the end
		r.End(err.Error())
		return r.Err()
	}
	return err
}

// Close drops the connections; libvirtd cleans up after them.
func (r *conn) Close() error {
	r.End("closed")
	return nil
}

func fromDomain(d libvirt.Domain) libvirtx.Domain {
	return libvirtx.Domain{Name: d.Name, UUID: uuid.UUID(d.UUID)}
}

func toDomain(d libvirtx.Domain) libvirt.Domain {
	return libvirt.Domain{Name: d.Name, UUID: libvirt.UUID(d.UUID), ID: -1}
}
