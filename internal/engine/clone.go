package engine

import (
	"errors"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/store"
)

// clone maps each chunk to the store where its flag is set, else to the master; behind the master's end
// it reads as zeros. Its inflight table counts chunks.
type clone struct {
	size     int64
	chunk    int64
	data     area
	master   *area // nil: none, all zeros
	end      int64 // of the master
	table    *table
	inflight *inflight
	commit   *committer
	copied   *counter
}

func (c *clone) name() string { return "clone" }

// chunks is the run of chunks a range touches.
func (c *clone) chunks(off, length int64) (first, count int64) {
	first = off / c.chunk
	return first, (off+length-1)/c.chunk - first + 1
}

// readMaster reads what the master has at off, zeros behind its end.
func (c *clone) readMaster(p []byte, off int64) error {
	n := min(max(c.end-off, 0), int64(len(p)))
	clear(p[n:])
	if n == 0 {
		return nil
	}
	return c.master.read(p[:n], off)
}

// eachRun calls f with the runs of one state in a range of bytes.
func (c *clone) eachRun(off, length int64, f func(set bool, off, length int64) error) error {
	for end := off + length; off < end; {
		first, count := c.chunks(off, end-off)
		set, n, err := c.table.run(first, count)
		if err != nil {
			return err
		}
		stop := min((first+n)*c.chunk, end)
		if err := f(set, off, stop-off); err != nil {
			return err
		}
		off = stop
	}
	return nil
}

func (c *clone) read(p []byte, off int64) error {
	unsure := c.table.off() // before the lookups: while the cache is off their zeros may be stale, also once it is on
	return c.eachRun(off, int64(len(p)), func(set bool, at, n int64) error {
		part := p[at-off : at-off+n]
		switch {
		case set:
			return c.data.read(part, at)
		case unsure:
			return c.readUnsure(part, at)
		}
		return c.readMaster(part, at)
	})
}

// readUnsure reads chunks whose flags were clear in memory while the cache is off: the table on the
// device is asked, by a read that begins now, and the master at the same time.
func (c *clone) readUnsure(p []byte, off int64) error {
	asked := make(chan error, 1)
	first, count := c.chunks(off, int64(len(p)))
	go func() { asked <- c.refresh(first, count) }()
	masterErr := c.readMaster(p, off)
	if err := <-asked; err != nil {
		return err
	}
	sure := false
	err := c.eachRun(off, int64(len(p)), func(set bool, at, n int64) error {
		if !set {
			sure = true
			return nil
		}
		return c.data.read(p[at-off:at-off+n], at)
	})
	if err == nil && sure {
		err = masterErr
	}
	return err
}

func (c *clone) refresh(first, count int64) error {
	for leaf := first / store.LeafChunks; leaf <= (first+count-1)/store.LeafChunks; leaf++ {
		if err := c.table.refresh(leaf); err != nil {
			return err
		}
	}
	return nil
}

// settled takes the chunks of a range for writing, and says whether every flag is set: then they are
// shared, unless alone. Otherwise they are the caller's alone, and with the cache off as the device has
// them.
func (c *clone) settled(first, count int64, alone bool) (*span, bool, error) {
	unsure := c.table.off() // before the lookup
	set, n, err := c.table.run(first, count)
	if err != nil {
		return nil, false, err
	}
	all := set && n == count
	held := c.inflight.lock(first, first+count-1, all && !alone)
	if all {
		return held, true, nil // a one stays a one
	}
	if unsure {
		err = c.refresh(first, count)
	}
	if err == nil {
		err = c.table.prepare(first, count)
	}
	if err != nil {
		c.inflight.unlock(held)
		return nil, false, err
	}
	return held, false, nil
}

// isSet looks one chunk up that is known to be loaded.
func (c *clone) isSet(chunk int64) bool {
	set, _, _ := c.table.lookup(chunk, 1)
	return set
}

func (c *clone) write(p []byte, off int64, durable bool) error {
	n := int64(len(p))
	first, count := c.chunks(off, n)
	held, all, err := c.settled(first, count, !c.data.alignedTo(off, n))
	if err != nil {
		return err
	}
	if all {
		err = c.data.write(p, off)
	} else if err = c.writeFilled(p, off, first, first+count-1); err == nil {
		c.table.set(first, count)
	}
	return c.release(held, first, count, durable, err)
}

// release ends a write. With the cache off it is acknowledged only when its flags are on the device, and
// nobody else may take them for settled before.
func (c *clone) release(held *span, first, count int64, durable bool, err error) error {
	if err == nil && c.table.off() && c.table.pending(first, count) {
		err, durable = c.flush(), false
	}
	c.inflight.unlock(held)
	if err == nil && durable {
		err = c.flush()
	}
	return err
}

// writeFilled writes p, and with it in one write what of its first and last chunk comes from the master.
func (c *clone) writeFilled(p []byte, off, first, last int64) error {
	start, end := off, off+int64(len(p))
	if !c.isSet(first) {
		start = first * c.chunk
	}
	if !c.isSet(last) { // behind the volume's end: zeros
		end = (last + 1) * c.chunk
	}
	if start == off && end == off+int64(len(p)) {
		return c.data.write(p, off)
	}
	buf := blockdev.Alloc(int(end - start))
	defer blockdev.Free(buf)
	if err := c.readMaster(buf[:off-start], start); err != nil {
		return err
	}
	copy(buf[off-start:], p)
	tail := off + int64(len(p))
	if err := c.readMaster(buf[tail-start:], tail); err != nil {
		return err
	}
	c.copied.add(len(buf) - len(p))
	return c.data.write(buf, start)
}

func (c *clone) zero(off, length int64, unmap, durable bool) error {
	start, end := c.wholeChunks(off, length)
	if start == end {
		return c.zeroEdge(off, length, durable)
	}
	err := c.zeroEdge(off, start-off, false)
	if err == nil {
		err = c.zeroChunks(start, end-start, func() error { return c.data.zero(start, c.padded(end)-start, unmap) })
	}
	if err == nil {
		err = c.zeroEdge(end, off+length-end, false)
	}
	if err == nil && durable {
		return c.flush()
	}
	return err
}

// wholeChunks is the part of a range that is whole chunks; the volume's last chunk may be short.
func (c *clone) wholeChunks(off, length int64) (start, end int64) {
	start, end = inner(off, length, c.chunk)
	if off+length == c.size && off <= c.size/c.chunk*c.chunk {
		end = c.size
		start = min(start, end/c.chunk*c.chunk)
	}
	return start, end
}

// padded is the end of a run of whole chunks in the data area, which has no short last chunk.
func (c *clone) padded(end int64) int64 { return (end + c.chunk - 1) / c.chunk * c.chunk }

func (c *clone) zeroEdge(off, length int64, durable bool) error {
	if length == 0 {
		return nil
	}
	return withZeros(length, func(p []byte) error { return c.write(p, off, durable) })
}

// zeroChunks has whole chunks zeroed and then sets their flags: nothing is copied.
func (c *clone) zeroChunks(start, length int64, zero func() error) error {
	first, count := c.chunks(start, length)
	held, all, err := c.settled(first, count, true)
	if err != nil {
		return err
	}
	if err = zero(); err == nil && !all {
		c.table.set(first, count)
	}
	return c.release(held, first, count, false, err)
}

// trim gives whole chunks back, as zeros. What it can't give back cheaply it leaves alone.
func (c *clone) trim(off, length int64) error {
	start, end := c.wholeChunks(off, length)
	if start == end {
		return nil
	}
	err := c.zeroChunks(start, end-start, func() error { return c.data.WriteZeroes(start, c.padded(end)-start, true) })
	if errors.Is(err, blockdev.ErrNotSupported) {
		return nil
	}
	return err
}

func (c *clone) flush() error { return c.commit.commit(c.table) }

func (c *clone) extents(off, length int64) ([]blockdev.Extent, error) {
	var out []blockdev.Extent
	if length > 0 && c.table.off() {
		if err := c.refresh(c.chunks(off, length)); err != nil {
			return nil, err
		}
	}
	err := c.eachRun(off, length, func(set bool, at, n int64) error {
		if set {
			start, end := c.data.around(at, n)
			part, err := clip(at, n)(c.data.Extents(start, end-start))
			out = append(out, part...)
			return err
		}
		part, err := c.masterExtents(at, n)
		out = append(out, part...)
		return err
	})
	return out, err
}

// masterExtents is what the master has in a range, a hole behind its end.
func (c *clone) masterExtents(off, length int64) ([]blockdev.Extent, error) {
	var out []blockdev.Extent
	if n := min(c.end-off, length); n > 0 {
		start, end := c.master.around(off, n)
		part, err := clip(off, n)(c.master.Extents(start, end-start))
		if err != nil {
			return nil, err
		}
		out, off, length = part, off+n, length-n
	}
	if length > 0 {
		out = append(out, blockdev.Extent{Offset: off, Length: length, Zero: true, Hole: true})
	}
	return out, nil
}
