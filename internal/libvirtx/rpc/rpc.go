// Package rpc is the driver of libvirtx that speaks libvirt's RPC protocol through
// github.com/digitalocean/go-libvirt over the local socket: pure Go, so that the program stays static.
package rpc

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

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// conn is a libvirtx.Conn over libvirt's RPC protocol.
type conn struct {
	l      *libvirt.Libvirt
	socket *watchedConn
	events chan libvirtx.Event
	pumps  sync.WaitGroup
}

// Dial connects to the QEMU driver behind a libvirt socket, and subscribes.
func Dial(ctx context.Context, socket string) (libvirtx.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("libvirt at %s: %w: is libvirtd running?", socket, err)
	}
	r := &conn{socket: &watchedConn{Conn: c, gone: make(chan struct{})}, events: make(chan libvirtx.Event)}
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
func (r *conn) call(ctx context.Context, what string, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	timeout := time.NewTimer(libvirtx.CallTimeout)
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
			err = libvirtx.ErrGone
		}
	case <-ctx.Done():
		r.socket.Close()
		err = fmt.Errorf("%w: %w", libvirtx.ErrGone, ctx.Err())
	case <-timeout.C:
		r.socket.Close()
		err = fmt.Errorf("%w: no answer in %s", libvirtx.ErrGone, libvirtx.CallTimeout)
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
		return fmt.Errorf("%w: %w", libvirtx.ErrGone, err)
	case !errors.As(err, &le):
		return err
	}
	switch {
	case libvirt.ErrorNumber(le.Code) == libvirt.ErrNoDomain:
		return fmt.Errorf("%w: %w", libvirtx.ErrNoDomain, err)
	case libvirt.ErrorNumber(le.Code) == libvirt.ErrDeviceMissing,
		strings.Contains(le.Message, "no device found with alias"): // libvirt 9.0 calls it an internal error
		return fmt.Errorf("%w: %w", libvirtx.ErrNoDevice, err)
	case strings.Contains(le.Message, "No more available PCI slots"):
		return fmt.Errorf("%w (libvirt: %w)", libvirtx.ErrNoSlot, err)
	}
	return err
}

func (r *conn) Events() <-chan libvirtx.Event { return r.events }

// Close drops the connection; libvirtd cleans up after it.
func (r *conn) Close() error { return r.socket.Close() }

func fromDomain(d libvirt.Domain) libvirtx.Domain {
	return libvirtx.Domain{Name: d.Name, UUID: uuid.UUID(d.UUID)}
}

func toDomain(d libvirtx.Domain) libvirt.Domain {
	return libvirt.Domain{Name: d.Name, UUID: libvirt.UUID(d.UUID), ID: -1}
}
