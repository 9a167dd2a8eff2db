package engine

import "github.com/virt-cow/virt-cow/internal/blockdev"

// origin is a volume that has snapshots, over the target that it would have without: what a write or zero is about to
// change is saved first, in each snapshot that needs it. Once saved that is for ever, so nothing is held meanwhile.
// Reads have nothing to do with snapshots, nor have flushes: what was saved was durable before the write began.
type origin struct {
	inner     target
	snapshots []*snapshot // active when this was put in place, oldest first
}

func (o *origin) name() string { return "origin" }

// look says whether a range may be changed in all of its snapshots, and for how many bytes from off that is the same.
func (o *origin) look(off, length int64) (free bool, n int64) {
	n = length
	for _, s := range o.snapshots {
		free, m := s.look(off, n)
		if n = m; !free {
			return false, n
		}
	}
	return true, n
}

// protect returns once the range may be changed.
func (o *origin) protect(off, length int64) error {
	wants := make([]want, 0, len(o.snapshots))
	for _, s := range o.snapshots { // all of them begin before any is waited for
		wants = append(wants, s.ask(off, length))
	}
	for i := range wants {
		if err := wants[i].wait(); err != nil {
			return err
		}
	}
	return nil
}

func (o *origin) read(p []byte, off int64) error { return o.inner.read(p, off) }

func (o *origin) write(p []byte, off int64, durable bool) error {
	if err := o.protect(off, int64(len(p))); err != nil {
		return err
	}
	return o.inner.write(p, off, durable)
}

// protectPiece is how much of a long zero is saved at a time.
const protectPiece = 8 << 20

func (o *origin) zero(off, length int64, unmap, durable bool) error {
	for end := off + length; off < end; {
		free, n := o.look(off, end-off)
		if !free || n < end-off { // to a boundary of pieces, and so of all chunks
			n = min(off/protectPiece*protectPiece+protectPiece, end) - off
			if err := o.protect(off, n); err != nil {
				return err
			}
		}
		if err := o.inner.zero(off, n, unmap, false); err != nil {
			return err
		}
		off += n
	}
	if durable {
		return o.inner.flush()
	}
	return nil
}

// trim passes what is saved, or needs no saving. The rest must keep what it holds: it is left alone.
func (o *origin) trim(off, length int64) error {
	for end := off + length; off < end; {
		free, n := o.look(off, end-off)
		if free {
			if err := o.inner.trim(off, n); err != nil {
				return err
			}
		}
		off += n
	}
	return nil
}

func (o *origin) flush() error { return o.inner.flush() }

func (o *origin) extents(off, length int64) ([]blockdev.Extent, error) {
	return o.inner.extents(off, length)
}

func (o *origin) fast(v *Volume, r *blockdev.Request) bool {
	if r.Op != blockdev.OpRead {
		if free, n := o.look(r.Off, r.Length); !free || n < r.Length {
			return false
		}
	}
	return o.inner.fast(v, r)
}
