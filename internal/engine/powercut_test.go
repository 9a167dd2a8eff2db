package engine

import (
	"flag"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

var (
	crashStates = flag.Int("crash.states", 12_000, "power cuts to explore")
	crashSeed   = flag.Uint64("crash.seed", 1, "the first seed to explore with")
)

const (
	mib = int64(1) << 20
	tib = int64(1) << 40
)

// worlds are the volumes that are explored.
func worlds() []world {
	edge := int64(store.LeafChunks * 4096)              // bytes of a leaf of 4 KiB chunks
	group := cowfmt.SectorsPerGroup * int64(4032) << 12 // bytes of a table group of them
	return []world{
		{name: "plain", chunk: 4096, size: 16 << 12, block: 512, master: 16 << 12},
		{name: "odd size", chunk: 4096, size: 21<<12 + 3*512, block: 512, master: 21<<12 + 3*512, holes: true},
		{name: "short master", chunk: 4096, size: 32<<12 + 512, block: 512, master: 11<<12 + 5*512, holes: true},
		{name: "no master", chunk: 4096, size: 24 << 12, block: 512},
		{name: "4096-byte sectors", chunk: 4096, size: 24<<12 + 7*512, block: 4096, master: 30 << 12, holes: true},
		{name: "64K chunks", chunk: 64 << 10, size: 6<<16 + 9*512, block: 512, master: 6 << 16, holes: true},
		{name: "64K chunks, 4096-byte sectors", chunk: 64 << 10, size: 5<<16 + 3*512, block: 4096, master: 3<<16 + 512},
		{name: "cache off", chunk: 4096, size: 20<<12 + 512, block: 512, master: 13 << 12, holes: true, cacheOff: true},
		{name: "cache off, 4096-byte sectors", chunk: 8192, size: 12<<13 + 512, block: 4096, master: 20 << 13, cacheOff: true},
		{name: "between leaves", chunk: 4096, size: 2 * edge, block: 512, master: edge + 3<<12, off: edge - 8<<12, length: 16 << 12},
		{name: "workers", chunk: 4096, size: 33<<12 + 512, block: 512, master: 28 << 12, holes: true, workers: 4},
		{name: "workers, 4096-byte sectors", chunk: 16 << 10, size: 16<<14 + 512, block: 4096, master: 12 << 14, workers: 3},
		{name: "workers, cache off", chunk: 4096, size: 33 << 12, block: 512, master: 20 << 12, cacheOff: true, workers: 4},
		{name: "raw disk", chunk: 4096, size: 20<<12 + 3*512, block: 512, raw: true},
		{name: "raw disk, 4096-byte sectors", chunk: 64 << 10, size: 20<<12 + 3*512, block: 4096, raw: true},
		{name: "raw disk, workers", chunk: 4096, size: 33 << 12, block: 512, raw: true, workers: 4},
		{name: "snapshot", chunk: 4096, size: 16<<12 + 512, block: 512, master: 13 << 12, holes: true, snapshots: 1},
		{name: "snapshots, 4096-byte sectors", chunk: 8192, size: 9<<13 + 512, block: 4096, master: 6 << 13, snapshots: 2},
		{name: "snapshots, cache off", chunk: 4096, size: 16 << 12, block: 512, master: 12 << 12, holes: true, cacheOff: true, snapshots: 2},
		{name: "snapshots, workers", chunk: 4096, size: 33<<12 + 512, block: 512, master: 28 << 12, holes: true, workers: 4, snapshots: 2},
		{name: "snapshots, raw disk", chunk: 4096, size: 16<<12 + 512, block: 512, raw: true, snapshots: 2},
		{name: "between table groups", chunk: 4096, size: group + 64<<12, block: 512, master: group, off: group - 8<<12, length: 16 << 12},
	}
}

// Power cuts are explored at every operation of the device while random requests, hydration, deaths of
// the engine and power cuts go on. With -crash.states the same goes on for longer.
func TestPowerCut(t *testing.T) {
	dir := cacheDir(t)
	total, runs, shown := 0, 0, time.Now()
	all := worlds()
	for seed := *crashSeed; total < *crashStates; seed++ {
		w := all[seed%uint64(len(all))]
		if w.size > tib && seed%3 != 0 {
			continue // costly: two large tables
		}
		x, err := newExplorer(w, seed, dir)
		if err == nil {
			err = x.run(30)
		}
		if err != nil {
			t.Fatalf("%v (again with -crash.seed=%d)", err, seed)
		}
		total += x.states
		runs++
		if time.Since(shown) > 10*time.Second {
			shown = time.Now()
			t.Logf("seed %d: %d of %d power cuts", seed, total, *crashStates)
			fmt.Printf("seed %d: %d of %d power cuts\n", seed, total, *crashStates)
		}
	}
	t.Logf("%d power cuts in %d runs", total, runs)
}

// mutant is a device that breaks a promise.
type mutant struct {
	blockdev.Device
	layout cowfmt.Layout
	mu     sync.Mutex
	skip   func(m *mutant) bool // this flush
	lose   func(m *mutant) bool // this write to the table

	data, table, header bool // written since the last flush
	tables, frozen      int
	toFrozen            bool // the write is to the frozen table
}

// wrote notes a write and says whether it is lost.
func (m *mutant) wrote(off int64) (lost bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case off >= m.layout.Data:
		m.data = true
	case off >= m.layout.Table[0]:
		m.table = true
		m.tables++
		if m.toFrozen = m.layout.Frozen > 0 && off >= m.layout.Frozen; m.toFrozen {
			m.frozen++
		}
		return m.lose != nil && m.lose(m)
	default:
		m.header = true
	}
	return false
}

func (m *mutant) WriteAt(p []byte, off int64) (int, error) {
	if m.wrote(off) {
		return len(p), nil
	}
	return m.Device.WriteAt(p, off)
}

func (m *mutant) WriteZeroes(off, length int64, unmap bool) error {
	m.wrote(off)
	return m.Device.WriteZeroes(off, length, unmap)
}

func (m *mutant) Flush() error {
	m.mu.Lock()
	skip := m.skip != nil && m.skip(m)
	m.data, m.table, m.header = false, false, false
	m.mu.Unlock()
	if skip {
		return nil
	}
	return m.Device.Flush()
}

// What is explored for a mutant.
const (
	cloneWorld = iota
	rawWorld
	snapshotWorld
)

// The explorer finds what is broken on purpose.
func TestPowerCutFindsMutants(t *testing.T) {
	onDevice := func(skip, lose func(m *mutant) bool) func(*explorer) {
		return func(x *explorer) {
			x.mutate = func(dev blockdev.Device, l cowfmt.Layout) blockdev.Device {
				return &mutant{Device: dev, layout: l, skip: skip, lose: lose}
			}
		}
	}
	onSnapshot := func(skip, lose func(m *mutant) bool) func(*explorer) {
		return func(x *explorer) {
			x.mutateSnapshot = func(dev blockdev.Device) blockdev.Device {
				choice, err := store.Peek(dev)
				if err != nil { // a killed one
					return dev
				}
				return &mutant{Device: dev, layout: choice.Header.Layout, skip: skip, lose: lose}
			}
		}
	}
	mutants := map[string]struct {
		world  int
		mutate func(*explorer)
	}{
		"flags may be durable before their data":       {cloneWorld, onDevice(func(m *mutant) bool { return m.data }, nil)},
		"flags are not flushed":                        {cloneWorld, onDevice(func(m *mutant) bool { return m.table }, nil)},
		"header copies are not flushed":                {cloneWorld, onDevice(func(m *mutant) bool { return m.header }, nil)},
		"nothing is flushed":                           {cloneWorld, onDevice(func(m *mutant) bool { return true }, nil)},
		"every fifth table write is lost":              {cloneWorld, onDevice(nil, func(m *mutant) bool { return m.tables%5 == 4 })},
		"FUA is forgotten":                             {cloneWorld, func(x *explorer) { x.forgetFUA = true }},
		"the exception cache dies with the engine":     {cloneWorld, func(x *explorer) { x.loseCache = true }},
		"a raw disk is not flushed":                    {rawWorld, onDevice(func(m *mutant) bool { return true }, nil)},
		"FUA is forgotten on a raw disk":               {rawWorld, func(x *explorer) { x.forgetFUA = true }},
		"saved flags may be durable before their data": {snapshotWorld, onSnapshot(func(m *mutant) bool { return m.data }, nil)},
		"saved flags are not flushed":                  {snapshotWorld, onSnapshot(func(m *mutant) bool { return m.table }, nil)},
		"nothing is flushed on the snapshot's device":  {snapshotWorld, onSnapshot(func(m *mutant) bool { return true }, nil)},
		"every fifth write of saved flags is lost":     {snapshotWorld, onSnapshot(nil, func(m *mutant) bool { return !m.toFrozen && m.tables%5 == 4 })},
		"the frozen table is not brought up to date":   {snapshotWorld, onSnapshot(nil, func(m *mutant) bool { return m.toFrozen && m.frozen > 1 })},
	}
	for name, mutant := range mutants {
		t.Run(name, func(t *testing.T) {
			dir := cacheDir(t)
			all := worlds()[:3]
			switch mutant.world {
			case rawWorld:
				all = []world{{name: "raw disk", chunk: 4096, size: 20<<12 + 3*512, block: 512, raw: true}}
			case snapshotWorld:
				all = []world{
					{name: "snapshot", chunk: 4096, size: 16<<12 + 512, block: 512, master: 13 << 12, holes: true, snapshots: 1},
					{name: "snapshots, raw disk", chunk: 4096, size: 16<<12 + 512, block: 512, raw: true, snapshots: 2},
				}
			}
			for seed := uint64(1); seed < 200; seed++ {
				x, err := newExplorer(all[seed%uint64(len(all))], seed, dir)
				if err != nil {
					t.Fatal(err)
				}
				mutant.mutate(x)
				if err := x.run(60); err != nil {
					t.Logf("found in run %d: %v", seed, err)
					return
				}
			}
			t.Error("not found")
		})
	}
}
