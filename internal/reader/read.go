package reader

import (
	"sync/atomic"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/store"
)

// source is where a chunk's bytes as of the cut are.
type source uint8

const (
	fromOrigin source = iota
	fromSaved
	fromMaster
)

// span is the chunks that a request touches, and where each is read from.
type span struct {
	first int64
	from  []source
}

// span begins with what is known for good: the frozen table, and ones. The other chunks may be the origin's.
func (v *View) span(off, length int64) (span, error) {
	first := off / v.chunk
	s := span{first: first, from: make([]source, (off+length-1)/v.chunk-first+1)}
	if v.frozen != nil {
		for i := first / store.LeafChunks; i <= s.last()/store.LeafChunks; i++ {
			if err := v.frozen.once(i); err != nil {
				return s, err
			}
		}
	}
	for i := range s.from {
		chunk := first + int64(i)
		switch {
		case v.frozen != nil && !v.frozen.set(chunk):
			s.from[i] = fromMaster
		case v.ones.set(chunk):
			s.from[i] = fromSaved
		}
	}
	return s, nil
}

func (s *span) last() int64 { return s.first + int64(len(s.from)) - 1 }

// settle finds out which of the chunks that were read from the origin were saved meanwhile, by reads that begin now: it comes
// after the origin was read, never before.
func (v *View) settle(s *span) error {
	fresh := int64(-1) // the leaf that was read
	for i, from := range s.from {
		if from != fromOrigin {
			continue
		}
		chunk := s.first + int64(i)
		if leaf := chunk / store.LeafChunks; leaf != fresh {
			if err := v.ones.again(leaf); err != nil {
				return err
			}
			fresh = leaf
		}
		if v.ones.set(chunk) {
			s.from[i] = fromSaved
		}
	}
	return nil
}

// ReadAt implements blockdev.Device: the volume as of the cut, if Verify says so afterwards.
func (v *View) ReadAt(p []byte, off int64) (int, error) {
	if err := v.check(off, int64(len(p))); err != nil || len(p) == 0 {
		return 0, err
	}
	s, err := v.span(off, int64(len(p)))
	if err == nil {
		err = v.gather(v.origin, fromOrigin, &s, p, off)
	}
	if err == nil {
		err = v.settle(&s)
	}
	if err == nil {
		err = v.gather(v.saved, fromSaved, &s, p, off)
	}
	if err == nil {
		err = v.gather(v.master, fromMaster, &s, p, off)
	}
	if err != nil {
		return 0, err
	}
	lower(&v.unjudged, off)
	return len(p), nil
}

// bridge is the longest gap between two runs that are read at once, bytes: reading it costs less than another request.
const bridge = 64 << 10

// gather fills the parts of p that come from one source. What is between two of them is left alone.
func (v *View) gather(part part, from source, s *span, p []byte, off int64) error {
	var runs [][2]int64 // of one read: from and to, bytes of the volume
	flush := func() (err error) {
		if len(runs) > 0 {
			err = part.read(p, off, runs)
			runs = runs[:0]
		}
		return err
	}
	for i := 0; i < len(s.from); {
		n := i
		for n < len(s.from) && s.from[n] == from {
			n++
		}
		if n == i {
			i++
			continue
		}
		start, end := max((s.first+int64(i))*v.chunk, off), min((s.first+int64(n))*v.chunk, off+int64(len(p)))
		if len(runs) > 0 && start-runs[len(runs)-1][1] > bridge {
			if err := flush(); err != nil {
				return err
			}
		}
		runs = append(runs, [2]int64{start, end})
		i = n
	}
	return flush()
}

// part is a device that chunks are read from, at their places in the volume. Behind its end, and where there is none, it is zeros.
type part struct {
	dev   blockdev.Device
	size  int64
	block int64
}

func newPart(dev blockdev.Device) part {
	info := dev.Info()
	return part{dev: dev, size: info.Size, block: int64(info.BlockSize)}
}

// read fills the runs of p, which begins at off, by one request to the device.
func (d part) read(p []byte, off int64, runs [][2]int64) error {
	first, last := runs[0][0], runs[len(runs)-1][1]
	if first >= d.size {
		for _, r := range runs {
			clear(p[r[0]-off : r[1]-off])
		}
		return nil
	}
	end := min(last, d.size)
	if len(runs) == 1 && (first|end)&(d.block-1) == 0 {
		_, err := d.dev.ReadAt(p[first-off:end-off], first)
		clear(p[end-off : last-off])
		return err
	}
	start, stop := first&^(d.block-1), min((end+d.block-1)&^(d.block-1), d.size)
	buf := blockdev.Alloc(int(stop - start))
	defer blockdev.Free(buf)
	if _, err := d.dev.ReadAt(buf, start); err != nil {
		return err
	}
	for _, r := range runs {
		n := 0
		if r[0] < end {
			n = copy(p[r[0]-off:r[1]-off], buf[r[0]-start:min(r[1], end)-start])
		}
		clear(p[r[0]-off+int64(n) : r[1]-off])
	}
	return nil
}

// raise makes a number at least n.
func raise(a *atomic.Int64, n int64) {
	for old := a.Load(); old < n && !a.CompareAndSwap(old, n); old = a.Load() {
	}
}

// lower makes a number at most n.
func lower(a *atomic.Int64, n int64) {
	for old := a.Load(); old > n && !a.CompareAndSwap(old, n); old = a.Load() {
	}
}
