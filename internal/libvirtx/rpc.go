package libvirtx

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"
)

// DefaultSocket is where libvirtd, or virtqemud's proxy, answers.
const DefaultSocket = "/run/libvirt/libvirt-sock"

// callTimeout bounds every call: the protocol has no keepalive here, a libvirtd that hangs is dropped. An
// attach waits for QEMU, a detach for the guest, so it is generous.
const callTimeout = 60 * time.Second

// rpc is a Conn over libvirt's RPC protocol.
type rpc struct {
	l      *libvirt.Libvirt
	socket *watchedConn
	events chan Event
	pumps  sync.WaitGroup
}

// Dial connects to the QEMU driver behind a libvirt socket, and subscribes.
func Dial(ctx context.Context, socket string) (Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("libvirt at %s: %w: is libvirtd running?", socket, err)
	}
	r := &rpc{socket: &watchedConn{Conn: c, gone: make(chan struct{})}, events: make(chan Event)}
	r.l = libvirt.NewWithDialer(r.socket)
	err = r.call(ctx, "connect", func() error { return r.l.ConnectToURI(libvirt.QEMUSystem) })
	if err == nil {
		err = r.subscribe(ctx)
	}
	if err != nil {
		r.socket.Close()
		return nil, fmt.Errorf("libvirt at %s: %w", socket, err)
	}
	go func() { // nobody may write to events any more
		r.pumps.Wait()
		close(r.events)
	}()
	return r, nil
}

// watchedConn is a connection that tells when it ended. The library calls Dial once to get it.
type watchedConn struct {
	net.Conn
	once sync.Once
	gone chan struct{}
}

func (c *watchedConn) Dial() (net.Conn, error) { return c, nil }

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.once.Do(func() { close(c.gone) })
	}
	return n, err
}

func (c *watchedConn) Close() error {
	c.once.Do(func() { close(c.gone) })
	return c.Conn.Close()
}

// call runs one call. When it takes too long the connection is dropped, which ends it: the library can
// neither take a call back nor end a subscription without the danger of a deadlock.
func (r *rpc) call(ctx context.Context, what string, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	timeout := time.NewTimer(callTimeout)
	defer timeout.Stop()
	var err error
	select {
	case err = <-done:
		err = known(err)
	case <-r.socket.gone:
		select {
		case err = <-done:
			err = known(err)
		case <-time.After(time.Second):
			err = ErrGone
		}
	case <-ctx.Done():
		r.socket.Close()
		err = fmt.Errorf("%w: %w", ErrGone, ctx.Err())
	case <-timeout.C:
		r.socket.Close()
		err = fmt.Errorf("%w: no answer in %s", ErrGone, callTimeout)
	}
	if err != nil {
		return fmt.Errorf("libvirt: %s: %w", what, err)
	}
	return nil
}

// known gives libvirt's errors their sentinels.
func known(err error) error {
	var le libvirt.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, libvirt.ErrInterrupted), errors.Is(err, net.ErrClosed), errors.Is(err, syscall.EPIPE),
		errors.Is(err, syscall.EINVAL): // the library's own word for a call after the end
		return fmt.Errorf("%w: %w", ErrGone, err)
	case !errors.As(err, &le):
		return err
	}
	switch {
	case libvirt.ErrorNumber(le.Code) == libvirt.ErrNoDomain:
		return fmt.Errorf("%w: %w", ErrNoDomain, err)
	case libvirt.ErrorNumber(le.Code) == libvirt.ErrDeviceMissing,
		strings.Contains(le.Message, "no device found with alias"): // libvirt 9.0 calls it an internal error
		return fmt.Errorf("%w: %w", ErrNoDevice, err)
	case strings.Contains(le.Message, "No more available PCI slots"):
		return fmt.Errorf("%w (libvirt: %w)", ErrNoSlot, err)
	}
	return err
}

func (r *rpc) Events() <-chan Event { return r.events }

// Close drops the connection; libvirtd cleans up after it.
func (r *rpc) Close() error { return r.socket.Close() }

func fromDomain(d libvirt.Domain) Domain { return Domain{Name: d.Name, UUID: uuid.UUID(d.UUID)} }

func toDomain(d Domain) libvirt.Domain {
	return libvirt.Domain{Name: d.Name, UUID: libvirt.UUID(d.UUID), ID: -1}
}
