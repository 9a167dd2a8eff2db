package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// Options are what a client may be told. The zero value is good.
type Options struct {
	ReadOnly bool          // refuse writes; a read-only export is so anyway
	Timeout  time.Duration // of one request and of a reconnect, default 60 s; the connection is given up then
	Log      zerolog.Logger

	TLS *tls.Config // with it, and only with it, an address is nbds://

	// Reconnected, if set, is called with each connection after the first before anything else uses it: behind
	// it may be another disk of the same size. r reads over that connection only. An error, which should name
	// the export, gives the connection up and is what the requests get that wait for it; the next one connects
	// again.
	Reconnected func(r io.ReaderAt) error
}

// errTimeout is a server that does not answer.
var errTimeout = errors.New("no answer in time, the server hangs or is unreachable")

// errLost is sticky: writes acknowledged before a connection broke, and not flushed since, may be gone.
var errLost = errors.New("the connection broke with writes not flushed, they may be lost; open the device anew")

// Client is an export of an NBD server as a block device. One connection carries many requests at once.
// A request whose connection breaks fails; the next one connects again.
type Client struct {
	addr    address
	opts    Options
	export  export // as first negotiated
	info    blockdev.Info
	unit    int64 // bytes: requests are multiples of this; more than info.BlockSize needs a bounce
	largest int64 // bytes of data in one request

	bounce sync.RWMutex // held for writing around a read-modify-write, for reading around other writes

	life   context.Context // until Close
	cancel context.CancelFunc

	mu      sync.Mutex
	link    *link   // perhaps broken
	dialing *redial // somebody connects again
	lost    error   // see errLost
}

var _ blockdev.Device = (*Client)(nil)

// Dial opens an export: nbd+unix:///EXPORT?socket=PATH or nbd://HOST[:PORT]/EXPORT, or, with TLS, nbds://HOST[:PORT]/EXPORT.
// ctx bounds the connecting only.
func Dial(ctx context.Context, uri string, opts Options) (*Client, error) {
	addr, err := parseURI(uri)
	if err != nil {
		return nil, err
	}
	if addr.tls != (opts.TLS != nil) {
		return nil, fmt.Errorf("NBD address %q: TLS is not supported here, use a tunnel", uri)
	}
	opts.Timeout = orDefault(opts.Timeout, 60*time.Second)
	c := &Client{addr: addr, opts: opts}
	c.life, c.cancel = context.WithCancel(context.Background())
	ctx, cancel := context.WithTimeout(ctx, opts.Timeout)
	defer cancel()
	l, err := c.connect(ctx)
	if err != nil {
		c.cancel()
		return nil, err
	}
	if err := c.adopt(l.export); err != nil {
		c.cancel()
		l.fail(err)
		return nil, err
	}
	c.link = l
	return c, nil
}

// adopt takes the export's sizes for the device's.
func (c *Client) adopt(e export) error {
	if e.size > 1<<63-1 || e.size%blockdev.SectorSize != 0 {
		return fmt.Errorf("%s: size %d is not a multiple of 512 bytes, which a disk must be; round it at the server",
			c.addr.uri, e.size)
	}
	unit := int64(max(e.minBlock, blockdev.SectorSize))
	if bits.OnesCount64(uint64(unit)) != 1 || unit > 64<<10 || int64(e.size)%unit != 0 {
		return fmt.Errorf("%s: minimum block size %d of a size of %d: want a power of two up to 65536 that divides it",
			c.addr.uri, e.minBlock, e.size)
	}
	c.largest = int64(min(e.maxBlock, maxPayload)) &^ (unit - 1)
	if c.largest < unit {
		return fmt.Errorf("%s: maximum block size %d is less than the minimum %d", c.addr.uri, e.maxBlock, unit)
	}
	c.export, c.unit = e, unit
	c.info = blockdev.Info{
		Name:      c.addr.uri,
		Size:      int64(e.size),
		BlockSize: int(min(unit, 4096)),
		ReadOnly:  c.opts.ReadOnly || e.flags&txReadOnly != 0,
	}
	return nil
}

// Info returns what the export is; its name is the URI.
func (c *Client) Info() blockdev.Info { return c.info }

func (c *Client) connect(ctx context.Context) (*link, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, c.addr.network, c.addr.address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.addr.uri, err)
	}
	// The context bounds the negotiation as well.
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	conn, e, err := negotiate(nc, c.addr.export, c.opts.TLS)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		nc.Close()
		if ctx.Err() != nil {
			err = fmt.Errorf("handshake: %w", context.Cause(ctx))
		}
		return nil, fmt.Errorf("%s: %w", c.addr.uri, err)
	}
	return newLink(conn, e), nil
}

// do carries out one request.
func (c *Client) do(q *call) error {
	l, err := c.ready()
	if err != nil {
		return err
	}
	return c.doOn(l, q)
}

func (c *Client) doOn(l *link, q *call) error {
	if err := l.do(q, c.opts.Timeout); err != nil {
		return fmt.Errorf("%s: %s of %d bytes at %d: %w", c.addr.uri, q.name(), q.length, q.off, err)
	}
	return nil
}

func (c *Client) check(off, length int64, write bool) error {
	if write && c.info.ReadOnly {
		return fmt.Errorf("%s: %w", c.addr.uri, blockdev.ErrReadOnly)
	}
	return blockdev.CheckRange(c.info, off, length)
}

// ReadAt reads all of p, or fails.
func (c *Client) ReadAt(p []byte, off int64) (int, error) { return c.read(c.do, p, off) }

// read reads with what carries out one request.
func (c *Client) read(do func(*call) error, p []byte, off int64) (int, error) {
	if err := c.check(off, int64(len(p)), false); err != nil {
		return 0, err
	}
	if (off|int64(len(p)))&(c.unit-1) != 0 {
		return c.readBounced(do, p, off)
	}
	for n := 0; n < len(p); {
		k := min(int64(len(p)-n), c.largest)
		if err := do(&call{cmd: cmdRead, off: off + int64(n), length: uint32(k), buf: p[n : n+int(k)]}); err != nil {
			return 0, err
		}
		n += int(k)
	}
	return len(p), nil
}

// WriteAt writes all of p, or fails.
func (c *Client) WriteAt(p []byte, off int64) (int, error) {
	if err := c.check(off, int64(len(p)), true); err != nil {
		return 0, err
	}
	if (off|int64(len(p)))&(c.unit-1) != 0 {
		return c.writeBounced(p, off)
	}
	c.bounce.RLock()
	defer c.bounce.RUnlock()
	return c.writeAligned(p, off)
}

func (c *Client) writeAligned(p []byte, off int64) (int, error) {
	for n := 0; n < len(p); {
		k := min(int64(len(p)-n), c.largest)
		if err := c.do(&call{cmd: cmdWrite, off: off + int64(n), length: uint32(k), buf: p[n : n+int(k)]}); err != nil {
			return 0, err
		}
		n += int(k)
	}
	return len(p), nil
}

// aligned returns [off, off+length) widened to the server's unit.
func (c *Client) aligned(off, length int64) (start, size int64) {
	start = off &^ (c.unit - 1)
	return start, (off+length+c.unit-1)&^(c.unit-1) - start
}

func (c *Client) readBounced(do func(*call) error, p []byte, off int64) (int, error) {
	start, size := c.aligned(off, int64(len(p)))
	buf := blockdev.Alloc(int(size))
	defer blockdev.Free(buf)
	if _, err := c.read(do, buf, start); err != nil {
		return 0, err
	}
	return copy(p, buf[off-start:]), nil
}

// writeBounced reads, modifies and writes, with no other write of this client in between.
func (c *Client) writeBounced(p []byte, off int64) (int, error) {
	start, size := c.aligned(off, int64(len(p)))
	buf := blockdev.Alloc(int(size))
	defer blockdev.Free(buf)
	c.bounce.Lock()
	defer c.bounce.Unlock()
	if _, err := c.ReadAt(buf, start); err != nil {
		return 0, err
	}
	copy(buf[off-start:], p)
	if _, err := c.writeAligned(buf, start); err != nil {
		return 0, err
	}
	return len(p), nil
}

// zeroStep bounds one write-zeroes, so that a server which must write them answers in time.
const zeroStep = 64 << 20

// WriteZeroes makes the range read as zeros, if the server has a command for it.
func (c *Client) WriteZeroes(off, length int64, unmap bool) error {
	if err := c.check(off, length, true); err != nil {
		return err
	}
	if c.export.flags&txWriteZeroes == 0 || (off|length)&(c.unit-1) != 0 {
		return fmt.Errorf("%s: write zeroes: %w", c.addr.uri, blockdev.ErrNotSupported)
	}
	c.bounce.RLock()
	defer c.bounce.RUnlock()
	var flags uint16
	if !unmap {
		flags = cmdFlagNoHole
	}
	for end := off + length; off < end; off += zeroStep {
		if err := c.do(&call{cmd: cmdWriteZeroes, flags: flags, off: off, length: uint32(min(end-off, zeroStep))}); err != nil {
			return err
		}
	}
	return nil
}

// Flush makes every write that returned before survive a power cut of the server. When a connection
// broke with writes not flushed it fails, and goes on failing: nobody can tell whether they survived.
func (c *Client) Flush() error {
	l, err := c.ready() // notices a broken connection
	if err != nil || c.info.ReadOnly {
		return err
	}
	c.mu.Lock()
	lost := c.lost
	c.mu.Unlock()
	if lost != nil {
		return lost
	}
	if c.export.flags&txFlush == 0 {
		return nil // the protocol: such a server has no cache
	}
	if err := l.do(&call{cmd: cmdFlush}, c.opts.Timeout); err != nil {
		return fmt.Errorf("%s: flush: %w", c.addr.uri, err)
	}
	return nil
}

// Close ends the connection. Requests in flight fail.
func (c *Client) Close() error {
	c.mu.Lock()
	l, again := c.link, c.life.Err() != nil
	c.cancel()
	c.mu.Unlock()
	if again {
		return fmt.Errorf("%s: %w", c.addr.uri, net.ErrClosed)
	}
	l.goodbye()
	return nil
}

var errShort = fmt.Errorf("the server answered too little: %w", io.ErrUnexpectedEOF)
