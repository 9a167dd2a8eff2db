//go:build libvirt_cgo

package cgo

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// conn is a libvirtx.Conn over libvirt's library.
type conn struct {
	*libvirtx.Session
	c         *libvirt.Connect
	callbacks []int

	mu    sync.Mutex
	users int  // calls that use c
	over  bool // no further call may
}

// startLoop registers libvirt's event loop and runs it for as long as the program lives. It comes before the first
// connection: one that was opened without it gets neither events nor keepalive.
var startLoop = sync.OnceValue(func() error {
	if err := libvirt.EventRegisterDefaultImpl(); err != nil {
		return err
	}
	go func() {
		for {
			if err := libvirt.EventRunDefaultImpl(); err != nil {
				time.Sleep(100 * time.Millisecond)
			}
		}
	}()
	return nil
})

// opening is held while a connection is being opened: see the package's comment.
var opening = make(chan struct{}, 1)

// Dial connects to libvirt at the path of its socket, "" for this host's, or at a URI such as
// qemu+unix:///session or test:///default, and subscribes.
func Dial(ctx context.Context, address string) (libvirtx.Conn, error) {
	return DialKeepalive(ctx, address, libvirtx.DefaultKeepalive)
}

// DialKeepalive is Dial with other times.
func DialKeepalive(ctx context.Context, address string, k libvirtx.Keepalive) (libvirtx.Conn, error) {
	if address == "" {
		address = libvirtx.Socket()
	}
	fail := func(err error) (libvirtx.Conn, error) { return nil, fmt.Errorf("libvirt at %s: %w", address, err) }
	if err := startLoop(); err != nil {
		return fail(err)
	}
	select {
	case opening <- struct{}{}:
	case <-ctx.Done():
		return fail(fmt.Errorf("%w: an earlier attempt to connect still hangs: %w", libvirtx.ErrNoAnswer, ctx.Err()))
	}
	type result struct {
		r   *conn
		err error
	}
	done := make(chan result)
	go func() {
		r, err := open(uri(address), k)
		<-opening
		select {
		case done <- result{r, err}:
		case <-ctx.Done():
			if err == nil {
				r.Close()
			}
		}
	}()
	select {
	case got := <-done:
		if got.err != nil {
			return fail(got.err)
		}
		return got.r, nil
	case <-ctx.Done():
		return fail(fmt.Errorf("%w: %w", libvirtx.ErrNoAnswer, ctx.Err()))
	}
}

// uri is the QEMU driver behind a socket; what is a URI already it leaves alone.
func uri(address string) string {
	if strings.Contains(address, "://") {
		return address
	}
	return "qemu+unix:///system?" + url.Values{"socket": {address}, "mode": {"legacy"}}.Encode()
}

// open opens a connection and sets it up.
func open(uri string, k libvirtx.Keepalive) (*conn, error) {
	c, err := libvirt.NewConnect(uri)
	if err != nil {
		return nil, err
	}
	r := &conn{Session: libvirtx.NewSession(), c: c}
	if err := r.setUp(k); err != nil {
		r.End("could not be set up")
		r.release()
		return nil, err
	}
	go func() {
		<-r.Gone()
		r.release()
	}()
	return r, nil
}

func (r *conn) setUp(k libvirtx.Keepalive) error {
	interval := max(1, int(k.Interval/time.Second))
	count := max(1, uint(k.Timeout/k.Interval))
	if err := r.c.SetKeepAlive(interval, count); err != nil && !unsupported(err) {
		return err
	}
	err := r.c.RegisterCloseCallback(func(_ *libvirt.Connect, reason libvirt.ConnectCloseReason) { r.End(closeReason(reason)) })
	if err != nil && !unsupported(err) { // a driver within this process, such as test, has no connection to close
		return err
	}
	return r.subscribe()
}

func unsupported(err error) bool {
	var le libvirt.Error
	return errors.As(err, &le) && le.Code == libvirt.ERR_NO_SUPPORT
}

func closeReason(reason libvirt.ConnectCloseReason) string {
	switch reason {
	case libvirt.CONNECT_CLOSE_REASON_EOF:
		return "libvirtd closed it"
	case libvirt.CONNECT_CLOSE_REASON_KEEPALIVE:
		return "dropped: libvirtd did not answer"
	case libvirt.CONNECT_CLOSE_REASON_CLIENT:
		return "closed"
	}
	return "an I/O error"
}

// call runs one call under the session.
func call[T any](ctx context.Context, r *conn, what string, f func() (T, error)) (T, error) {
	return libvirtx.Do(ctx, r.Session, what, func() (none T, err error) {
		if !r.use() {
			return none, r.Err()
		}
		defer r.unuse()
		v, err := f()
		return v, r.known(err)
	})
}

// do is call for what returns nothing.
func do(ctx context.Context, r *conn, what string, f func() error) error {
	_, err := call(ctx, r, what, func() (none struct{}, err error) { return none, f() })
	return err
}

// known gives libvirt's errors their sentinels.
func (r *conn) known(err error) error {
	var le libvirt.Error
	if err == nil || !errors.As(err, &le) {
		return err
	}
	if alive, aerr := r.c.IsAlive(); aerr != nil || !alive {
		r.End(le.Message)
		return r.Err()
	}
	return libvirtx.Known(errors.New(le.Message), int(le.Code), le.Message)
}

func (r *conn) use() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.over {
		r.users++
	}
	return !r.over
}

func (r *conn) unuse() {
	r.mu.Lock()
	r.users--
	last := r.over && r.users == 0
	r.mu.Unlock()
	if last {
		r.free()
	}
}

// release lets go of the connection as soon as the last call came back.
func (r *conn) release() {
	r.mu.Lock()
	last := !r.over && r.users == 0
	r.over = true
	r.mu.Unlock()
	if last {
		r.free()
	}
}

// free returns what the library holds: subscriptions and the close callback each keep the connection open. Errors
// are those of a connection that is gone anyway.
func (r *conn) free() {
	for _, id := range r.callbacks {
		r.c.DomainEventDeregister(id)
	}
	r.c.UnregisterCloseCallback()
	r.c.Close()
}

// Close ends the session at once; the connection itself is closed behind the caller's back, for that waits for libvirtd.
func (r *conn) Close() error {
	r.End("closed")
	return nil
}
