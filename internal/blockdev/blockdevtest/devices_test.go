package blockdevtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// kinds are the devices of this package, over a Memory.
var kinds = map[string]struct {
	open   func(m *Memory) blockdev.Device
	reopen func(d blockdev.Device) blockdev.Device
}{
	"Memory": {
		func(m *Memory) blockdev.Device { return m },
		func(d blockdev.Device) blockdev.Device { return d.(*Memory).Open(false) },
	},
	"Crash": {
		func(m *Memory) blockdev.Device { return NewCrash(m, CrashOptions{Trace: new(Trace)}) },
		func(d blockdev.Device) blockdev.Device { return d.(*Crash).Open(false) },
	},
	"CrashAndPowerCut": {
		func(m *Memory) blockdev.Device { return NewCrash(m, CrashOptions{AtomicUnit: m.Info().BlockSize}) },
		func(d blockdev.Device) blockdev.Device { return d.(*Crash).PowerCut(nothingLands{}) },
	},
	"Fault": {
		func(m *Memory) blockdev.Device { return NewFault(m, NewFailure(Rule{})) },
		func(d blockdev.Device) blockdev.Device { return d.(*Fault).inner.(*Memory).Open(false) },
	},
	"FaultThatDrops": {
		func(m *Memory) blockdev.Device { return NewFault(m, NewFailure(Rule{DropUnflushed: true})) },
		func(d blockdev.Device) blockdev.Device { return d.(*Fault).inner.(*Memory).Open(false) },
	},
	"Delay": {
		func(m *Memory) blockdev.Device { return NewDelay(m) },
		func(d blockdev.Device) blockdev.Device { return d.(*Delay).inner.(*Memory).Open(false) },
	},
}

type nothingLands struct{}

func (nothingLands) IntN(int) int { return 0 }

func TestConformance(t *testing.T) {
	for name, kind := range kinds {
		reopen := WithReopen(func(_ *testing.T, d blockdev.Device) blockdev.Device { return kind.reopen(d) })
		for block, size := range map[int]int64{512: 64 << 10, 4096: 1<<20 + 4096} {
			t.Run(fmt.Sprintf("%s/%d", name, block), func(t *testing.T) {
				Conformance(t, func(*testing.T) blockdev.Device {
					return kind.open(NewMemory("disk", size, block))
				}, reopen, WithFreshZeros())
			})
		}
		if name != "FaultThatDrops" { // it reads what a write replaces: not for large devices
			t.Run(name+"/16TiB", func(t *testing.T) {
				Conformance(t, func(*testing.T) blockdev.Device {
					return kind.open(NewMemory("disk", 16<<40, 512))
				}, reopen, WithFreshZeros())
			})
		}
		t.Run(name+"/ReadOnly", func(t *testing.T) {
			Conformance(t, func(t *testing.T) blockdev.Device {
				m := NewMemory("disk", 1<<20, 4096)
				mustWrite(t, m, patterned(128<<10, 7), 0)
				d := kind.open(m.Open(true))
				if c, ok := d.(*Crash); ok {
					d = c.Open(true)
				}
				if !d.Info().ReadOnly {
					t.Fatal("not read-only")
				}
				return d
			})
		})
	}
}

func mustWrite(t fatal, d blockdev.Device, p []byte, off int64) {
	t.Helper()
	if _, err := d.WriteAt(p, off); err != nil {
		t.Fatalf("WriteAt %d length %d: %v", off, len(p), err)
	}
}

func mustRead(t fatal, d blockdev.Device, off, length int64) []byte {
	t.Helper()
	p := make([]byte, length)
	if _, err := d.ReadAt(p, off); err != nil {
		t.Fatalf("ReadAt %d length %d: %v", off, length, err)
	}
	return p
}

func mustFlush(t fatal, d blockdev.Device) {
	t.Helper()
	if err := d.Flush(); err != nil {
		t.Fatalf("Flush: %v", err)
	}
}

// filled returns length bytes of b.
func filled(b byte, length int) []byte { return bytes.Repeat([]byte{b}, length) }

func TestMemoryForkAndOpen(t *testing.T) {
	m := NewMemory("disk", 1<<20, 512)
	mustWrite(t, m, filled('a', 4096), 0)
	fork, again := m.Fork(), m.Open(false)
	mustWrite(t, m, filled('b', 512), 512)
	mustWrite(t, fork, filled('c', 512), 1024)
	if err := fork.WriteZeroes(0, 512, true); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		dev  *Memory
		want string
	}{{"original", m, "abaa"}, {"other opening", again, "abaa"}, {"fork", fork, "\x00aca"}} {
		if got := firstBytes(t, c.dev, 4); got != c.want {
			t.Errorf("%s: sectors begin with %q, want %q", c.name, got, c.want)
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.Flush(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Flush after Close: %v", err)
	}
	if got := firstBytes(t, again, 4); got != "abaa" {
		t.Errorf("other opening after Close: %q", got)
	}
}

// firstBytes returns the first byte of each of the first n sectors.
func firstBytes(t fatal, d blockdev.Device, n int) string {
	t.Helper()
	p := mustRead(t, d, 0, int64(n)*sectorSize)
	out := make([]byte, n)
	for i := range out {
		out[i] = p[i*sectorSize]
	}
	return string(out)
}

func TestMemoryTakesNoRoomForZeros(t *testing.T) {
	m := NewMemory("disk", 64<<40, 4096)
	const far = 63 << 40
	mustWrite(t, m, filled('x', 4096), far)
	for _, unmap := range []bool{false, true} {
		if err := m.WriteZeroes(0, 64<<40, unmap); err != nil {
			t.Fatal(err)
		}
		got, err := m.Extents(far, 8192)
		if err != nil {
			t.Fatal(err)
		}
		want := []blockdev.Extent{{Offset: far, Length: 4096, Zero: true}, {Offset: far + 4096, Length: 4096, Zero: true, Hole: true}}
		if unmap {
			want = []blockdev.Extent{{Offset: far, Length: 8192, Zero: true, Hole: true}}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("unmap %v: extents %+v, want %+v", unmap, got, want)
		}
	}
	if n := len(m.disk.now.leaves); n != 0 {
		t.Errorf("%d leaves after everything was unmapped", n)
	}
}
