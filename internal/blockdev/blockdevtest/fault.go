package blockdevtest

import (
	"errors"
	"fmt"
	"sync"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// Fault is a device on top of another that fails where its Failures say so. Everything else goes through
// unchanged. The bytes of a failed read are rubbish, so that a caller who uses them shows.
type Fault struct {
	inner    blockdev.Device
	failures []*Failure

	// With a Failure that drops, undo has what the writes since the last flush replaced, and mu keeps
	// writes and flushes apart.
	drops bool
	mu    sync.Mutex
	undo  []replaced
}

type replaced struct {
	off  int64
	data []byte
}

var _ blockdev.Device = (*Fault)(nil)

// NewFault returns inner with failures. Closing it closes inner.
func NewFault(inner blockdev.Device, failures ...*Failure) *Fault {
	f := &Fault{inner: inner, failures: failures}
	for _, x := range failures {
		f.drops = f.drops || x.rule.DropUnflushed
	}
	return f
}

// fails returns the error of an operation, nil for none, and the rule that says so: the first, if several
// do. All of them count it.
func (f *Fault) fails(op Ops, off, length int64) (rule Rule, err error) {
	for _, x := range f.failures {
		if x.fires(op, off, length) && err == nil {
			rule = x.rule
			err = fmt.Errorf("%s: %v at %d length %d: %w", f.inner.Info().Name, op, off, length, rule.Err)
		}
	}
	return rule, err
}

// ReadAt implements blockdev.Device.
func (f *Fault) ReadAt(p []byte, off int64) (int, error) {
	if _, err := f.fails(Reads, off, int64(len(p))); err != nil {
		for i := range p {
			p[i] = 0xee
		}
		return 0, err
	}
	return f.inner.ReadAt(p, off)
}

// WriteAt implements blockdev.Device.
func (f *Fault) WriteAt(p []byte, off int64) (int, error) {
	n := 0
	err := f.change(Writes, off, int64(len(p)), func(length int64) (err error) {
		n, err = f.inner.WriteAt(p[:length], off)
		return err
	})
	return n, err
}

// WriteZeroes implements blockdev.Device.
func (f *Fault) WriteZeroes(off, length int64, unmap bool) error {
	return f.change(Zeroes, off, length, func(length int64) error { return f.inner.WriteZeroes(off, length, unmap) })
}

// change does an operation that changes the range, all of it or as much as the rule that fails it says.
func (f *Fault) change(op Ops, off, length int64, do func(length int64) error) error {
	if f.drops {
		f.mu.Lock()
		defer f.mu.Unlock()
	}
	rule, failed := f.fails(op, off, length)
	if failed != nil {
		info := f.inner.Info()
		length = min(length, int64(rule.Torn)*blockdev.SectorSize) &^ int64(info.BlockSize-1)
		if length == 0 || info.ReadOnly || blockdev.CheckRange(info, off, length) != nil {
			return failed
		}
	}
	if err := f.remember(off, length); err != nil {
		return errors.Join(failed, err)
	}
	return errors.Join(failed, do(length))
}

// remember keeps what the range holds, for drop.
func (f *Fault) remember(off, length int64) error {
	info := f.inner.Info()
	if !f.drops || length == 0 || info.ReadOnly || blockdev.CheckRange(info, off, length) != nil {
		return nil // the device itself refuses the last two
	}
	old := replaced{off, make([]byte, length)}
	if _, err := f.inner.ReadAt(old.data, off); err != nil {
		return fmt.Errorf("reading what a write replaces: %w", err)
	}
	f.undo = append(f.undo, old)
	return nil
}

// Flush implements blockdev.Device.
func (f *Fault) Flush() error {
	if f.drops {
		f.mu.Lock()
		defer f.mu.Unlock()
	}
	rule, err := f.fails(Flushes, 0, 0)
	if err != nil {
		if rule.DropUnflushed {
			err = errors.Join(err, f.drop())
		}
		return err
	}
	if err := f.inner.Flush(); err != nil {
		return err
	}
	if f.drops {
		f.undo = nil
	}
	return nil
}

// drop puts back what the writes since the last flush replaced, newest first.
func (f *Fault) drop() error {
	for len(f.undo) > 0 {
		last := f.undo[len(f.undo)-1]
		if _, err := f.inner.WriteAt(last.data, last.off); err != nil {
			return fmt.Errorf("dropping unflushed data: %w", err)
		}
		f.undo = f.undo[:len(f.undo)-1]
	}
	return nil
}

// Extents implements blockdev.Device.
func (f *Fault) Extents(off, length int64) ([]blockdev.Extent, error) {
	if _, err := f.fails(ExtentQueries, off, length); err != nil {
		return nil, err
	}
	return f.inner.Extents(off, length)
}

// Info implements blockdev.Device.
func (f *Fault) Info() blockdev.Info { return f.inner.Info() }

// Close implements blockdev.Device.
func (f *Fault) Close() error { return f.inner.Close() }
