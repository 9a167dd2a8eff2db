package blockdevtest

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// Delay is a device on top of another whose writes can be held: a held write has not returned and has
// changed nothing; it lands when the test says so, also when its issuer is long dead, as a write of a
// killed process was seen to. Reads and flushes are never held: a flush promises nothing about writes
// that have not returned.
type Delay struct {
	inner blockdev.Device
	dead  chan struct{} // closed by Detach

	mu      sync.Mutex
	changed *sync.Cond // held grew
	match   func(op string, off, length int64) bool
	held    []*heldWrite
	closed  bool
}

type heldWrite struct {
	land func() error
	done chan error // has room for the one result
}

var _ blockdev.Device = (*Delay)(nil)

// ErrDetached is what operations return after Detach.
var ErrDetached = errors.New("the issuer is detached from its device")

// NewDelay returns inner with nothing held.
func NewDelay(inner blockdev.Device) *Delay {
	d := &Delay{inner: inner, dead: make(chan struct{})}
	d.changed = sync.NewCond(&d.mu)
	return d
}

// Hold holds every write from now on.
func (d *Delay) Hold() { d.HoldIf(func(string, int64, int64) bool { return true }) }

// HoldIf holds, from now on, the writes for which match says so. op is "write", "zero" or "unmap"; off
// and length are bytes. match must not call d.
func (d *Delay) HoldIf(match func(op string, off, length int64) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.match = match
}

// Held returns how many writes are held.
func (d *Delay) Held() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.held)
}

// WaitHeld returns when at least n writes are held.
func (d *Delay) WaitHeld(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.held) < n {
		d.changed.Wait()
	}
}

// Land lets held write i, in the order of arrival, land now, and returns what the device says. Those
// behind it move up; writes go on being held.
func (d *Delay) Land(i int) error {
	d.mu.Lock()
	h := d.held[i]
	d.held = slices.Delete(d.held, i, i+1)
	d.mu.Unlock()
	err := h.land()
	h.done <- err
	return err
}

// Release holds nothing any more and lets all held writes land, in the order of arrival. It returns when
// they have, with their errors.
func (d *Delay) Release() error {
	d.HoldIf(nil)
	var errs []error
	for d.Held() > 0 {
		errs = append(errs, d.Land(0))
	}
	return errors.Join(errs...)
}

// Detach is the death of the issuer: every later operation, and every held one, returns ErrDetached. The
// held writes still land on Release. The device below stays open, for the test to close.
func (d *Delay) Detach() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.detached() {
		close(d.dead)
	}
}

func (d *Delay) detached() bool {
	select {
	case <-d.dead:
		return true
	default:
		return false
	}
}

// usable is called with mu held.
func (d *Delay) usable() error {
	switch {
	case d.detached():
		return fmt.Errorf("%s: %w", d.inner.Info().Name, ErrDetached)
	case d.closed:
		return fmt.Errorf("%s: %w", d.inner.Info().Name, os.ErrClosed)
	}
	return nil
}

func (d *Delay) usableNow() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.usable()
}

func (d *Delay) change(op string, off, length int64, land func() error) error {
	d.mu.Lock()
	if err := d.usable(); err != nil {
		d.mu.Unlock()
		return err
	}
	info := d.inner.Info()
	refused := info.ReadOnly || length == 0 || blockdev.CheckRange(info, off, length) != nil
	if d.match == nil || refused || !d.match(op, off, length) {
		d.mu.Unlock()
		return land()
	}
	h := &heldWrite{land: land, done: make(chan error, 1)}
	d.held = append(d.held, h)
	d.changed.Broadcast()
	d.mu.Unlock()
	select {
	case err := <-h.done:
		return err
	case <-d.dead:
		return d.usableNow()
	}
}

// WriteAt implements blockdev.Device.
func (d *Delay) WriteAt(p []byte, off int64) (int, error) {
	data := slices.Clone(p) // a detached issuer may use p again before the write lands
	err := d.change("write", off, int64(len(data)), func() error {
		_, err := d.inner.WriteAt(data, off)
		return err
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteZeroes implements blockdev.Device.
func (d *Delay) WriteZeroes(off, length int64, unmap bool) error {
	op := "zero"
	if unmap {
		op = "unmap"
	}
	return d.change(op, off, length, func() error { return d.inner.WriteZeroes(off, length, unmap) })
}

// ReadAt implements blockdev.Device.
func (d *Delay) ReadAt(p []byte, off int64) (int, error) {
	if err := d.usableNow(); err != nil {
		return 0, err
	}
	return d.inner.ReadAt(p, off)
}

// Flush implements blockdev.Device.
func (d *Delay) Flush() error {
	if err := d.usableNow(); err != nil {
		return err
	}
	return d.inner.Flush()
}

// Extents implements blockdev.Device.
func (d *Delay) Extents(off, length int64) ([]blockdev.Extent, error) {
	if err := d.usableNow(); err != nil {
		return nil, err
	}
	return d.inner.Extents(off, length)
}

// Info implements blockdev.Device.
func (d *Delay) Info() blockdev.Info { return d.inner.Info() }

// Close implements blockdev.Device. It closes the device below.
func (d *Delay) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(); err != nil {
		return err
	}
	if len(d.held) > 0 {
		return fmt.Errorf("%s: closed while %d writes are held: release them or detach first", d.inner.Info().Name, len(d.held))
	}
	d.closed = true
	return d.inner.Close()
}
