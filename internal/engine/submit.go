package engine

import (
	"context"
	"fmt"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// Submit carries out one request and never blocks: what is at hand is done before it returns, what needs
// only the disk goes through r.Ring, the rest goes on in a goroutine of its own.
func (v *Volume) Submit(r *blockdev.Request) {
	if err := v.check(r); err != nil {
		v.stats.errors.Add(1)
		r.Done(r, err)
		return
	}
	inside, err := v.gate.pass(r)
	if err != nil {
		v.refuse(r, err)
		return
	}
	if !inside {
		return // held: whoever opens the gate serves it
	}
	if r.Length == 0 && r.Op != blockdev.OpFlush {
		v.finish(r, nil)
		return
	}
	if (r.Op == blockdev.OpRead || r.Op == blockdev.OpWrite) && v.target().fast(v, r) {
		return
	}
	r.Detached = true
	go v.serve(r)
}

// refuse ends a request that did not get inside the gate.
func (v *Volume) refuse(r *blockdev.Request, err error) {
	v.stats.errors.Add(1)
	r.Done(r, fmt.Errorf("%s: %w", v.info.Name, err))
}

func (v *Volume) check(r *blockdev.Request) error {
	if v.info.ReadOnly && r.Op != blockdev.OpRead && r.Op != blockdev.OpFlush {
		return fmt.Errorf("%s: %w", v.info.Name, blockdev.ErrReadOnly)
	}
	return blockdev.CheckRange(v.info, r.Off, r.Length)
}

// serve is the blocking way of a request that is inside the gate.
func (v *Volume) serve(r *blockdev.Request) {
	v.finish(r, v.do(r))
}

func (v *Volume) do(r *blockdev.Request) error {
	t := v.target()
	if r.Length == 0 && r.Op != blockdev.OpFlush {
		return nil
	}
	switch r.Op {
	case blockdev.OpRead:
		return t.read(r.Buf, r.Off)
	case blockdev.OpWrite:
		return t.write(r.Buf, r.Off, r.FUA)
	case blockdev.OpWriteZeroes:
		return t.zero(r.Off, r.Length, !r.NoHole, r.FUA)
	case blockdev.OpTrim:
		if err := t.trim(r.Off, r.Length); err != nil || !r.FUA {
			return err
		}
		return t.flush()
	case blockdev.OpFlush:
		if v.info.ReadOnly {
			return nil
		}
		if v.quiet.Load() { // its writes are on the disk or will never be
			return v.data.Flush()
		}
		return t.flush()
	}
	return blockdev.ErrNotSupported
}

// finish ends a request that is inside the gate.
func (v *Volume) finish(r *blockdev.Request, err error) {
	v.stats.ops[r.Op].add(int(r.Length))
	if err != nil {
		v.stats.errors.Add(1)
		v.shutOut(err)
	}
	v.gate.leave(classOf(r.Op))
	r.Done(r, err)
}

// blocking makes one request of a caller that can wait.
func (v *Volume) blocking(r *blockdev.Request) error {
	if err := v.check(r); err != nil {
		return err
	}
	done := make(chan error, 1)
	r.Done = func(_ *blockdev.Request, err error) { done <- err }
	inside, err := v.gate.pass(r)
	switch {
	case err != nil:
		v.refuse(r, err)
	case inside:
		v.serve(r)
	}
	return <-done
}

// ReadAt implements blockdev.Device.
func (v *Volume) ReadAt(p []byte, off int64) (int, error) {
	err := v.blocking(&blockdev.Request{Op: blockdev.OpRead, Off: off, Length: int64(len(p)), Buf: p})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteAt implements blockdev.Device.
func (v *Volume) WriteAt(p []byte, off int64) (int, error) {
	err := v.blocking(&blockdev.Request{Op: blockdev.OpWrite, Off: off, Length: int64(len(p)), Buf: p})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteZeroes implements blockdev.Device; it is always supported.
func (v *Volume) WriteZeroes(off, length int64, unmap bool) error {
	return v.blocking(&blockdev.Request{Op: blockdev.OpWriteZeroes, Off: off, Length: length, NoHole: !unmap})
}

// Trim tells that the guest no longer needs these bytes.
func (v *Volume) Trim(off, length int64) error {
	return v.blocking(&blockdev.Request{Op: blockdev.OpTrim, Off: off, Length: length})
}

// Flush implements blockdev.Device.
func (v *Volume) Flush() error {
	return v.blocking(&blockdev.Request{Op: blockdev.OpFlush})
}

// Extents implements blockdev.Device.
func (v *Volume) Extents(off, length int64) ([]blockdev.Extent, error) {
	if err := blockdev.CheckRange(v.info, off, length); err != nil {
		return nil, err
	}
	if err := v.gate.enter(context.Background(), reading); err != nil {
		return nil, err
	}
	defer v.gate.leave(reading)
	return v.target().extents(off, length)
}

// Info implements blockdev.Device.
func (v *Volume) Info() blockdev.Info { return v.info }
