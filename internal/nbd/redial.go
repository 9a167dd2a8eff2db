package nbd

import (
	"context"
	"fmt"
	"net"
)

// redial is one attempt to connect again; all who need a connection meanwhile share its outcome.
type redial struct {
	done chan struct{}
	link *link
	err  error
}

// ready returns a connection, a new one if the last broke.
func (c *Client) ready() (*link, error) {
	c.mu.Lock()
	if c.life.Err() != nil {
		c.mu.Unlock()
		return nil, fmt.Errorf("%s: %w", c.addr.uri, net.ErrClosed)
	}
	l, d := c.link, c.dialing
	if l.alive() {
		c.mu.Unlock()
		return l, nil
	}
	if d != nil {
		c.mu.Unlock()
		<-d.done
		return d.link, d.err
	}
	if c.lost == nil && l.unflushed() {
		c.lost = fmt.Errorf("%s: %w", c.addr.uri, errLost) // Flush fails from now on
	}
	d = &redial{done: make(chan struct{})}
	c.dialing = d
	c.mu.Unlock()

	d.link, d.err = c.reconnect()
	c.mu.Lock()
	if d.err == nil {
		c.link = d.link
		if c.life.Err() != nil { // Close saw the old one
			d.link.fail(net.ErrClosed)
		}
	}
	c.dialing = nil
	c.mu.Unlock()
	close(d.done)
	return d.link, d.err
}

// reconnect connects and makes sure that the export is still the same, as far as its server and the hook can tell.
func (c *Client) reconnect() (*link, error) {
	ctx, cancel := context.WithTimeout(c.life, c.opts.Timeout)
	defer cancel()
	l, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	e, was := l.export, c.export
	if e.size != was.size || e.minBlock != was.minBlock || e.maxBlock < was.maxBlock || was.flags&^e.flags != 0 {
		err := fmt.Errorf("%s: after reconnecting the export is another: %d bytes and flags %#x, before %d and %#x",
			c.addr.uri, e.size, e.flags, was.size, was.flags)
		l.fail(err)
		return nil, err
	}
	if c.opts.Reconnected != nil {
		// The context bounds the hook's reads as well, all of them together, and Close ends them.
		stop := context.AfterFunc(ctx, func() { l.fail(context.Cause(ctx)) })
		err := c.opts.Reconnected(fresh{c, l})
		if !stop() && err == nil {
			err = fmt.Errorf("%s: after reconnecting: %w", c.addr.uri, context.Cause(ctx))
		}
		if err != nil {
			l.fail(err)
			return nil, err
		}
	}
	c.opts.Log.Info().Str("uri", c.addr.uri).Msg("nbd: connected again")
	return l, nil
}

// fresh reads over one connection, which nothing else uses yet.
type fresh struct {
	c *Client
	l *link
}

func (f fresh) ReadAt(p []byte, off int64) (int, error) {
	return f.c.read(func(q *call) error { return f.c.doOn(f.l, q) }, p, off)
}
