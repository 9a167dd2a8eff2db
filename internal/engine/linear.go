package engine

import (
	"errors"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// linear maps the volume straight onto a device: a raw disk, or the data area of a clone that was cut
// loose. Its inflight table counts the device's blocks.
type linear struct {
	size     int64
	data     area
	inflight *inflight
	commit   *committer
}

func (l *linear) name() string { return "linear" }

func (l *linear) read(p []byte, off int64) error { return l.data.read(p, off) }

func (l *linear) lock(off, length int64) *span {
	return l.inflight.lock(off/l.data.block, (off+length-1)/l.data.block, l.data.alignedTo(off, length))
}

func (l *linear) write(p []byte, off int64, durable bool) error {
	held := l.lock(off, int64(len(p)))
	err := l.data.write(p, off)
	l.inflight.unlock(held)
	return l.done(durable, err)
}

func (l *linear) done(durable bool, err error) error {
	if err == nil && durable {
		return l.commit.commit(nil)
	}
	return err
}

// zeroUnit is what file systems punch without touching neighbours.
const zeroUnit = 4096

// inner is the part of a range that is whole units.
func inner(off, length, unit int64) (start, end int64) {
	start, end = (off+unit-1)/unit*unit, (off+length)/unit*unit
	return start, max(start, end)
}

func (l *linear) zero(off, length int64, unmap, durable bool) error {
	start, end := inner(off, length, zeroUnit)
	if start == end {
		return l.zeroEdge(off, length, durable)
	}
	err := l.zeroEdge(off, start-off, false)
	if err == nil {
		held := l.lock(start, end-start)
		err = l.data.zero(start, end-start, unmap)
		l.inflight.unlock(held)
	}
	if err == nil {
		err = l.zeroEdge(end, off+length-end, false)
	}
	return l.done(durable, err)
}

func (l *linear) zeroEdge(off, length int64, durable bool) error {
	if length == 0 {
		return nil
	}
	return withZeros(length, func(p []byte) error { return l.write(p, off, durable) })
}

// withZeros calls write with a buffer of zeros.
func withZeros(length int64, write func(p []byte) error) error {
	buf := blockdev.Alloc(int(length))
	defer blockdev.Free(buf)
	clear(buf)
	return write(buf)
}

func (l *linear) trim(off, length int64) error {
	start, end := inner(off, length, zeroUnit)
	if start == end {
		return nil
	}
	held := l.lock(start, end-start)
	defer l.inflight.unlock(held)
	if err := l.data.WriteZeroes(start, end-start, true); !errors.Is(err, blockdev.ErrNotSupported) {
		return err
	}
	return nil
}

func (l *linear) flush() error { return l.commit.commit(nil) }

func (l *linear) extents(off, length int64) ([]blockdev.Extent, error) {
	start, end := l.data.around(off, length)
	return clip(off, length)(l.data.Extents(start, end-start))
}

// clip cuts extents down to a range.
func clip(off, length int64) func([]blockdev.Extent, error) ([]blockdev.Extent, error) {
	return func(in []blockdev.Extent, err error) ([]blockdev.Extent, error) {
		out := in[:0]
		for _, e := range in {
			start, end := max(e.Offset, off), min(e.Offset+e.Length, off+length)
			if start < end {
				e.Offset, e.Length = start, end-start
				out = append(out, e)
			}
		}
		return out, err
	}
}

func (l *linear) fast(v *Volume, r *blockdev.Request) bool {
	if r.Ring == nil || l.data.file == nil || !l.data.alignedTo(r.Off, r.Length) || r.FUA {
		return false
	}
	f := newFlight(v, r)
	if r.Op == blockdev.OpWrite {
		first, last := r.Off/l.data.block, (r.Off+r.Length-1)/l.data.block
		if f.held = l.inflight.tryLock(first, last, true); f.held == nil {
			f.release()
			return false
		}
		f.inflight = l.inflight
	}
	f.submit(l.data.file, r.Buf, l.data.base+r.Off)
	f.landed(nil)
	return true
}
