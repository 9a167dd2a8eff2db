package peer

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// door is a listener of connections whose other side is known: it makes the handshakes.
type door struct {
	net.Listener
	server  *Server
	refused *refusals
	in      chan *known
	hosts   chan struct{} // one for each connection of a host
	closed  chan struct{}
	close   func() error
	running sync.WaitGroup

	mu        sync.Mutex
	strangers []net.Conn // in the order they came
}

// known is a connection whose other side has shown who it is.
type known struct {
	*tls.Conn
	names    Names
	patience time.Duration
	free     func()
}

// Write gives up on a host that takes no answer.
func (k *known) Write(b []byte) (int, error) {
	if err := k.SetWriteDeadline(time.Now().Add(k.patience)); err != nil {
		return 0, err
	}
	return k.Conn.Write(b)
}

func (k *known) Close() error {
	k.free()
	return k.Conn.Close()
}

func newDoor(l net.Listener, s *Server, refused *refusals) *door {
	d := &door{
		Listener: l, server: s, refused: refused,
		in: make(chan *known), hosts: make(chan struct{}, maxHosts), closed: make(chan struct{}),
	}
	d.close = sync.OnceValue(func() error {
		close(d.closed)
		err := l.Close()
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, c := range d.strangers {
			c.Close()
		}
		return err
	})
	d.running.Go(d.open)
	return d
}

// Accept returns a *known.
func (d *door) Accept() (net.Conn, error) {
	select {
	case c := <-d.in:
		return c, nil
	case <-d.closed:
		return nil, net.ErrClosed
	}
}

func (d *door) Close() error { return d.close() }

// wait returns when nothing runs any more, after Close.
func (d *door) wait() { d.running.Wait() }

// open lets strangers in, for a handshake each.
func (d *door) open() {
	const longest = time.Second
	pause := 5 * time.Millisecond
	for {
		c, err := d.Listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			d.Close()
			return
		case err != nil: // no descriptors left, or the connection is gone already
			d.refused.log.Warn().Err(err).Msg("a connection of another host could not be taken")
			select {
			case <-time.After(pause):
			case <-d.closed:
			}
			pause = min(2*pause, longest)
			continue
		}
		pause = 5 * time.Millisecond
		if d.enter(c) {
			d.running.Go(func() { d.meet(c) })
		}
	}
}

// enter gives a stranger a place, at the cost of the one who has had his for longest.
func (d *door) enter(c net.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-d.closed:
		c.Close()
		return false
	default:
	}
	if len(d.strangers) == maxStrangers {
		d.strangers[0].Close()
		d.strangers = slices.Delete(d.strangers, 0, 1)
	}
	d.strangers = append(d.strangers, c)
	return true
}

func (d *door) leave(c net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.Index(d.strangers, c); i >= 0 {
		d.strangers = slices.Delete(d.strangers, i, i+1)
	}
}

// meet makes the handshake with a stranger.
func (d *door) meet(c net.Conn) {
	defer d.leave(c)
	k := &known{patience: d.server.patience, free: func() {}}
	err := d.handshake(c, k)
	if err == nil {
		select {
		case d.hosts <- struct{}{}:
			k.free = sync.OnceFunc(func() { <-d.hosts })
		default:
			err = errFull
		}
	}
	if err != nil {
		d.refused.tell(c.RemoteAddr(), d.server.refusal(err))
		sendOff(c, err)
		return
	}
	select {
	case d.in <- k:
	case <-d.closed:
		k.Close()
	}
}

func (d *door) handshake(c net.Conn, k *known) error {
	k.Conn = tls.Server(c, d.server.Identity.serverConfig(ourProtocol, func(n Names) error {
		k.names = n
		return d.server.believed(n)
	}))
	if err := c.SetDeadline(time.Now().Add(d.server.patience)); err != nil {
		return err
	}
	if err := k.Handshake(); err != nil {
		return err
	}
	return c.SetDeadline(time.Time{})
}

// sendOff closes a connection so that the other side gets to read why: what it has sent meanwhile is read first, or the
// kernel would answer that with a reset, which may overtake the alert.
func sendOff(c net.Conn, why error) {
	defer c.Close()
	var header tls.RecordHeaderError
	if errors.As(why, &header) && header.RecordHeader[0] >= 'A' && header.RecordHeader[0] <= 'Z' { // GET, POST
		_ = c.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := io.WriteString(c, "HTTP/1.0 400 Bad Request\r\n\r\nvirt-cow speaks TLS here, and only to hosts it knows.\n"); err != nil {
			return
		}
	}
	if half, ok := c.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		return
	}
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
	_, _ = io.CopyN(io.Discard, c, 2*maxBody)
}
