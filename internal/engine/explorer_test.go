package engine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// world is what the explorer explores: a volume, and the part of it that is used.
type world struct {
	name        string
	chunk, size int64
	block       int   // of the store's device
	master      int64 // bytes, 0: none
	holes       bool
	cacheOff    bool
	raw         bool  // a raw disk with a state store beside it
	off, length int64 // the window; length 0: all of the volume
	snapshots   int   // at most at a time
	workers     int   // that make requests at the same time; 0 or 1: one, and what happens is the seed's alone
}

// explorer drives one volume through random requests, deaths and power cuts, all of them drawn from one
// seed, and looks at what power cuts could leave at every step.
type explorer struct {
	world
	seed   uint64
	rng    *rand.Rand // of the workload
	dir    string     // of exception caches
	master *blockdevtest.Memory
	model  *model

	boot   uuid.UUID
	crash  *blockdevtest.Crash
	state  *blockdevtest.Memory    // raw: the state store; its own power cuts are package store's to explore
	side   [2]*blockdevtest.Memory // raw: a disk that a power cut left, and the state store beside it
	v      *Volume
	late   *blockdevtest.Late
	ops    int                  // of all devices
	killAt int                  // operation, 0 none
	cutAt  int                  // the same, of a power cut that happens
	after  *blockdevtest.Memory // what it left
	views  [][][]uint64

	snaps  []*explored
	shelf  shelf // of v
	beside besideState

	// As they were at the power cut that happened.
	then      []*explored
	stateThen *blockdevtest.Memory

	versionMu sync.Mutex
	version   uint32

	cutMu  sync.Mutex
	cutRNG *rand.Rand
	states int
	err    error // the first thing that was wrong
	caches int

	// What a mutation check breaks.
	mutate         func(blockdev.Device, cowfmt.Layout) blockdev.Device
	mutateSnapshot func(blockdev.Device) blockdev.Device
	forgetFUA      bool
	loseCache      bool
}

func newExplorer(w world, seed uint64, dir string) (*explorer, error) {
	if w.length == 0 {
		w.off, w.length = 0, w.size
	}
	x := &explorer{world: w, seed: seed, dir: dir, boot: uuid.New()}
	x.rng = rand.New(rand.NewPCG(seed, 1))
	x.cutRNG = rand.New(rand.NewPCG(seed, 2))
	initial := func(int64) uint64 { return 0 }
	if w.master > 0 {
		x.master = memoryMaster(w.master, w.holes, w.off, w.off+w.length)
		initial = func(at int64) uint64 {
			if at*sector >= w.master || w.holes && at*sector/4096%4 == 3 {
				return 0
			}
			return word(0, at)
		}
	}
	x.model = newModel(w.off, w.length, initial)
	if w.raw {
		var err error
		x.state, err = stateStore(w.size, w.chunk)
		size := (w.size + int64(w.block) - 1) / int64(w.block) * int64(w.block)
		x.crash = blockdevtest.NewCrash(blockdevtest.NewMemory("store's raw disk", size, w.block), blockdevtest.CrashOptions{})
		return x, err
	}
	dev, err := newStore(w.size, w.chunk, w.master > 0, func(size int64) (blockdev.Device, error) {
		return blockdevtest.NewMemory("store", size, w.block), nil
	})
	if err != nil {
		return nil, err
	}
	x.crash = blockdevtest.NewCrash(dev.(*blockdevtest.Memory), blockdevtest.CrashOptions{})
	return x, nil
}

// openDev opens the volume on a device.
func (x *explorer) openDev(dev blockdev.Device, boot uuid.UUID, cache string, change ...func(*Options)) (*Volume, error) {
	beside, on := x.stateOf(dev), x.shelfOf(dev)
	if _, left := dev.(*blockdevtest.Memory); !left {
		x.shelf = on
	}
	var master blockdev.Device
	if x.master != nil {
		master = x.master.Open(true)
	}
	if x.mutate != nil {
		layout, err := cowfmt.NewLayout(cowfmt.RoleClone, x.size, x.chunk)
		if err != nil {
			return nil, err
		}
		dev = x.mutate(dev, layout)
	}
	if x.raw {
		raw := dev
		dev, change = beside, append(change, func(o *Options) { o.Origin = NewLatch(raw) })
	}
	return openOn(dev, master, boot, cache, append(change, func(o *Options) {
		if x.cacheOff {
			o.CacheMode = cowfmt.CacheOff
		}
		o.OpenSnapshot = on.open
	})...)
}

// stateOf is the state store that is opened with a raw disk: what a power cut left has one of its own.
func (x *explorer) stateOf(disk blockdev.Device) *blockdevtest.Memory {
	m, left := disk.(*blockdevtest.Memory)
	switch {
	case !x.raw:
		return nil
	case !left:
		return x.state
	case x.side[0] != m:
		x.side = [2]*blockdevtest.Memory{m, x.state.Fork()}
	}
	return x.side[1]
}

// stateStore is a state store in memory.
func stateStore(size, chunk int64) (*blockdevtest.Memory, error) {
	h, err := store.NewHeader(store.Params{
		Name: "vol", Role: cowfmt.RoleState, Size: size, ChunkSize: chunk, Now: time.Unix(1, 0),
		Origin: &cowfmt.Locator{Kind: cowfmt.LocatorRaw, Address: "/raw"},
	})
	if err != nil {
		return nil, err
	}
	dev := blockdevtest.NewMemory("state store", h.DataEnd(), sector)
	return dev, store.Create(dev, h)
}

func (x *explorer) cachePath() string { return filepath.Join(x.dir, "main.cache") }

// start opens the volume on a disk that has just been put in place.
func (x *explorer) start(crash *blockdevtest.Crash) error {
	x.crash = crash
	crash.OnOp = x.onOp
	v, err := x.openDev(crash, x.boot, x.cachePath())
	if err == nil {
		x.v = v
	}
	return err
}

// onOp runs while an operation of the device is in flight.
func (x *explorer) onOp(_ int, op string, _, _ int64) {
	count := 1
	if op == "flush" {
		count = 3
	}
	x.cut(count)
	x.cutMu.Lock()
	defer x.cutMu.Unlock()
	x.ops++
	if x.cutAt > 0 && x.ops >= x.cutAt {
		x.cutAt = 0
		before := x.model.snapshot()
		x.after = x.left(blockdevtest.Moments(x.devices()...), x.cutRNG)
		x.darkened()
		x.views = [][][]uint64{before, x.model.snapshot()}
	}
	if x.killAt > 0 && x.ops >= x.killAt {
		x.killAt = 0
		x.late = x.crash.Kill()
		for _, s := range x.snaps {
			s.late = s.crash.Kill()
		}
	}
}

// run makes steps steps and ends with a clean close. What was wrong comes with the seed.
func (x *explorer) run(steps int) error {
	err := x.start(x.crash)
	for i := 0; i < steps && err == nil; i++ {
		if x.workers > 1 {
			err = x.together()
		} else {
			err = x.step()
		}
		if err == nil {
			x.cut(1)
			err = x.problem()
		}
	}
	if err == nil {
		err = x.end()
	}
	if err != nil {
		return fmt.Errorf("%s, seed %d: %w", x.name, x.seed, err)
	}
	return nil
}

func (x *explorer) problem() error {
	x.cutMu.Lock()
	defer x.cutMu.Unlock()
	return x.err
}

// end closes the volume and looks at all of it for the last time, and at the master.
func (x *explorer) end() error {
	x.spare()
	if err := x.reopen(); err != nil {
		return err
	}
	if err := x.verify(); err != nil {
		return err
	}
	if err := x.v.Close(); err != nil {
		return err
	}
	if x.master == nil {
		return x.problem()
	}
	same := memoryMaster(x.world.master, x.holes, x.off, x.off+x.length)
	a, b := make([]byte, 4096), make([]byte, 4096)
	for off := x.off; off < min(x.off+x.length, x.world.master); off += 4096 {
		n := min(4096, x.world.master-off)
		_, err := x.master.ReadAt(a[:n], off)
		_, err2 := same.ReadAt(b[:n], off)
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		if string(a[:n]) != string(b[:n]) {
			return fmt.Errorf("the master changed at %d", off)
		}
	}
	return x.problem()
}

// verify reads the whole window of the live volume.
func (x *explorer) verify() error {
	p, err := x.read(x.v)
	if err != nil {
		return err
	}
	return x.model.visible(p, x.off)
}

// read reads the whole window.
func (x *explorer) read(v *Volume) ([]byte, error) {
	p := make([]byte, x.length)
	_, err := v.ReadAt(p, x.off)
	return p, err
}
