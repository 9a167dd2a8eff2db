package store

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// linearHeader is a state store's, of a raw disk of size bytes.
func linearHeader(t *testing.T, size int64) *cowfmt.Header {
	t.Helper()
	h, err := NewHeader(Params{Name: "vol", Role: cowfmt.RoleState, Size: size, ChunkSize: 4096, Now: time.Unix(1, 0),
		Origin: &cowfmt.Locator{Kind: cowfmt.LocatorRaw, Address: "/dev/disk"}})
	check(t, err)
	return h
}

// snapshotOf is the header of a snapshot of a volume, in its chunks.
func snapshotOf(t *testing.T, volume *cowfmt.Header) *cowfmt.Header {
	t.Helper()
	h, err := NewSnapshotHeader(SnapshotParams{Volume: volume, VolumeAddress: "/dev/vol", Cut: uuid.New(), Now: time.Unix(2, 0)})
	check(t, err)
	return h
}

func openSnapshot(t *testing.T, dev blockdev.Device) *Snapshot {
	t.Helper()
	s, err := OpenSnapshot(dev)
	check(t, err)
	return s
}

// entryOf is how a stack lists a snapshot that is new.
func entryOf(h *cowfmt.Header) cowfmt.StackEntry {
	return cowfmt.StackEntry{Kind: cowfmt.StackSnapshot, State: cowfmt.StackPending, UUID: h.UUID, Generation: h.Generation, CutID: h.Cut,
		Locator: cowfmt.Locator{Kind: cowfmt.LocatorStore, Address: "/dev/snap"}}
}

// rubbish fills a device with what no table sector looks like.
func rubbish(t *testing.T, dev blockdev.Device) {
	t.Helper()
	p := bytes.Repeat([]byte{0xa5}, 1<<20)
	for off := int64(0); off < dev.Info().Size; off += int64(len(p)) {
		n := min(int64(len(p)), dev.Info().Size-off)
		_, err := dev.WriteAt(p[:n], off)
		check(t, err)
	}
}

// What a snapshot store is, for each kind of volume; it begins with nothing saved, whatever its device held.
func TestSnapshotOf(t *testing.T) {
	clone := header(t, 1<<20, 8192)
	clone.Master = &cowfmt.Locator{Kind: cowfmt.LocatorRaw, Address: "/master"}
	clone.MasterIdentity = &cowfmt.Identity{Kind: cowfmt.IdentityWWID, Size: 1 << 20, WWID: "w"}
	loose := clone.Clone()
	loose.CutLoose = true
	for name, c := range map[string]struct {
		volume         *cowfmt.Header
		frozen, master bool
	}{
		"linear":      {linearHeader(t, 1<<20+512), false, false},
		"clone":       {clone, true, true},
		"began empty": {header(t, 1<<20, 4096), true, false},
		"cut loose":   {loose, false, false},
	} {
		h := snapshotOf(t, c.volume)
		if (h.Layout.Frozen != 0) != c.frozen || (h.Master != nil) != c.master || h.OriginIdentity.UUID != c.volume.UUID || h.ChunkSize != c.volume.ChunkSize {
			t.Errorf("%s: %v, %+v", name, h, h.Layout)
		}
		other, err := NewSnapshotHeader(SnapshotParams{Volume: c.volume, VolumeAddress: "/dev/vol", Cut: h.Cut, ChunkSize: 64 << 10})
		if c.frozen != errors.Is(err, cowfmt.ErrInvalid) || !c.frozen && other.ChunkSize != 64<<10 {
			t.Errorf("%s: in chunks of its own: %v", name, err)
		}
		dev := memory(h, 4096)
		rubbish(t, dev)
		if err := Create(dev, h); err == nil {
			t.Errorf("%s: made as a store that is no snapshot", name)
		}
		check(t, CreateSnapshot(dev, h))
		s := openSnapshot(t, dev)
		flags := make([]byte, LeafFlags)
		for leaf := range s.Leaves() {
			check(t, s.ReadLeaf(leaf, flags))
			if !bytes.Equal(flags, clearLeaf[:]) {
				t.Errorf("%s: leaf %d is not clear", name, leaf)
			}
			if err := s.ReadFrozen(leaf, flags); (err == nil) != c.frozen || !bytes.Equal(flags, clearLeaf[:]) {
				t.Errorf("%s: frozen leaf %d: %v", name, leaf, err)
			}
		}
		data, err := s.Data()
		check(t, err)
		if data.Info().Size != h.Chunks()*h.ChunkSize {
			t.Errorf("%s: the data area has %d bytes", name, data.Info().Size)
		}
		if _, err := open(t, dev).Acquire(context.Background(), cowfmt.Owner{Host: uuid.New(), Boot: uuid.New(), Instance: uuid.New()}, Claiming{}); err == nil {
			t.Errorf("%s: a snapshot store got an owner", name)
		}
	}
	if _, err := NewSnapshotHeader(SnapshotParams{Volume: snapshotOf(t, clone), VolumeAddress: "/dev/vol", Cut: uuid.New()}); err == nil {
		t.Error("a snapshot of a snapshot")
	}
	if _, err := NewSnapshotHeader(SnapshotParams{Volume: clone, VolumeAddress: "/dev/vol"}); err == nil {
		t.Error("a snapshot of no cut")
	}
	if _, err := OpenSnapshot(created(t, 1<<20, 4096, 512)); !errors.Is(err, ErrNotSnapshot) || !strings.Contains(err.Error(), "disk") {
		t.Errorf("opened a clone as a snapshot: %v", err)
	}
	h := snapshotOf(t, clone)
	short := memory(h, 512)
	check(t, CreateSnapshot(short, h))
	part, err := blockdev.NewSection(short, 0, h.DataEnd()-512)
	check(t, err)
	if _, err := OpenSnapshot(part); !errors.Is(err, ErrTruncated) {
		t.Errorf("truncated: %v", err)
	}
}

func TestSnapshotBelongs(t *testing.T) {
	volume := header(t, 1<<20, 4096)
	h := snapshotOf(t, volume)
	dev := memory(h, 512)
	check(t, CreateSnapshot(dev, h))
	s := openSnapshot(t, dev)
	for name, change := range map[string]func(v *cowfmt.Header, e *cowfmt.StackEntry){
		"": func(*cowfmt.Header, *cowfmt.StackEntry) {},
		"moved on": func(v *cowfmt.Header, e *cowfmt.StackEntry) {
			v.Epoch++
			v.Opens++
			e.State = cowfmt.StackActive
			e.Cursor = 4096
		},
		"since loose":   func(v *cowfmt.Header, _ *cowfmt.StackEntry) { v.CutLoose = true },
		"!tracker":      func(_ *cowfmt.Header, e *cowfmt.StackEntry) { e.Kind = cowfmt.StackTracker },
		"!UUID":         func(_ *cowfmt.Header, e *cowfmt.StackEntry) { e.UUID[3]++ },
		"!generation":   func(_ *cowfmt.Header, e *cowfmt.StackEntry) { e.Generation++ },
		"!cut":          func(_ *cowfmt.Header, e *cowfmt.StackEntry) { e.CutID[3]++ },
		"!volume":       func(v *cowfmt.Header, _ *cowfmt.StackEntry) { v.UUID[3]++ },
		"!size":         func(v *cowfmt.Header, _ *cowfmt.StackEntry) { v.Size += 512 },
		"!chunk of one": func(v *cowfmt.Header, _ *cowfmt.StackEntry) { v.ChunkSize *= 2 },
	} {
		v, e := volume.Clone(), entryOf(h)
		change(v, &e)
		want := error(nil)
		if strings.HasPrefix(name, "!") {
			want = ErrForeign
		}
		if err := s.Belongs(v, e); !errors.Is(err, want) {
			t.Errorf("%q: %v", name, err)
		}
	}
	loose := volume.Clone()
	loose.CutLoose = true
	h = snapshotOf(t, loose)
	check(t, CreateSnapshot(dev, h))
	if err := openSnapshot(t, dev).Belongs(volume, entryOf(h)); !errors.Is(err, ErrForeign) {
		t.Errorf("without a frozen table, of a clone that needs its master: %v", err)
	}
}

// Each table comes back as it was written, and none is taken for the other.
func TestSnapshotTables(t *testing.T) {
	volume := header(t, 40<<30, 4096)
	h := snapshotOf(t, volume)
	dev := memory(h, 4096)
	check(t, CreateSnapshot(dev, h))
	s := openSnapshot(t, dev)
	saved := []Leaf{leaf(0, 1), leaf(1, 2, 3), leaf(7, 5), leaf(groupLeaves+1, 9)}
	frozen := []Leaf{leaf(0, 7), leaf(groupLeaves, 8)}
	check(t, s.WriteLeaves(saved))
	check(t, s.WriteFrozen(frozen))
	check(t, s.WriteLeaves(nil))
	s = openSnapshot(t, dev)
	got := make([]byte, LeafFlags)
	for _, want := range append(saved, leaf(2), leaf(groupLeaves)) {
		check(t, s.ReadLeaf(want.Index, got))
		if !bytes.Equal(got, want.Flags) {
			t.Errorf("leaf %d came back as something else", want.Index)
		}
	}
	for _, want := range append(frozen, leaf(1)) {
		check(t, s.ReadFrozen(want.Index, got))
		if !bytes.Equal(got, want.Flags) {
			t.Errorf("frozen leaf %d came back as something else", want.Index)
		}
	}
	p := make([]byte, LeafBytes)
	_, err := dev.ReadAt(p, h.Layout.Frozen)
	check(t, err)
	_, err = dev.WriteAt(p, h.Layout.Table[0])
	check(t, err)
	if err := s.ReadLeaf(0, got); !errors.Is(err, cowfmt.ErrCorrupt) || !strings.Contains(err.Error(), "disk") {
		t.Errorf("the frozen table in place of the other: %v", err)
	}
}

// While a snapshot store is made a power cut leaves what was there, no store, or a whole one with clear tables.
func TestCreateSnapshotPowerCut(t *testing.T) {
	volume := header(t, 1<<20, 4096)
	old := snapshotOf(t, volume)
	before := memory(old, 512)
	check(t, CreateSnapshot(before, old))
	was := openSnapshot(t, before)
	check(t, was.WriteLeaves([]Leaf{leaf(0, 5)}))
	check(t, was.WriteFrozen([]Leaf{leaf(0, 6)}))
	h := snapshotOf(t, volume)
	dev := blockdevtest.NewCrash(before, blockdevtest.CrashOptions{})
	states, whole := 0, 0
	look := func(n int, op string, state blockdev.Device) {
		states++
		s, err := OpenSnapshot(state)
		if errors.Is(err, cowfmt.ErrNotStore) || errors.Is(err, cowfmt.ErrCorrupt) {
			return
		}
		if err != nil {
			t.Errorf("at operation %d (%s): %v", n, op, err)
			return
		}
		saved, frozen := leaf(0), leaf(0)
		if s.Header().UUID == old.UUID {
			saved, frozen = leaf(0, 5), leaf(0, 6)
		} else {
			whole++
		}
		got := make([]byte, LeafFlags)
		if err := s.ReadLeaf(0, got); err != nil || !bytes.Equal(got, saved.Flags) {
			t.Errorf("at operation %d (%s): saved table: %v", n, op, err)
		}
		if err := s.ReadFrozen(0, got); err != nil || !bytes.Equal(got, frozen.Flags) {
			t.Errorf("at operation %d (%s): frozen table: %v", n, op, err)
		}
	}
	dev.OnOp = func(n int, op string, _, _ int64) {
		for state := range dev.States(60) {
			look(n, op, state)
		}
	}
	check(t, CreateSnapshot(dev, h))
	for state := range dev.States(10) {
		if look(-1, "done", state); openSnapshot(t, state).Header().UUID != h.UUID {
			t.Error("made, but another store is there after a power cut")
		}
	}
	if whole == 0 {
		t.Error("no power cut left the new store")
	}
	t.Logf("%d power cuts", states)
}

func TestCreateSnapshotEachFailure(t *testing.T) {
	volume := header(t, 1<<20, 4096)
	for _, torn := range []int{0, 7} {
		n := blockdevtest.EachFailure(t, blockdevtest.Rule{Torn: torn}, func(n int, f *blockdevtest.Failure) {
			h := snapshotOf(t, volume)
			dev := memory(h, 512)
			rubbish(t, dev)
			err := CreateSnapshot(blockdevtest.NewFault(dev, f), h)
			if (err != nil) != (f.Fired() > 0) || err != nil && !strings.Contains(err.Error(), "disk") {
				t.Errorf("operation %d: %v", n, err)
			}
			check(t, CreateSnapshot(dev, h))
			openSnapshot(t, dev)
		})
		if n < 8 {
			t.Errorf("only %d operations failed", n)
		}
	}
}

// A sector of a snapshot's tables is old or new after a power cut, and new once its write has returned.
func TestSnapshotLeavesPowerCut(t *testing.T) {
	h := snapshotOf(t, header(t, 6*LeafChunks*4096, 4096))
	made := memory(h, 512)
	check(t, CreateSnapshot(made, h))
	for name, c := range map[string]struct {
		write func(s *Snapshot, leaves []Leaf) error
		read  func(s *Snapshot, index int64, flags []byte) error
	}{
		"saved":  {(*Snapshot).WriteLeaves, (*Snapshot).ReadLeaf},
		"frozen": {(*Snapshot).WriteFrozen, (*Snapshot).ReadFrozen},
	} {
		dev := blockdevtest.NewCrash(made.Fork(), blockdevtest.CrashOptions{})
		s := openSnapshot(t, dev)
		chunks := []int{1, 5000, 9000, 30000} // of four sectors
		before, after := 0, 1                 // so many of them have a flag, at least and at most
		look := func() {
			for state := range dev.States(40) {
				found, got := openSnapshot(t, state), make([]byte, LeafFlags)
				for _, l := range []int64{0, 1, 4} {
					check(t, c.read(found, l, got))
					for n, chunk := range chunks {
						if set := got[chunk/8]>>(chunk%8)&1 != 0; n < before && !set || n >= after && set {
							t.Fatalf("%s: leaf %d, chunk %d: %v, of %d to %d", name, l, chunk, set, before, after)
						}
					}
				}
			}
		}
		dev.OnOp = func(int, string, int64, int64) { look() }
		for after = 1; after <= len(chunks); after++ {
			set := chunks[:after]
			check(t, c.write(s, []Leaf{leaf(0, set...), leaf(1, set...), leaf(4, set...)}))
			before = after
			look()
		}
	}
}

func TestSnapshotLeavesEachFailure(t *testing.T) {
	h := snapshotOf(t, header(t, 6*LeafChunks*4096, 4096))
	blockdevtest.EachFailure(t, blockdevtest.Rule{Ops: blockdevtest.Writes | blockdevtest.Flushes, Torn: 3}, func(n int, f *blockdevtest.Failure) {
		dev := memory(h, 512)
		check(t, CreateSnapshot(dev, h))
		s := openSnapshot(t, blockdevtest.NewFault(dev, f))
		err := s.WriteLeaves([]Leaf{leaf(0, 1), leaf(3, 2)})
		if (err != nil) != (f.Fired() > 0) || err != nil && !strings.Contains(err.Error(), "disk") {
			t.Errorf("operation %d: %v", n, err)
		}
		if err != nil {
			check(t, s.WriteLeaves([]Leaf{leaf(0, 1), leaf(3, 2)}))
		}
	})
}
