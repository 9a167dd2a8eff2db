package nbd

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// maxSpans bounds the gaps a read's data may leave while it arrives.
const maxSpans = 1024

// maxChunk bounds the chunks which carry no data: errors and block status.
const maxChunk = 1 << 20 // bytes

// reply reads one simple reply or one chunk of a structured one. An error means the stream is lost.
func (l *link) reply(r *bufio.Reader) error {
	be := binary.BigEndian
	var h [chunkSize]byte
	if _, err := io.ReadFull(r, h[:simpleSize]); err != nil {
		return err
	}
	cookie := be.Uint64(h[8:])
	l.mu.Lock()
	q := l.calls[cookie]
	l.mu.Unlock()
	if q == nil {
		return fmt.Errorf("a reply to request %d, which was not made", cookie)
	}
	switch m := be.Uint32(h[:]); m {
	case magicSimple:
		return l.simple(r, q, cookie, be.Uint32(h[4:]))
	case magicChunk:
		if !l.export.structured {
			return fmt.Errorf("a structured reply, which was not negotiated")
		}
	default:
		return fmt.Errorf("reply magic %#x is none", m)
	}
	if _, err := io.ReadFull(r, h[simpleSize:]); err != nil {
		return unexpected(err)
	}
	if err := q.chunk(r, l, be.Uint16(h[6:]), be.Uint32(h[16:])); err != nil {
		return unexpected(err)
	}
	if be.Uint16(h[4:])&chunkDone != 0 {
		if q.err == nil {
			q.err = q.complete()
		}
		l.finish(cookie, q)
	}
	return nil
}

func (l *link) simple(r *bufio.Reader, q *call, cookie uint64, code uint32) error {
	switch {
	case l.export.structured && q.cmd == cmdRead, q.cmd == cmdBlockStatus && code == 0:
		return fmt.Errorf("a simple reply where a structured one is due")
	case code != 0:
		q.err = fromWire(code)
	case q.cmd == cmdRead:
		if _, err := io.ReadFull(r, q.buf); err != nil {
			return unexpected(err)
		}
	}
	l.finish(cookie, q)
	return nil
}

// unexpected is err, with an end of the stream called what it is.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// complete says whether a structured reply that ended without an error answered everything.
func (q *call) complete() error {
	switch q.cmd {
	case cmdRead:
		var n int64
		for _, s := range q.got {
			n += s.to - s.from
		}
		if n != int64(len(q.buf)) {
			return errShort
		}
	case cmdBlockStatus:
		if len(q.extents) == 0 {
			return errShort
		}
	}
	return nil
}

// chunk reads the payload of one chunk.
func (q *call) chunk(r *bufio.Reader, l *link, kind uint16, length uint32) error {
	be := binary.BigEndian
	switch {
	case kind == chunkData && q.cmd == cmdRead && length > 8:
		off, err := offset(r)
		if err != nil {
			return err
		}
		part, err := q.claim(off, int64(length)-8)
		if err != nil {
			return err
		}
		_, err = io.ReadFull(r, part)
		return err
	case kind == chunkHole && q.cmd == cmdRead && length == 12:
		var b [12]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return err
		}
		part, err := q.claim(be.Uint64(b[:]), int64(be.Uint32(b[8:])))
		if err != nil {
			return err
		}
		clear(part)
		return nil
	case kind == chunkNone && length == 0:
		return nil
	case length > maxChunk:
		return fmt.Errorf("a reply chunk of type %d with %d bytes", kind, length)
	case kind&chunkErr != 0 && length >= 6:
		b := make([]byte, length)
		if _, err := io.ReadFull(r, b); err != nil {
			return err
		}
		if n := int(be.Uint16(b[4:])); n > len(b)-6 {
			return fmt.Errorf("an error message of %d bytes in %d", n, length)
		} else if n > 0 {
			q.err = fmt.Errorf("%w (%q)", fromWire(be.Uint32(b)), b[6:6+n])
		} else {
			q.err = fromWire(be.Uint32(b))
		}
		return nil
	case kind == chunkBlockStatus && q.cmd == cmdBlockStatus && length >= 12 && length%8 == 4:
		b := make([]byte, length)
		if _, err := io.ReadFull(r, b); err != nil {
			return err
		}
		if be.Uint32(b) != l.export.contextID || q.extents != nil {
			return fmt.Errorf("block status of a context that was not asked for")
		}
		return q.describe(b[4:])
	}
	return fmt.Errorf("a reply chunk of type %d with %d bytes in reply to %s", kind, length, q.name())
}

func offset(r *bufio.Reader) (uint64, error) {
	var b [8]byte
	_, err := io.ReadFull(r, b[:])
	return binary.BigEndian.Uint64(b[:]), err
}

// claim returns the part of the buffer a chunk is for; each byte may come once.
func (q *call) claim(off uint64, n int64) ([]byte, error) {
	from := int64(off) - q.off
	if off > 1<<62 || n <= 0 || from < 0 || from+n > int64(len(q.buf)) {
		return nil, fmt.Errorf("data for %d bytes at %d, asked were %d at %d", n, off, len(q.buf), q.off)
	}
	s := span{from, from + n}
	last := len(q.got) - 1
	if last >= maxSpans {
		return nil, fmt.Errorf("data for a read of %d bytes in more than %d separate pieces", len(q.buf), maxSpans)
	}
	for _, g := range q.got {
		if s.from < g.to && g.from < s.to {
			return nil, fmt.Errorf("data for %d bytes at %d came twice", n, off)
		}
	}
	if last >= 0 && q.got[last].to == s.from { // in order, as servers do
		q.got[last].to = s.to
	} else {
		q.got = append(q.got, s)
	}
	return q.buf[s.from:s.to], nil
}

// describe takes descriptors, 8 bytes each: length 4, state 4.
func (q *call) describe(b []byte) error {
	be := binary.BigEndian
	at, end := q.off, q.off+int64(q.length)
	q.extents = make([]blockdev.Extent, 0, len(b)/8)
	for ; len(b) > 0; b = b[8:] {
		n, state := int64(be.Uint32(b)), be.Uint32(b[4:])
		if n == 0 {
			return fmt.Errorf("a block status of no bytes")
		}
		if at >= end {
			break
		}
		n = min(n, end-at) // the last may go beyond what was asked
		q.extents = append(q.extents, blockdev.Extent{
			Offset: at, Length: n, Zero: state&stateZero != 0, Hole: state&stateHole != 0,
		})
		at += n
	}
	return nil
}

// statusStep bounds one block status request; the protocol's lengths end at 4 GiB.
const statusStep = 1 << 30 // bytes

// Extents asks the server what is allocated. Where it can't tell all is data.
func (c *Client) Extents(off, length int64) ([]blockdev.Extent, error) {
	if err := c.check(off, length, false); err != nil || length == 0 {
		return nil, err
	}
	if !c.export.status && c.life.Err() == nil {
		return []blockdev.Extent{{Offset: off, Length: length}}, nil
	}
	var out []blockdev.Extent
	for at, end := off, off+length; at < end; {
		start, size := c.aligned(at, min(end-at, statusStep))
		q := &call{cmd: cmdBlockStatus, off: start, length: uint32(size)}
		if err := c.do(q); err != nil {
			return nil, err
		}
		was := at
		for _, e := range q.extents {
			from, to := max(e.Offset, at), min(e.Offset+e.Length, end)
			if from >= to {
				continue
			}
			e.Offset, e.Length = from, to-from
			if n := len(out) - 1; n >= 0 && out[n].Zero == e.Zero && out[n].Hole == e.Hole {
				out[n].Length += e.Length
			} else {
				out = append(out, e)
			}
			at = to
		}
		if at == was { // start was widened, and the answer ends before at: asking again would go on for ever
			return nil, fmt.Errorf("%s: block status of %d bytes at %d: %w", c.addr.uri, size, start, errShort)
		}
	}
	return out, nil
}
