package engine

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

const ownSize = 1 << 20

// Between the opening of a store and of its volume there is time for another host.
func TestOwnerSinceTheStoreWasOpened(t *testing.T) {
	dev, boot := memoryStore(t, ownSize, 4096, sector, false), uuid.New()
	early, err := store.Open(NewLatch(dev.Open(false)))
	check(t, err)
	first := mustOpen(t, dev, nil, boot, newCachePath(cacheDir(t)))
	for _, readOnly := range []bool{false, true} {
		_, err = Open(t.Context(), Options{
			Store: early, Owner: cowfmt.Owner{Host: uuid.New(), Boot: uuid.New()}, ReadOnly: readOnly,
			CachePath: newCachePath(cacheDir(t)),
		})
		if !errors.Is(err, store.ErrOwned) {
			t.Errorf("read-only %v: %v, want ErrOwned", readOnly, err)
		}
	}
	check(t, first.Close())
}

// The same host by another path: what was committed meanwhile must be seen.
func TestTableSinceTheStoreWasOpened(t *testing.T) {
	dev, boot, dir := memoryStore(t, ownSize, 4096, sector, false), uuid.New(), cacheDir(t)
	early, err := store.Open(NewLatch(dev.Open(false)))
	check(t, err)
	first := mustOpen(t, dev, nil, boot, newCachePath(dir))
	want := filled(0, 4096, 7)
	_, err = first.WriteAt(want, 0)
	check(t, err)
	check(t, first.Close())
	v, err := Open(t.Context(), Options{Store: early, Owner: cowfmt.Owner{Host: testHost, Boot: boot}, CachePath: newCachePath(dir)})
	check(t, err)
	got := make([]byte, 4096)
	_, err = v.ReadAt(got, 0)
	check(t, err)
	if string(got) != string(want) {
		t.Error("a flushed write is gone")
	}
	check(t, v.Close())
}

func TestTwoHostsOfOneMachineID(t *testing.T) {
	dev := memoryStore(t, ownSize, 4096, sector, false)
	named := func(name string) func(*Options) { return func(o *Options) { o.Owner.HostName = name } }
	v := mustOpen(t, dev, nil, uuid.New(), newCachePath(cacheDir(t)), named("a"))
	if _, err := openOn(dev, nil, uuid.New(), newCachePath(cacheDir(t)), named("b")); !errors.Is(err, store.ErrOwned) {
		t.Errorf("%v: want ErrOwned", err)
	}
	abandon(v)
}

// States of a store that later programs make are refused, not written over.
func TestUnknownStates(t *testing.T) {
	for name, change := range map[string]func(h *cowfmt.Header){
		"snapshot": func(h *cowfmt.Header) {
			h.Stack = []cowfmt.StackEntry{{
				Kind: cowfmt.StackSnapshot, State: cowfmt.StackActive, UUID: uuid.New(), CutID: uuid.New(), Generation: 1,
				Locator: cowfmt.Locator{Kind: cowfmt.LocatorRaw, Address: "/snap"},
			}}
		},
		"grant": func(h *cowfmt.Header) {
			h.Grants = []cowfmt.Grant{{ID: uuid.New(), Host: uuid.New(), Boot: uuid.New()}}
		},
		"takeover": func(h *cowfmt.Header) { h.Progress.Kind = cowfmt.ProgressTakeover },
		"unheard":  func(h *cowfmt.Header) { h.Progress.Kind = 99 },
	} {
		dev := memoryStore(t, ownSize, 4096, sector, false)
		st, err := store.Open(dev)
		check(t, err)
		check(t, st.Update(change))
		if v, err := openOn(dev, nil, uuid.New(), newCachePath(cacheDir(t))); err == nil {
			t.Errorf("%s: was opened for writing", name)
			check(t, v.Close())
		}
	}
}

// An old cache that turns up after a loss was accepted belongs to nobody.
func TestAcceptedLossEndsTheOldCache(t *testing.T) {
	dev, boot := memoryStore(t, ownSize, 4096, sector, false), uuid.New()
	one, two := newCachePath(cacheDir(t)), newCachePath(cacheDir(t))
	accept := func(o *Options) { o.AcceptLoss = true }
	abandon(mustOpen(t, dev, nil, boot, one))
	v := mustOpen(t, dev, nil, boot, two, accept)
	want := filled(8192, 4096, 3)
	_, err := v.WriteAt(want, 8192)
	check(t, err)
	check(t, v.Flush())
	abandon(v)
	if _, err := openOn(dev, nil, boot, one); !errors.Is(err, ErrLoss) {
		t.Fatalf("with the cache of before: %v, want ErrLoss", err)
	}
	v = mustOpen(t, dev, nil, boot, two)
	got := make([]byte, 4096)
	_, err = v.ReadAt(got, 8192)
	check(t, err)
	if string(got) != string(want) {
		t.Error("a flushed write is gone")
	}
	check(t, v.Close())
}

// With the cache off nobody's write is acknowledged on the strength of a flag that another one has set but
// not yet brought to the device, also where that other one fails.
func TestCacheOffFlagBeforeAcknowledgement(t *testing.T) {
	mem := memoryStore(t, ownSize, 4096, sector, false)
	st, err := store.Open(mem)
	check(t, err)
	table := st.Header().Layout.Table[0]
	check(t, st.WriteLeaves([]store.Leaf{{Flags: make([]byte, store.LeafFlags)}})) // the group is ready
	failure := blockdevtest.NewFailure(blockdevtest.Rule{Ops: blockdevtest.Writes, Off: table, Length: store.LeafBytes, N: 1})
	v := mustOpen(t, blockdevtest.NewFault(mem, failure), nil, uuid.New(), "", func(o *Options) { o.CacheMode = cowfmt.CacheOff })
	write := func(version uint32) error {
		return request(v, &blockdev.Request{Op: blockdev.OpWrite, Buf: filled(0, 4096, version)})
	}
	if write(1) == nil {
		t.Fatal("acknowledged without its flag")
	}
	check(t, write(2))
	flags := make([]byte, store.LeafFlags)
	fresh, err := store.Open(mem.Open(true))
	check(t, err)
	check(t, fresh.ReadLeaf(0, flags))
	if flags[0]&1 == 0 {
		t.Error("the second write was acknowledged, its chunk's flag is not on the device")
	}
	abandon(v)
}

// newCachePath is a path for an exception cache that no other has.
func newCachePath(dir string) string { return filepath.Join(dir, uuid.NewString()) }
