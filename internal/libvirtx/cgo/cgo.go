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
	uri       string
	main      *libvirt.Connect // for events
	callbacks []int            // of main
	idle      chan *libvirt.Connect
	calls     chan struct{} // has one for each call in the library, those given up too
}

// Connections that are kept for calls, and calls that may be in the library at once.
const (
	maxIdle  = 4
	maxCalls = 20
)

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
		return nil, plain(err)
	}
	r := &conn{Session: libvirtx.NewSession(), uri: uri, main: c,
		idle: make(chan *libvirt.Connect, maxIdle), calls: make(chan struct{}, maxCalls)}
	go func() {
		<-r.Gone()
		r.drain()
	}()
	if err := r.setUp(); err != nil {
		r.End("could not be set up")
		r.free()
		return nil, plain(err)
	}
	go func() {
		<-r.Gone()
		r.free()
	}()
	go r.Watch(k, func() int64 { return 0 }, r.ask)
	return r, nil
}

func (r *conn) setUp() error {
	err := r.main.RegisterCloseCallback(func(_ *libvirt.Connect, reason libvirt.ConnectCloseReason) { r.End(closeReason(reason)) })
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
	case libvirt.CONNECT_CLOSE_REASON_CLIENT:
		return "closed"
	}
	return "an I/O error"
}

// call runs one call under the session, on a connection of its own.
func call[T any](ctx context.Context, r *conn, what string, f func(*libvirt.Connect) (T, error)) (T, error) {
	return libvirtx.Do(ctx, r.Session, what, func() (none T, err error) {
		select {
		case r.calls <- struct{}{}:
			defer func() { <-r.calls }()
		default:
			return none, fmt.Errorf("%w: it still works on %d earlier calls", libvirtx.ErrNoAnswer, maxCalls)
		}
		c, err := r.take()
		if err != nil {
			return none, err
		}
		defer r.give(c)
		v, err := f(c)
		return v, r.known(c, err)
	})
}

// ask is a question libvirtd answers at once.
func (r *conn) ask() {
	c, err := r.take()
	if err != nil {
		return
	}
	defer r.give(c)
	_, err = c.GetLibVersion()
	_ = r.known(c, err) // that it came back is enough
}

// take gets a connection for a call. That none can be had while the main one is there is a reason to begin anew.
func (r *conn) take() (*libvirt.Connect, error) {
	select {
	case c := <-r.idle:
		return c, nil
	default:
	}
	c, err := libvirt.NewConnect(r.uri)
	if err != nil {
		r.End(plain(err).Error())
		return nil, r.Err()
	}
	return c, nil
}

// give keeps a connection for the next call.
func (r *conn) give(c *libvirt.Connect) {
	select {
	case r.idle <- c:
	default:
		c.Close()
	}
	select {
	case <-r.Gone(): // perhaps drained before
		r.drain()
	default:
	}
}

func (r *conn) drain() {
	for {
		select {
		case c := <-r.idle:
			c.Close()
		default:
			return
		}
	}
}

// known gives libvirt's errors their sentinels.
func (r *conn) known(c *libvirt.Connect, err error) error {
	var le libvirt.Error
	if err == nil || !errors.As(err, &le) {
		return err
	}
	if alive, aerr := c.IsAlive(); aerr != nil || !alive {
		r.End(le.Message)
		return r.Err()
	}
	return libvirtx.Known(plain(err), int(le.Code), le.Message)
}

// plain is libvirt's error in its own words alone.
func plain(err error) error {
	var le libvirt.Error
	if errors.As(err, &le) {
		return errors.New(le.Message)
	}
	return err
}

// free returns what the library holds: subscriptions and the close callback each keep the connection open. It waits
// for libvirtd. Errors are those of a connection that is gone anyway.
func (r *conn) free() {
	for _, id := range r.callbacks {
		r.main.DomainEventDeregister(id)
	}
	r.main.UnregisterCloseCallback()
	r.main.Close()
}

// Close ends the session at once; the connections are closed behind the caller's back, for that waits for libvirtd.
func (r *conn) Close() error {
	r.End("closed")
	return nil
}
