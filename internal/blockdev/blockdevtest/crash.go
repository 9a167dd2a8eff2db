package blockdevtest

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// # The model
//
// A Crash device is a disk with a volatile write cache. What it promises is what blockdev.Device
// promises and nothing more; what a real disk does beyond that, it does not.
//
// A write (or write-zeroes) is issued, then lands in the cache, then returns. A flush is called, then
// returns.
//
//	issued, not landed   in flight: reads see the old bytes
//	landed               reads see it, and it returns
//	durable              it had returned before a flush was called, and that flush has returned nil
//
// After a power cut each atomic unit (512 bytes; CrashOptions.AtomicUnit) holds, on its own,
//
//   - what the last durable write to it left, or
//   - what any write to it left that landed later, or is in flight,
//
// never a mixture of two. So a write of several units tears in any way; of two writes to one unit the
// older may win; and writes to different units survive in any order. A write that overlapped a flush,
// that is, was issued before the flush returned and returned after it was called, is not durable.
//
// Zeroed units follow the same rule: zeros or what was there. Whether an unmapped one is a hole
// afterwards is decided with it.
//
// After the death of the process (Kill) nothing that returned is lost: the cache is the disk's. Writes
// that were in flight may land later, when the test says so, or never.
//
// # Moments
//
// The hooks run while the operation they announce is in flight, with no lock held: a power cut there
// may or may not have it, sector by sector, and a Kill there makes it land late. Holding a hook holds
// the operation, so a test can pile up as many operations in flight as it has goroutines.
//
// A state costs tens of microseconds on a device of a megabyte (BenchmarkCrashState): sectors are
// immutable and shared, a state copies pointers only.

// CrashOptions are the settings of a Crash device. The zero value will do.
type CrashOptions struct {
	AtomicUnit int      // bytes that never tear: 512 (default) up to the block size
	Trace      *Trace   // gets a line an operation, perhaps of several devices
	Regions    []Region // names in the trace
}

// Crash is a block device that can lose its power. It is one opening of its disk. Hooks are set before
// the first operation.
type Crash struct {
	handle
	disk    *crashDisk
	killed  bool // under disk.mu
	ops     atomic.Int64
	flushes atomic.Int64

	// OnOp is called when operation n (from 1) that may change the disk was issued and has done nothing
	// yet. op is "write", "zero", "unmap" or "flush"; off and length are bytes, 0 for a flush. Operations
	// that are refused or have no length do not count.
	OnOp func(n int, op string, off, length int64)
	// OnFlush is called when flush n (from 1) was called and has done nothing yet, after OnOp.
	OnFlush func(n int)
}

var _ blockdev.Device = (*Crash)(nil)

// ErrKilled is what operations of an opening return after its Kill.
var ErrKilled = errors.New("the process that had the device open is dead")

// NewCrash returns a disk with the contents, size and block size of m, all of it durable. m itself is not
// changed.
func NewCrash(m *Memory, o CrashOptions) *Crash {
	unit := o.AtomicUnit
	if unit == 0 {
		unit = sectorSize
	}
	if unit < sectorSize || unit > m.info.BlockSize || unit&(unit-1) != 0 {
		panic(fmt.Sprintf("crash device %s: atomic unit %d: want a power of two from 512 to the block size %d",
			m.info.Name, unit, m.info.BlockSize))
	}
	durable := m.Fork().disk.now
	d := &crashDisk{
		id: durable.id, info: m.info, unit: int64(unit), trace: o.Trace, regions: o.Regions,
		durable: durable, now: durable.fork(),
	}
	d.info.ReadOnly = false
	return &Crash{handle: handle{info: d.info}, disk: d}
}

// Open returns another opening of the same disk: a second process, or the successor of a killed one. It
// has no hooks and counts from zero.
func (c *Crash) Open(readOnly bool) *Crash {
	again := &Crash{handle: handle{info: c.info}, disk: c.disk}
	again.info.ReadOnly = readOnly
	return again
}

// Ops returns how many operations that may change the disk this opening issued.
func (c *Crash) Ops() int { return int(c.ops.Load()) }

// Flushes returns how many flushes this opening called.
func (c *Crash) Flushes() int { return int(c.flushes.Load()) }

// ReadAt implements blockdev.Device.
func (c *Crash) ReadAt(p []byte, off int64) (int, error) {
	c.disk.mu.RLock()
	defer c.disk.mu.RUnlock()
	if err := c.admit(false, off, int64(len(p))); err != nil {
		return 0, err
	}
	c.disk.now.read(p, off)
	return len(p), nil
}

// WriteAt implements blockdev.Device.
func (c *Crash) WriteAt(p []byte, off int64) (int, error) {
	if err := c.change(&write{off: off, length: int64(len(p)), data: append([]byte(nil), p...)}); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteZeroes implements blockdev.Device.
func (c *Crash) WriteZeroes(off, length int64, unmap bool) error {
	return c.change(&write{off: off, length: length, zero: true, unmap: unmap})
}

func (c *Crash) change(w *write) error {
	d := c.disk
	d.mu.Lock()
	if err := c.admit(true, w.off, w.length); err != nil || w.length == 0 {
		d.mu.Unlock()
		return err
	}
	w.by = c
	d.issue(w)
	n := int(c.ops.Add(1))
	d.mu.Unlock()
	if c.OnOp != nil {
		c.OnOp(n, w.kind(), w.off, w.length)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if c.killed {
		return fmt.Errorf("%s: %w", c.info.Name, ErrKilled) // the write is in flight still: Late has it
	}
	d.land(w)
	return nil
}

// Flush implements blockdev.Device.
func (c *Crash) Flush() error {
	d := c.disk
	d.mu.Lock()
	if err := c.admit(false, 0, 0); err != nil {
		d.mu.Unlock()
		return err
	}
	mark := d.landed // what returns from here on overlaps this flush
	d.trace.add("flush " + c.info.Name)
	n, flush := int(c.ops.Add(1)), int(c.flushes.Add(1))
	d.mu.Unlock()
	if c.OnOp != nil {
		c.OnOp(n, "flush", 0, 0)
	}
	if c.OnFlush != nil {
		c.OnFlush(flush)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if c.killed {
		return fmt.Errorf("%s: %w", c.info.Name, ErrKilled)
	}
	d.settle(mark)
	return nil
}

// Extents implements blockdev.Device.
func (c *Crash) Extents(off, length int64) ([]blockdev.Extent, error) {
	c.disk.mu.RLock()
	defer c.disk.mu.RUnlock()
	if err := c.admit(false, off, length); err != nil {
		return nil, err
	}
	return c.disk.now.extents(off, length), nil
}

func (c *Crash) admit(write bool, off, length int64) error {
	if c.killed {
		return fmt.Errorf("%s: %w", c.info.Name, ErrKilled)
	}
	return c.handle.admit(write, off, length)
}
