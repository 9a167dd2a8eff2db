package engine

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// Every kind of volume is a block device.
func TestConformance(t *testing.T) {
	const size = 3*mib + 5*512
	cacheOff := func(o *Options) { o.CacheMode = cowfmt.CacheOff }
	ready := func(t *testing.T, block int, master int64, change ...func(*Options)) blockdev.Device {
		dev := memoryStore(t, size, 16<<10, block, master > 0)
		var m blockdev.Device
		if master > 0 {
			m = memoryMaster(master, true, 0, master)
		}
		return mustOpen(t, dev, m, uuid.New(), filepath.Join(cacheDir(t), "c"), change...)
	}
	kinds := map[string]func(t *testing.T) blockdev.Device{
		"clone":                         func(t *testing.T) blockdev.Device { return ready(t, 512, size) },
		"clone, short master":           func(t *testing.T) blockdev.Device { return ready(t, 512, mib+512) },
		"clone, 4096-byte sectors":      func(t *testing.T) blockdev.Device { return ready(t, 4096, size) },
		"clone, cache off":              func(t *testing.T) blockdev.Device { return ready(t, 512, size, cacheOff) },
		"cache off, 4096-byte sectors":  func(t *testing.T) blockdev.Device { return ready(t, 4096, size, cacheOff) },
		"clone of a clone":              func(t *testing.T) blockdev.Device { return stacked(t, size) },
		"hydrating":                     func(t *testing.T) blockdev.Device { return hydrating(t, ready(t, 512, size), false) },
		"hydrating, 4096-byte sectors":  func(t *testing.T) blockdev.Device { return hydrating(t, ready(t, 4096, size), false) },
		"linear":                        func(t *testing.T) blockdev.Device { return hydrating(t, ready(t, 512, size), true) },
		"linear, 4096-byte sectors":     func(t *testing.T) blockdev.Device { return hydrating(t, ready(t, 4096, size), true) },
		"device that can't zero":        func(t *testing.T) blockdev.Device { return zeroless(t, size) },
		"device that can't zero, loose": func(t *testing.T) blockdev.Device { return hydrating(t, zeroless(t, size), true) },
		"snapshots": func(t *testing.T) blockdev.Device {
			on := shelf{}
			v := mustOpen(t, memoryStore(t, size, 16<<10, 512, true), memoryMaster(size, true, 0, size), uuid.New(), "", on.option)
			return twice(t, v, on, 0)
		},
		"snapshots, raw disk": func(t *testing.T) blockdev.Device {
			on := shelf{}
			return twice(t, rawDisk(t, size, 4096, on.option), on, 64<<10)
		},
		"raw disk":                    func(t *testing.T) blockdev.Device { return rawDisk(t, size, 512) },
		"raw disk, 4096-byte sectors": func(t *testing.T) blockdev.Device { return rawDisk(t, size, 4096) },
		"read-only": func(t *testing.T) blockdev.Device {
			dev := memoryStore(t, size, 16<<10, 512, true)
			return mustOpen(t, dev.Open(true), memoryMaster(size, true, 0, size), uuid.New(), "")
		},
	}
	for name, open := range kinds {
		t.Run(name, func(t *testing.T) { blockdevtest.Conformance(t, open) })
	}
	t.Run("no master", func(t *testing.T) {
		blockdevtest.Conformance(t, func(t *testing.T) blockdev.Device { return ready(t, 512, 0) }, blockdevtest.WithFreshZeros())
	})
	t.Run("reopened", func(t *testing.T) {
		var dev *blockdevtest.Memory
		open := func(t *testing.T) blockdev.Device {
			return mustOpen(t, dev, memoryMaster(size, true, 0, size), uuid.New(), "")
		}
		blockdevtest.Conformance(t, func(t *testing.T) blockdev.Device {
			dev = memoryStore(t, size, 4096, 512, true)
			return open(t)
		}, blockdevtest.WithReopen(func(t *testing.T, _ blockdev.Device) blockdev.Device { return open(t) }))
	})
}

// rawDisk is the volume of a raw disk, which is a little larger.
func rawDisk(t *testing.T, size int64, block int, change ...func(*Options)) *Volume {
	state, err := stateStore(size, 64<<10)
	check(t, err)
	disk := blockdevtest.NewMemory("raw", size/4096*4096+2*4096, block)
	return mustOpen(t, state, nil, uuid.New(), "", append(change, func(o *Options) { o.Origin = NewLatch(disk) })...)
}

// twice makes two snapshots of a volume, the second in chunks of its own size if that is given.
func twice(t *testing.T, v *Volume, on shelf, chunk int64) *Volume {
	snap(t, v, on, 0)
	snap(t, v, on, chunk)
	return v
}

// A raw disk that shrank or isn't given is refused; one that grew has the volume in its first part.
func TestRawDiskSize(t *testing.T) {
	const size = 64<<10 + 512
	state, err := stateStore(size, 4096)
	check(t, err)
	open := func(bytes int64) (*Volume, error) {
		return openOn(state, nil, uuid.New(), "", func(o *Options) {
			o.Origin = NewLatch(blockdevtest.NewMemory("raw", bytes, 512))
		})
	}
	if _, err := open(size - 512); err == nil || !strings.Contains(err.Error(), "has shrunk") {
		t.Errorf("%v", err)
	}
	if _, err := openOn(state, nil, uuid.New(), ""); err == nil || !strings.Contains(err.Error(), "/raw") {
		t.Errorf("%v", err)
	}
	v, err := open(2 * size)
	check(t, err)
	if v.Info().Size != size || v.Target() != "linear" {
		t.Errorf("%+v, %s", v.Info(), v.Target())
	}
	if err := v.StartHydration(); err != nil { // nothing to do
		t.Error(err)
	}
	check(t, v.Close())
}

// hydrating starts hydration of a volume, and waits for its end if it is to be loose.
func hydrating(t *testing.T, d blockdev.Device, loose bool) blockdev.Device {
	v := d.(*Volume)
	check(t, v.StartHydration())
	if loose {
		eventually(t, "cut loose", func() bool { return v.Hydration().State == HydrationDone })
	}
	return v
}

// noZero is a device that can't zero but by writing zeros, as many LUNs can't.
type noZero struct{ blockdev.Device }

func (noZero) WriteZeroes(int64, int64, bool) error { return blockdev.ErrNotSupported }

func zeroless(t *testing.T, size int64) blockdev.Device {
	dev := noZero{memoryStore(t, size, 16<<10, 512, true)}
	return mustOpen(t, dev, memoryMaster(size, true, 0, size), uuid.New(), "")
}

// stacked is a clone whose master is another clone, partly written.
func stacked(t *testing.T, size int64) blockdev.Device {
	base := mustOpen(t, memoryStore(t, size, 4096, 512, true), memoryMaster(size, true, 0, size), uuid.New(), "")
	_, err := base.WriteAt(filled(10<<10, 100<<10, 9), 10<<10)
	check(t, err)
	return mustOpen(t, memoryStore(t, size, 64<<10, 512, true), base, uuid.New(), "")
}

// A clone of a clone reads through both, and writing to it changes neither master.
func TestStackedClone(t *testing.T) {
	const size = mib
	lower := memoryStore(t, size, 4096, 512, true)
	first := mustOpen(t, lower, memoryMaster(size, false, 0, size), uuid.New(), "")
	_, err := first.WriteAt(filled(8192+512, 4096, 1), 8192+512)
	check(t, err)
	check(t, first.Close())
	before := contents(t, lower, lower.Info().Size)
	base := mustOpen(t, lower.Open(true), memoryMaster(size, false, 0, size), uuid.New(), "", func(o *Options) { o.ReadOnly = true })
	want := contents(t, base, size)
	if !bytes.Equal(want[8192+512:8192+512+4096], filled(8192+512, 4096, 1)) {
		t.Error("the lower clone reads wrong")
	}
	dev := memoryStore(t, size, 16<<10, 512, true)
	v := mustOpen(t, dev, base, uuid.New(), "")
	off := int64(900 << 10)
	fill(want[off:off+1024], off, 3)
	_, err = v.WriteAt(want[off:off+1024], off)
	check(t, err)
	if !bytes.Equal(contents(t, v, size), want) {
		t.Error("a clone of a clone reads wrong")
	}
	check(t, hydrateNow(v))
	if !bytes.Equal(contents(t, v, size), want) {
		t.Error("a clone of a clone reads wrong once cut loose")
	}
	check(t, v.Close())
	if !bytes.Equal(contents(t, lower, lower.Info().Size), before) {
		t.Error("the store of the lower clone changed")
	}
}

// A clone's extents are the master's where it is clear, the store's where it is not, a hole behind the master.
func TestExtents(t *testing.T) {
	const size = 64 << 10
	dev := memoryStore(t, size, 4096, 512, true)
	v := mustOpen(t, dev, memoryMaster(40<<10, true, 0, 40<<10), uuid.New(), "")
	check(t, v.WriteZeroes(4096, 4096, true))
	_, err := v.WriteAt(filled(12<<10, 512, 1), 12<<10) // a hole of the master, copied with a hole's zeros
	check(t, err)
	got, err := v.Extents(512, size-1024)
	check(t, err)
	want := []blockdev.Extent{
		{Offset: 512, Length: 3584},
		{Offset: 4096, Length: 4096, Zero: true, Hole: true},
		{Offset: 8192, Length: 20 << 10},
		{Offset: 28 << 10, Length: 4096, Zero: true, Hole: true},
		{Offset: 32 << 10, Length: 8192},
		{Offset: 40 << 10, Length: size - 512 - 40<<10, Zero: true, Hole: true},
	}
	var joined []blockdev.Extent
	for _, e := range got {
		if n := len(joined) - 1; n >= 0 && joined[n].Zero == e.Zero && joined[n].Hole == e.Hole {
			joined[n].Length += e.Length
			continue
		}
		joined = append(joined, e)
	}
	if len(joined) != len(want) {
		t.Fatalf("extents %+v, want %+v", joined, want)
	}
	for i := range want {
		if joined[i] != want[i] {
			t.Errorf("extent %d: %+v, want %+v", i, joined[i], want[i])
		}
	}
	check(t, v.Close())
}

// Another opening with the cache off sees what was acknowledged, flushed or not: in reads and in extents.
func TestCacheOffPeer(t *testing.T) {
	const size = 128 << 10
	dev := memoryStore(t, size, 4096, 512, true)
	master := memoryMaster(size, true, 0, size)
	off := func(o *Options) { o.CacheMode = cowfmt.CacheOff }
	v := mustOpen(t, dev, master.Open(true), uuid.New(), "", off)
	peer := mustOpen(t, dev.Open(true), master.Open(true), uuid.New(), "", off, func(o *Options) {
		o.ReadOnly, o.Owner.Host = true, uuid.New()
	})
	want := contents(t, v, size)
	if !bytes.Equal(contents(t, peer, size), want) {
		t.Error("the peer reads something else before the first write")
	}
	for i := range uint32(100) { // the first one makes the table ready

		at := int64(i) * 37 % (size / 1024) * 512 // the second half stays as it is
		n := min(int64(i%12+1)*512, size/2-at)
		fill(want[at:at+n], at, i+2)
		_, err := v.WriteAt(want[at:at+n], at)
		check(t, err)
		p := make([]byte, n)
		_, err = peer.ReadAt(p, at)
		if check(t, err); !bytes.Equal(p, want[at:at+n]) {
			t.Fatalf("write %d: the peer reads something else", i)
		}
	}
	if !bytes.Equal(contents(t, peer, size), want) {
		t.Error("the peer reads something else")
	}
	late := mustOpen(t, dev.Open(true), master.Open(true), uuid.New(), "", off, func(o *Options) { o.ReadOnly, o.Owner.Host = true, uuid.New() })
	contents(t, late, size)
	_, err := v.WriteAt(filled(92<<10, 512, 7), 92<<10) // in a hole of the master
	check(t, err)
	for _, p := range []*Volume{peer, late} {
		extents, err := p.Extents(92<<10, 4096)
		if check(t, err); len(extents) == 0 || extents[0].Zero {
			t.Errorf("a peer calls a chunk zeros that was just written: %+v", extents)
		}
		check(t, p.Close())
	}
	if err := v.StartHydration(); err == nil {
		t.Error("hydration started with the cache off")
	}
	check(t, v.Close())
}

// What only reads refuses to change anything, and flushes are no error.
func TestReadOnlyVolume(t *testing.T) {
	dev := memoryStore(t, 64<<10, 4096, 512, true)
	before := contents(t, dev, dev.Info().Size)
	v := mustOpen(t, dev, memoryMaster(64<<10, false, 0, 64<<10), uuid.New(), "", func(o *Options) { o.ReadOnly = true })
	for _, r := range []*blockdev.Request{
		{Op: blockdev.OpWrite, Buf: make([]byte, 512)}, {Op: blockdev.OpTrim, Length: 4096}, {Op: blockdev.OpWriteZeroes, Length: 4096},
	} {
		if err := request(v, r); !errors.Is(err, blockdev.ErrReadOnly) {
			t.Errorf("%v: %v, want %v", r.Op, err, blockdev.ErrReadOnly)
		}
	}
	check(t, v.Flush())
	if err := v.StartHydration(); !errors.Is(err, blockdev.ErrReadOnly) {
		t.Errorf("StartHydration: %v", err)
	}
	check(t, v.Close())
	if !bytes.Equal(contents(t, dev, dev.Info().Size), before) {
		t.Error("the store changed")
	}
}

// A master whose reads fail: an error for what needs it, and nothing of it is kept.
func TestMasterFails(t *testing.T) {
	fail := blockdevtest.NewFailure(blockdevtest.Rule{Ops: blockdevtest.Reads, N: 1, Off: 8192, Length: 4096})
	dev := memoryStore(t, 64<<10, 4096, 512, true)
	v := mustOpen(t, dev, blockdevtest.NewFault(memoryMaster(64<<10, false, 0, 64<<10), fail), uuid.New(), "")
	p := make([]byte, 4096)
	if _, err := v.ReadAt(p, 8192); !errors.Is(err, syscall.EIO) {
		t.Errorf("%v: want %v", err, syscall.EIO)
	}
	_, err := v.ReadAt(p, 8192)
	if check(t, err); !bytes.Equal(p, filled(8192, 4096, 0)) {
		t.Error("the second read is wrong")
	}
	check(t, v.Close())
}

// A volume is not opened without the master it needs, nor on a store of another role.
func TestOpenRefuses(t *testing.T) {
	if _, err := openOn(memoryStore(t, 64<<10, 4096, 512, true), nil, uuid.New(), ""); err == nil {
		t.Error("opened without its master")
	}
	volume, err := store.NewHeader(store.Params{Name: "vol", Role: cowfmt.RoleClone, Size: 64 << 10, ChunkSize: 4096})
	check(t, err)
	h, err := store.NewSnapshotHeader(store.SnapshotParams{Volume: volume, VolumeAddress: "/origin", Cut: uuid.New()})
	check(t, err)
	dev := blockdevtest.NewMemory("store", h.DataEnd(), 512)
	check(t, store.CreateSnapshot(dev, h))
	if _, err := openOn(dev, nil, uuid.New(), ""); err == nil || !strings.Contains(err.Error(), "snapshot") {
		t.Error("opened a snapshot store as a clone")
	}
}

// With the cache off a write to a chunk that looks clear asks the device first: what another host put
// there meanwhile stays.
func TestCacheOffWriterAsks(t *testing.T) {
	const size = 64 << 10
	dev := memoryStore(t, size, 4096, 512, true)
	master := memoryMaster(size, false, 0, size)
	boot := uuid.New()
	off := func(o *Options) { o.CacheMode, o.AcceptLoss = cowfmt.CacheOff, true }
	one := mustOpen(t, dev, master.Open(true), boot, "", off)
	_, err := one.WriteAt(filled(0, 512, 1), 0)
	check(t, err)
	two := mustOpen(t, dev, master.Open(true), boot, "", off) // as the destination of a migration does
	want := contents(t, two, size)
	for i := range int64(8) {
		at := 8192 + i*4096
		fill(want[at+512:at+1024], at+512, 2)
		_, err = one.WriteAt(want[at+512:at+1024], at+512)
		check(t, err)
		fill(want[at+2048:at+2560], at+2048, 3)
		_, err = two.WriteAt(want[at+2048:at+2560], at+2048)
		check(t, err)
	}
	if !bytes.Equal(contents(t, two, size), want) {
		t.Error("a write took away what another host had written to the chunk")
	}
	abandon(one)
	check(t, two.Close())
}
