package blockdevtest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// Option tells Conformance what else a device can do.
type Option func(*suite)

// WithReopen makes the suite check that what was flushed is there when the device is opened again.
// reopen opens the storage of a device that the suite has flushed and closed.
func WithReopen(reopen func(t *testing.T, closed blockdev.Device) blockdev.Device) Option {
	return func(s *suite) { s.reopen = reopen }
}

// WithFreshZeros makes the suite check that a fresh device reads as zeros.
func WithFreshZeros() Option {
	return func(s *suite) { s.freshZeros = true }
}

type suite struct {
	open       func(t *testing.T) blockdev.Device
	reopen     func(t *testing.T, closed blockdev.Device) blockdev.Device
	freshZeros bool
}

// Conformance checks that a device keeps the promises of blockdev.Device. open returns a device of at
// least 64 KiB whose contents the suite may destroy; it is called once a subtest, and the suite closes
// what it returned. If open returns read-only devices, only what holds for those is checked.
func Conformance(t *testing.T, open func(t *testing.T) blockdev.Device, options ...Option) {
	s := &suite{open: open}
	for _, o := range options {
		o(s)
	}
	probe := s.device(t)
	info := probe.Info()
	probe.close()
	if info.Size < 64<<10 {
		t.Fatalf("%s: %d bytes: the suite needs 64 KiB or more", info.Name, info.Size)
	}
	t.Run("Info", s.testInfo)
	t.Run("Fresh", s.testFresh)
	t.Run("BadRequests", s.testBadRequests)
	t.Run("Closed", s.testClosed)
	if info.ReadOnly {
		t.Run("ReadOnly", s.testReadOnly)
		return
	}
	t.Run("Boundaries", s.testBoundaries)
	t.Run("UnalignedMemory", s.testUnalignedMemory)
	t.Run("WriteZeroes", s.testWriteZeroes)
	t.Run("Model", s.testModel)
	t.Run("Concurrent", s.testConcurrent)
	t.Run("ConcurrentFlush", s.testConcurrentFlush)
	if s.reopen != nil {
		t.Run("Reopen", s.testReopen)
	}
}

// device is a device that fails the test for what must not fail, and is closed once.
type device struct {
	blockdev.Device
	t     *testing.T
	once  sync.Once
	block int64 // bytes
	size  int64 // bytes in whole blocks
}

func (s *suite) device(t *testing.T) *device {
	t.Helper()
	return wrap(t, s.open(t))
}

func wrap(t *testing.T, dev blockdev.Device) *device {
	info := dev.Info()
	d := &device{Device: dev, t: t, block: int64(info.BlockSize)}
	d.size = info.Size &^ (d.block - 1)
	t.Cleanup(d.close)
	return d
}

func (d *device) close() {
	d.once.Do(func() {
		if err := d.Close(); err != nil {
			d.t.Errorf("Close: %v", err)
		}
	})
}

// fatal is what a test and a rapid test have in common.
type fatal interface {
	Helper()
	Fatalf(format string, args ...any)
}

func (d *device) read(t fatal, off, length int64) []byte {
	t.Helper()
	p := make([]byte, length)
	for i := range p { // so that bytes left alone are found
		p[i] = 0xbd
	}
	if n, err := d.ReadAt(p, off); err != nil || int64(n) != length {
		t.Fatalf("ReadAt %d length %d: %d, %v", off, length, n, err)
	}
	return p
}

func (d *device) write(t fatal, p []byte, off int64) {
	t.Helper()
	before := bytes.Clone(p)
	if n, err := d.WriteAt(p, off); err != nil || n != len(p) {
		t.Fatalf("WriteAt %d length %d: %d, %v", off, len(p), n, err)
	}
	if !bytes.Equal(p, before) {
		t.Fatalf("WriteAt %d length %d changed the caller's buffer", off, len(p))
	}
}

// zero reports whether the device could do it.
func (d *device) zero(t fatal, off, length int64, unmap bool) bool {
	t.Helper()
	err := d.WriteZeroes(off, length, unmap)
	if err != nil && !errors.Is(err, blockdev.ErrNotSupported) {
		t.Fatalf("WriteZeroes %d length %d unmap %v: %v", off, length, unmap, err)
	}
	return err == nil
}

func (d *device) expect(t fatal, want []byte, off int64, after string) {
	t.Helper()
	got := d.read(t, off, int64(len(want)))
	if i := difference(got, want); i >= 0 {
		t.Fatalf("%s: byte %d is %#x, want %#x (read %d length %d)", after, off+int64(i), got[i], want[i], off, len(want))
	}
}

// windows are ranges at the start, the middle and the end of the device, of at most length bytes each;
// on a small device one range is all of it.
func (d *device) windows(length int64) [][2]int64 {
	length = length &^ (d.block - 1)
	if d.size <= 3*length {
		return [][2]int64{{0, d.size}}
	}
	return [][2]int64{{0, length}, {d.size / 2 &^ (d.block - 1), length}, {d.size - length, length}}
}

// pattern fills p so that no two seeds, and no two places within a megabyte, look alike.
func pattern(p []byte, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 0))
	for i := 0; i < len(p); i += 8 {
		v := rng.Uint64()
		for j := i; j < min(i+8, len(p)); j++ {
			p[j] = byte(v>>(8*(j-i))) | 1 // never a zero
		}
	}
}

func patterned(length int64, seed uint64) []byte {
	p := make([]byte, length)
	pattern(p, seed)
	return p
}

// difference returns the first place where a and b differ, or -1.
func difference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if i >= len(b) || a[i] != b[i] {
			return i
		}
	}
	return len(a)
}
