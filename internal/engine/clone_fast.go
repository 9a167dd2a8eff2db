package engine

import "github.com/virt-cow/virt-cow/internal/blockdev"

// fast serves what needs no waiting: reads whose chunks are known and whose master is a file, and writes
// that copy nothing. All else is for the blocking way.
func (c *clone) fast(v *Volume, r *blockdev.Request) bool {
	if !c.data.alignedTo(r.Off, r.Length) || r.FUA {
		return false
	}
	if r.Op == blockdev.OpRead {
		return c.fastRead(v, r)
	}
	return r.Ring != nil && c.data.file != nil && c.fastWrite(v, r)
}

func (c *clone) fastRead(v *Volume, r *blockdev.Request) bool {
	end := r.Off + r.Length
	ringed := r.Ring != nil && c.data.file != nil
	unsure := c.table.off() // before the lookups
	// A look first: nothing may have begun when it turns out that the blocking way is needed.
	for off := r.Off; off < end; {
		first, count := c.chunks(off, end-off)
		set, n, known := c.table.lookup(first, count)
		switch {
		case !known, !set && unsure:
			return false
		case set && !ringed:
			return false
		case !set && off < c.end && !c.masterFast(r):
			return false
		}
		off = (first + n) * c.chunk
	}
	f := newFlight(v, r)
	for off := r.Off; off < end; {
		first, count := c.chunks(off, end-off)
		set, n, _ := c.table.lookup(first, count)
		stop := min((first+n)*c.chunk, end)
		part := r.Buf[off-r.Off : stop-r.Off]
		if set && ringed { // without a ring, what was clear a moment ago may be read as it was
			f.submit(c.data.file, part, c.data.base+off)
		} else {
			c.fastMaster(f, part, off)
		}
		off = stop
	}
	f.landed(nil)
	return true
}

// masterFast says whether reads of the master can go without blocking.
func (c *clone) masterFast(r *blockdev.Request) bool {
	return c.master.file != nil && c.master.alignedTo(r.Off, r.Length)
}

// fastMaster reads from the page cache at once, from the disk through the ring.
func (c *clone) fastMaster(f *flight, p []byte, off int64) {
	n := min(max(c.end-off, 0), int64(len(p)))
	clear(p[n:])
	if n == 0 { // there may be no master at all
		return
	}
	file, at := c.master.file, c.master.base+off
	switch {
	case file.ReadCached(p[:n], at):
	case f.r.Ring != nil:
		f.submit(file, p[:n], at)
	default:
		f.pending.Add(1)
		f.r.Detached = true
		go func() {
			_, err := file.ReadAt(p[:n], at)
			f.landed(err)
		}()
	}
}

func (c *clone) fastWrite(v *Volume, r *blockdev.Request) bool {
	end := r.Off + r.Length
	first, count := c.chunks(r.Off, r.Length)
	last := first + count - 1
	unsure := c.table.off() // before the lookup
	set, n, known := c.table.lookup(first, count)
	all := set && n == count
	if !known || !all && !c.table.ready(first, count) || unsure && (!all || c.table.pending(first, count)) {
		return false
	}
	held := c.inflight.tryLock(first, last, all)
	if held == nil {
		return false
	}
	// Under the lock: a chunk that is clear must be written whole.
	if !all && (r.Off != first*c.chunk && !c.isSet(first) || end != (last+1)*c.chunk && !c.isSet(last)) {
		c.inflight.unlock(held)
		return false
	}
	f := newFlight(v, r)
	f.inflight, f.held = c.inflight, held
	if !all {
		f.table, f.first, f.count = c.table, first, count
	}
	f.submit(c.data.file, r.Buf, c.data.base+r.Off)
	f.landed(nil)
	return true
}
