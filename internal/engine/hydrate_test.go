package engine

import (
	"bytes"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

const hydrateSize = 8*mib + 3*512

func contents(t *testing.T, dev blockdev.Device, size int64) []byte {
	t.Helper()
	p := make([]byte, size)
	_, err := dev.ReadAt(p, 0)
	check(t, err)
	return p
}

// expectLoose waits for the end of hydration and checks that the volume reads as want, before and after
// it is opened again without its master.
func expectLoose(t *testing.T, v *Volume, dev blockdev.Device, want []byte) {
	t.Helper()
	eventually(t, "cut loose", func() bool {
		h := v.Hydration()
		if h.State == HydrationFailed {
			t.Fatal(h.Err)
		}
		return h.State == HydrationDone
	})
	if h := v.Hydration(); h.Done != h.Total || v.Target() != "linear" {
		t.Errorf("done: %+v, target %s", h, v.Target())
	}
	if !bytes.Equal(contents(t, v, int64(len(want))), want) {
		t.Error("the volume reads as something else once cut loose")
	}
	check(t, v.StartHydration())
	check(t, v.Close())
	again := mustOpen(t, dev, nil, uuid.New(), "")
	if h := again.Header(); h.Master != nil || h.MasterIdentity != nil || !h.CutLoose {
		t.Errorf("the header still asks for a master: %+v", h)
	}
	if !bytes.Equal(contents(t, again, int64(len(want))), want) {
		t.Error("the volume reads as something else when opened again")
	}
	check(t, again.Close())
}

// What is asked for between the ownership and the cache that goes on is remembered.
func TestHydrateBeforeCacheIsOn(t *testing.T) {
	master := memoryMaster(hydrateSize, true, 0, hydrateSize)
	want := contents(t, master, hydrateSize)
	dev := memoryStore(t, hydrateSize, 4096, sector, true)
	v := mustOpen(t, dev, master, uuid.New(), "")
	v.setMode(cowfmt.CacheOff)
	check(t, v.StartHydration())
	check(t, v.SetCache(t.Context(), cowfmt.CacheOn))
	expectLoose(t, v, dev, want)
}

// Holes of the master are not written; what the master has is copied once.
func TestHydrateSkipsHoles(t *testing.T) {
	master := memoryMaster(hydrateSize, true, 0, hydrateSize)
	want := contents(t, master, hydrateSize)
	dev := memoryStore(t, hydrateSize, 4096, sector, true)
	layout := func() int64 {
		st, err := store.Open(dev)
		check(t, err)
		return st.Header().Layout.Data
	}()
	writes := blockdevtest.NewFailure(blockdevtest.Rule{Ops: blockdevtest.Writes, Off: layout, Length: hydrateSize + 4096})
	v := mustOpen(t, blockdevtest.NewFault(dev, writes), master.Open(true), uuid.New(), "")
	check(t, v.StartHydration())
	eventually(t, "cut loose", func() bool { return v.Hydration().State == HydrationDone })
	if got := v.Stats().Hydrated; got != uint64(hydrateSize+4095)/4096*4096 {
		t.Errorf("%d bytes hydrated", got)
	}
	data, err := v.target().extents(0, hydrateSize)
	check(t, err)
	for _, e := range data {
		hole := e.Offset/4096%4 == 3
		if e.Zero != hole || e.Hole != hole || e.Length > 3*4096 {
			t.Fatalf("%+v of the data area: holes of the master were written", e)
		}
	}
	expectLoose(t, v, dev, want)
	if writes.Seen() == 0 {
		t.Error("nothing was copied")
	}
}

// What was copied before a pause or a close is not copied again; what the guest wrote stays.
func TestHydrateResumes(t *testing.T) {
	master := memoryMaster(hydrateSize, false, 0, hydrateSize)
	want := contents(t, master, hydrateSize)
	dev := memoryStore(t, hydrateSize, 64<<10, sector, true)
	boot := uuid.New()
	v := mustOpen(t, dev, master.Open(true), boot, "")
	v.SetHydrationRate(64 << 10) // a first piece at once, then one in 16 seconds
	check(t, v.StartHydration())
	eventually(t, "copied a part", func() bool { return v.Hydration().Done > 0 })
	v.PauseHydration()
	if h := v.Hydration(); h.State != HydrationPaused || h.Rate != 64<<10 || h.Total != hydrateSize {
		t.Errorf("paused: %+v", h)
	}
	fill(want[100<<10:101<<10], 100<<10, 7)
	_, err := v.WriteAt(want[100<<10:101<<10], 100<<10)
	check(t, err)
	check(t, v.Close())
	v = mustOpen(t, dev, master.Open(true), boot, "")
	for leaf := range v.table.leaves {
		check(t, v.table.load(leaf))
	}
	before := v.Hydration().Done
	if before == 0 || before == hydrateSize {
		t.Fatalf("%d bytes are done after a part", before)
	}
	check(t, v.StartHydration())
	eventually(t, "cut loose", func() bool { return v.Hydration().State == HydrationDone })
	if got := int64(v.Stats().Hydrated); got > hydrateSize+64<<10-before {
		t.Errorf("%d bytes copied with %d there", got, before)
	}
	expectLoose(t, v, dev, want)
}

// A new rate holds at once, for who waits because of the old one too.
func TestHydrateRateChange(t *testing.T) {
	master := memoryMaster(hydrateSize, false, 0, hydrateSize)
	want := contents(t, master, hydrateSize)
	dev := memoryStore(t, hydrateSize, 64<<10, sector, true)
	v := mustOpen(t, dev, master.Open(true), uuid.New(), "")
	v.SetHydrationRate(1) // the next piece comes in days
	check(t, v.StartHydration())
	eventually(t, "waiting", func() bool { return v.Hydration().Done > 0 })
	if v.Hydration().State != HydrationRunning {
		t.Errorf("%+v at a byte a second", v.Hydration())
	}
	v.SetHydrationRate(0)
	expectLoose(t, v, dev, want)
}

// Hydration goes on under guest writes, gently, and takes nothing of theirs away.
func TestHydrateUnderWrites(t *testing.T) {
	master := memoryMaster(hydrateSize, true, 0, hydrateSize)
	want := contents(t, master, hydrateSize)
	dev := memoryStore(t, hydrateSize, 4096, sector, true)
	v := mustOpen(t, dev, master.Open(true), uuid.New(), "")
	check(t, v.StartHydration())
	for i := uint32(1); v.Hydration().State == HydrationRunning && i < 3000; i++ {
		off := int64(i) * 7919 % (hydrateSize / 512) * 512
		n := min(int64(i%9+1)*512, hydrateSize-off)
		fill(want[off:off+n], off, i)
		_, err := v.WriteAt(want[off:off+n], off)
		check(t, err)
	}
	expectLoose(t, v, dev, want)
}

// breaking is a master that fails to read some of it until it is mended.
type breaking struct {
	blockdev.Device
	mu       sync.Mutex
	from, to int64
	reads    int
}

func (b *breaking) ReadAt(p []byte, off int64) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if off < b.to && b.from < off+int64(len(p)) {
		b.reads++
		return 0, &blockError{b.Info().Name}
	}
	return b.Device.ReadAt(p, off)
}

func (b *breaking) mend() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.to = 0
}

type blockError struct{ name string }

func (e *blockError) Error() string { return "read " + e.name + ": a bad spot" }
func (e *blockError) Unwrap() error { return syscall.EIO }

// What can't be read is tried a few times, then hydration has failed and says why; all else is copied
// and the volume is usable. Started again it goes on.
func TestHydrateFailsAndGoesOn(t *testing.T) {
	plain := memoryMaster(hydrateSize, false, 0, hydrateSize)
	want := contents(t, plain, hydrateSize)
	master := &breaking{Device: plain.Open(true), from: 3*mib + 4096, to: 3*mib + 8192}
	dev := memoryStore(t, hydrateSize, 64<<10, sector, true)
	v := mustOpen(t, dev, master, uuid.New(), "")
	check(t, v.StartHydration())
	eventually(t, "failed", func() bool { return v.Hydration().State == HydrationFailed })
	h := v.Hydration()
	if h.Err == nil || !strings.Contains(h.Err.Error(), "vol") || !strings.Contains(h.Err.Error(), "master") {
		t.Errorf("error %v: want one that names volume and master", h.Err)
	}
	if h.Done < hydrateSize-2*hydrateCopy {
		t.Errorf("%d of %d done: one bad spot kept more than its piece from being copied", h.Done, h.Total)
	}
	if master.reads > 2*hydrateTries {
		t.Errorf("the bad spot was read %d times", master.reads)
	}
	p := make([]byte, 4096)
	if _, err := v.ReadAt(p, 3*mib+4096); err == nil {
		t.Error("the bad spot reads without an error")
	}
	if _, err := v.WriteAt(filled(3*mib+5120, 512, 1), 3*mib+5120); err == nil {
		t.Error("a chunk that could not be copied was written in part")
	}
	fill(want[5*mib:5*mib+4096], 5*mib, 1)
	_, err := v.WriteAt(want[5*mib:5*mib+4096], 5*mib)
	check(t, err)
	check(t, v.Flush())
	master.mend()
	check(t, v.StartHydration())
	expectLoose(t, v, dev, want)
}

// A guest that writes the bad spot over needs the master no more.
func TestHydrateBadSpotOverwritten(t *testing.T) {
	plain := memoryMaster(hydrateSize, false, 0, hydrateSize)
	want := contents(t, plain, hydrateSize)
	master := &breaking{Device: plain.Open(true), from: mib, to: mib + 512}
	dev := memoryStore(t, hydrateSize, 64<<10, sector, true)
	v := mustOpen(t, dev, master, uuid.New(), "")
	fill(want[mib:mib+64<<10], mib, 1)
	_, err := v.WriteAt(want[mib:mib+64<<10], mib)
	check(t, err)
	check(t, v.StartHydration())
	expectLoose(t, v, dev, want)
}

// A master that can't tell its extents is copied whole.
func TestHydrateWithoutExtents(t *testing.T) {
	plain := memoryMaster(hydrateSize, true, 0, hydrateSize)
	want := contents(t, plain, hydrateSize)
	fail := blockdevtest.NewFailure(blockdevtest.Rule{Ops: blockdevtest.ExtentQueries, N: 1, Forever: true})
	dev := memoryStore(t, hydrateSize, 64<<10, sector, true)
	v := mustOpen(t, dev, blockdevtest.NewFault(plain.Open(true), fail), uuid.New(), "")
	check(t, v.StartHydration())
	expectLoose(t, v, dev, want)
}
