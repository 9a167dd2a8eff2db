package nbd

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// request is one request from its header's arrival until its reply left. It is free, the parser's, the
// backend's, or in a queue of replies. Requests are made when first needed and used again for ever.
type request struct {
	blockdev.Request
	c      *conn
	cookie uint64
	status bool // block status: base.Length bytes asked for, body the answer
	reqOne bool
	framed bool // the reply has the structured form
	next   *request

	kind    uint8 // whose time counts
	arrived time.Duration

	head  [36]byte // the reply's header
	nhead int
	body  []byte // what follows the header
}

// room says whether a request with that many bytes of data may be taken now. mu is held.
func (c *conn) room(bytes int) bool {
	if c.nmine == 0 && c.nfree == 0 && c.nalloc >= c.limits.Requests {
		return false
	}
	used := c.bytes.Load()
	return used == 0 || used+int64(bytes) <= c.limits.Bytes
}

// take returns a free request with a buffer of that many bytes, or nil while too much is in flight.
func (c *conn) take(bytes int) *request {
	if used := c.bytes.Load(); used != 0 && used+int64(bytes) > c.limits.Bytes {
		return nil
	}
	if c.mine == nil {
		c.mu.Lock()
		c.mine, c.nmine = c.free, c.nfree
		c.free, c.nfree = nil, 0
		if c.mine == nil && c.nalloc < c.limits.Requests {
			c.nalloc++
			q := &request{c: c}
			q.Done = func(_ *blockdev.Request, err error) { q.done(err) }
			c.mine, c.nmine = q, 1
		}
		c.mu.Unlock()
		if c.mine == nil {
			return nil
		}
	}
	q := c.mine
	c.mine = q.next
	c.nmine--
	done := q.Done
	q.Request = blockdev.Request{Done: done, Ring: c.engineRing()}
	q.next, q.status, q.reqOne, q.framed, q.body, q.kind = nil, false, false, false, nil, kindNone
	if bytes > 0 {
		q.Buf = blockdev.Alloc(bytes)
		c.bytes.Add(int64(bytes))
	}
	return q
}

// engineRing is the ring as the engine sees it: a nil interface where there is none.
func (c *conn) engineRing() blockdev.Ring {
	if c.ring == nil {
		return nil
	}
	return c.ring
}

// release makes a request free. mu is held.
func (c *conn) release(q *request) {
	if q.Buf != nil {
		c.bytes.Add(-int64(len(q.Buf)))
		blockdev.Free(q.Buf)
		q.Buf = nil
	}
	q.body = nil
	q.next = c.free
	c.free = q
	c.nfree++
	if c.waiting {
		c.waiting = false
		c.wake()
	}
}

// done is the backend's answer. On the connection's own goroutine the reply waits for the end of the
// turn; any other sends it at once, as far as the socket takes it.
func (q *request) done(err error) {
	c := q.c
	q.encode(toWire(err))
	if !q.Detached {
		c.reply(q)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken && !c.sending {
		c.release(q)
		return
	}
	c.queue.push(q)
	c.send(false)
}

// reply queues an encoded reply on the connection's goroutine.
func (c *conn) reply(q *request) {
	c.local.push(q)
	c.localBytes += len(q.body)
}

// encode writes the reply's header for an error of the wire, 0 for success, and sets its body.
func (q *request) encode(code uint32) {
	be := binary.BigEndian
	h := &q.head
	if !q.framed {
		be.PutUint32(h[0:], magicSimple)
		be.PutUint32(h[4:], code)
		be.PutUint64(h[8:], q.cookie)
		q.nhead = simpleSize
		if code == 0 && q.Op == blockdev.OpRead {
			q.body = q.Buf
		}
		return
	}
	kind, length := uint16(chunkNone), 0
	switch {
	case code != 0:
		kind, length, q.body = chunkError, 6, nil
		be.PutUint32(h[chunkSize:], code)
		be.PutUint16(h[chunkSize+4:], 0)
		q.nhead = chunkSize + 6
	case q.status:
		kind, length = chunkBlockStatus, len(q.body)
		q.nhead = chunkSize
	case len(q.Buf) > 0:
		kind, length, q.body = chunkData, 8+len(q.Buf), q.Buf
		be.PutUint64(h[chunkSize:], uint64(q.Off))
		q.nhead = chunkSize + 8
	default:
		q.nhead = chunkSize
	}
	be.PutUint32(h[0:], magicChunk)
	be.PutUint16(h[4:], chunkDone)
	be.PutUint16(h[6:], kind)
	be.PutUint64(h[8:], q.cookie)
	be.PutUint32(h[16:], uint32(length))
}

// maxDescriptors bounds a block status reply, 8 bytes each; the client asks again for the rest.
const maxDescriptors = 1 << 15

// maxStatus bounds what the backend describes for one request, in bytes: as many of the smallest chunks, 4 KiB,
// as a reply has descriptors. A request may be for 4 GiB, a million extents to throw most of away, and many
// requests are in flight. The protocol allows to answer less than was asked.
const maxStatus = maxDescriptors * 4096

// describe answers a block status request, on a goroutine of its own: the backend may read tables.
func (q *request) describe() {
	q.Detached = true
	length := min(q.Length, maxStatus)
	ext, err := q.c.srv.Backend.Extents(q.Off, length)
	if err != nil {
		q.done(err)
		return
	}
	be := binary.BigEndian
	body := be.AppendUint32(nil, contextID)
	at, end := q.Off, q.Off+length
	last := -1 // where the last descriptor is in body
	for _, e := range ext {
		if e.Offset > at || e.Length <= 0 || at >= end {
			break // a gap: what is known ends here
		}
		n := min(e.Offset+e.Length, end) - at
		if n <= 0 {
			continue
		}
		var state uint32
		if e.Hole {
			state |= stateHole
		}
		if e.Zero {
			state |= stateZero
		}
		if last >= 0 && be.Uint32(body[last+4:]) == state {
			be.PutUint32(body[last:], be.Uint32(body[last:])+uint32(n))
		} else {
			if last >= 0 && (q.reqOne || len(body) >= 8*maxDescriptors) {
				break
			}
			last = len(body)
			body = be.AppendUint32(body, uint32(n))
			body = be.AppendUint32(body, state)
		}
		at += n
	}
	if last < 0 {
		q.done(unix.EIO)
		return
	}
	q.body = body
	q.done(nil)
}
