package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// flushBytes is how much reply data may gather before it is sent in the middle of a turn, so that the
// client works on it meanwhile.
const flushBytes = 512 << 10

// maxDrain is how many bytes of a refused write are read and thrown away; beyond, the connection goes.
const maxDrain = 2 * maxPayload

// parser turns the bytes of a connection into requests.
type parser struct {
	buf        []byte // receive buffer
	pos, end   int    // what of it is not parsed yet
	cur        *request
	filled     int   // bytes of cur.Buf that have come
	skip       int64 // bytes of a refused write still to come
	stopped    bool  // no more requests are taken
	starved    bool  // one is there, but too much is in flight
	want       int   // its bytes
	iovScratch [2][]byte
}

// received accounts for n bytes that came into target()'s slices; 0 or less is the end.
func (c *conn) received(n int, errno unix.Errno) {
	switch {
	case errno == unix.EINTR || errno == unix.EAGAIN || errno == unix.ECANCELED:
		return
	case errno != 0:
		c.fail(fmt.Errorf("receiving requests: %w", errno))
		return
	case n == 0:
		c.stopped = true
		c.mu.Lock()
		if c.draining.Load() {
			c.because(ErrClosed)
		} else if c.cur != nil || c.skip > 0 || c.pos != c.end {
			c.breakOff(fmt.Errorf("in the middle of a request: %w", io.ErrUnexpectedEOF))
		} else {
			c.because(io.EOF)
		}
		c.mu.Unlock()
		return
	}
	c.arrived = now()
	if c.cur != nil {
		k := min(n, len(c.cur.Buf)-c.filled)
		c.filled += k
		n -= k
	}
	c.end += n
}

// target is where the next bytes go: the rest of a write's payload, if any, then the receive buffer.
func (c *conn) target() (payload, buf []byte) {
	if c.cur != nil {
		payload = c.cur.Buf[c.filled:]
	}
	return payload, c.buf[c.end:]
}

// parse submits all complete requests it has.
func (c *conn) parse() {
	c.starved = false
	for !c.stopped {
		if c.draining.Load() {
			c.stopped = true
			break
		}
		if c.skip > 0 {
			k := int(min(c.skip, int64(c.end-c.pos)))
			c.pos += k
			c.skip -= int64(k)
			if c.skip > 0 {
				break
			}
		}
		if q := c.cur; q != nil {
			if c.pos < c.end {
				k := copy(q.Buf[c.filled:], c.buf[c.pos:c.end])
				c.pos += k
				c.filled += k
			}
			if c.filled < len(q.Buf) {
				break
			}
			c.cur = nil
			c.srv.Backend.Submit(&q.Request)
			continue
		}
		if c.end-c.pos < requestSize || !c.request(c.buf[c.pos:c.pos+requestSize]) {
			break
		}
		if c.localBytes >= flushBytes {
			c.flush()
		}
	}
	if c.pos > 0 && !c.starved { // then what is left is less than a header
		c.end = copy(c.buf, c.buf[c.pos:c.end])
		c.pos = 0
	}
}

// request takes one request by its header. It returns false when parsing can't go on: starved, or
// stopped.
func (c *conn) request(h []byte) bool {
	be := binary.BigEndian
	if m := be.Uint32(h); m != magicRequest {
		c.fail(fmt.Errorf("request magic %#x, want %#x", m, uint32(magicRequest)))
		return false
	}
	flags, cmd := be.Uint16(h[4:]), be.Uint16(h[6:])
	cookie, off, length := be.Uint64(h[8:]), be.Uint64(h[16:]), be.Uint32(h[24:])
	if cmd == cmdDisc {
		c.stopped = true
		c.mu.Lock()
		c.because(io.EOF)
		c.mu.Unlock()
		return false
	}
	if cmd == cmdWrite && length > maxDrain {
		c.fail(fmt.Errorf("write of %d bytes, the limit is %d", length, maxPayload))
		return false
	}
	op, code := c.check(cmd, flags, off, length)
	bytes := 0
	if code == 0 && (cmd == cmdRead || cmd == cmdWrite) {
		bytes = int(length)
	}
	q := c.take(bytes)
	if q == nil {
		c.starved, c.want = true, bytes
		return false
	}
	c.pos += requestSize
	q.cookie, q.Op, q.Off, q.Length = cookie, op, int64(off), int64(length)
	q.arrived = c.arrived
	q.framed = c.structured && (cmd == cmdRead || cmd == cmdBlockStatus)
	if code != 0 {
		if cmd == cmdWrite {
			c.skip = int64(length)
		}
		q.encode(code)
		c.reply(q)
		return true
	}
	switch {
	case cmd == cmdBlockStatus:
		q.status, q.reqOne = true, flags&cmdFlagReqOne != 0
		go q.describe()
		return true
	case length == 0 && cmd != cmdFlush:
		q.encode(0)
		c.reply(q)
		return true
	}
	switch cmd {
	case cmdRead:
		q.kind = kindRead
	case cmdFlush:
		q.kind = kindFlush
	default:
		q.kind = kindWrite
	}
	q.NoHole = flags&cmdFlagNoHole != 0
	q.FUA = flags&cmdFlagFUA != 0 && cmd != cmdRead && cmd != cmdFlush
	if cmd == cmdWrite {
		c.cur, c.filled = q, 0
		return true // parse goes on with its payload
	}
	c.srv.Backend.Submit(&q.Request)
	return true
}

// check returns the backend's name for a command, and the error to refuse it with or 0.
func (c *conn) check(cmd, flags uint16, off uint64, length uint32) (op blockdev.Op, code uint32) {
	allowed := uint16(cmdFlagFUA) // the protocol: to be accepted with every command
	writes := false
	switch cmd {
	case cmdRead:
		op = blockdev.OpRead
		if c.structured {
			allowed |= cmdFlagDF
		}
	case cmdWrite:
		op, writes = blockdev.OpWrite, true
	case cmdFlush:
		op = blockdev.OpFlush
	case cmdTrim:
		op, writes = blockdev.OpTrim, true
	case cmdWriteZeroes:
		op, writes = blockdev.OpWriteZeroes, true
		allowed |= cmdFlagNoHole
	case cmdBlockStatus:
		allowed |= cmdFlagReqOne
		if !c.status || length == 0 {
			return op, wireEINVAL
		}
	default:
		return op, wireEINVAL
	}
	size := uint64(c.info.Size)
	switch {
	case flags&^allowed != 0:
		return op, wireEINVAL
	case writes && c.info.ReadOnly:
		return op, wireEPERM
	case cmd == cmdFlush && (off != 0 || length != 0):
		return op, wireEINVAL
	case (off|uint64(length))%blockdev.SectorSize != 0:
		return op, wireEINVAL
	case off > size || uint64(length) > size-off:
		if cmd == cmdWrite || cmd == cmdWriteZeroes {
			return op, wireENOSPC
		}
		return op, wireEINVAL
	case cmd == cmdRead && length > maxPayload && flags&cmdFlagDF != 0:
		return op, wireEOVERFLOW
	case (cmd == cmdRead || cmd == cmdWrite) && length > maxPayload:
		return op, wireEINVAL
	}
	return op, 0
}

// errAborted is a client that left the handshake of its own will.
var errAborted = errors.New("client aborted the handshake")
