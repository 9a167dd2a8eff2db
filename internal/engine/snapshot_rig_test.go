package engine

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// shelf is where the snapshot stores of a test are, by UUID.
type shelf map[uuid.UUID]func() (blockdev.Device, error)

// open is an OpenSnapshot.
func (s shelf) open(_ context.Context, e cowfmt.StackEntry) (*store.Snapshot, func() error, error) {
	open, ok := s[e.UUID]
	if !ok {
		return nil, nil, fmt.Errorf("snapshot %v is on no shelf", e.UUID)
	}
	dev, err := open()
	if err != nil {
		return nil, nil, err
	}
	on, err := store.OpenSnapshot(NewLatch(dev))
	return on, func() error { return nil }, err
}

func (s shelf) option(o *Options) { o.OpenSnapshot = s.open }

// newSnapshotStore makes a snapshot store in memory for a volume, and the entry that adds it for a cut.
func newSnapshotStore(volume *cowfmt.Header, chunk int64, block int, cut uuid.UUID) (*blockdevtest.Memory, cowfmt.StackEntry, error) {
	h, err := store.NewSnapshotHeader(store.SnapshotParams{
		Volume: volume, VolumeAddress: "/volume", ChunkSize: chunk, Cut: cut, Now: time.Unix(1, 0),
	})
	if err != nil {
		return nil, cowfmt.StackEntry{}, err
	}
	dev := blockdevtest.NewMemory("snapshot", h.DataEnd(), block)
	e := cowfmt.StackEntry{UUID: h.UUID, CutID: cut, Locator: cowfmt.Locator{Kind: cowfmt.LocatorStore, Address: "/snapshot"}}
	return dev, e, store.CreateSnapshot(dev, h)
}

// snap makes a snapshot of a volume now: added, cut and kept. change may put another device over the memory, and change the entry.
func snap(tb testing.TB, v *Volume, on shelf, chunk int64, change ...func(*blockdevtest.Memory, *cowfmt.StackEntry) blockdev.Device) (*blockdevtest.Memory, uuid.UUID) {
	tb.Helper()
	cut := uuid.New()
	dev, e, err := newSnapshotStore(v.Header(), chunk, sector, cut)
	check(tb, err)
	over := blockdev.Device(dev)
	for _, f := range change {
		over = f(dev, &e)
	}
	on[e.UUID] = func() (blockdev.Device, error) { return over, nil }
	check(tb, v.AddSnapshot(context.Background(), e))
	check(tb, v.Cut(context.Background(), cut, time.Minute))
	check(tb, v.EndCut(context.Background(), cut, true))
	return dev, e.UUID
}

// readSnapshot reads a part of the volume as of the cut, in the order of docs/BACKUP.md: frozen table, origin, saved table,
// saved data. Bytes below the cursor are left as they are. Nobody writes meanwhile: then no zero is read too early.
func readSnapshot(snapshot, origin blockdev.Device, master func(p []byte, off int64) error, cursor int64, p []byte, off int64) error {
	s, err := store.OpenSnapshot(snapshot)
	if err != nil {
		return err
	}
	h := s.Header()
	saved, err := s.Data()
	if err != nil {
		return err
	}
	frozenTable, savedTable := newBitmap(s.ReadFrozen, newHeapLeaves(s.Leaves()), s.Leaves(), h.Chunks()), newBitmap(s.ReadLeaf, newHeapLeaves(s.Leaves()), s.Leaves(), h.Chunks())
	for end := off + int64(len(p)); off < end; {
		chunk := off / h.ChunkSize
		n := min((chunk+1)*h.ChunkSize, end) - off
		part := p[:n]
		p = p[n:]
		at := off
		off += n
		if at < cursor {
			continue
		}
		frozen := true
		if s.HasFrozen() {
			if frozen, _, err = frozenTable.run(chunk, 1); err != nil {
				return err
			}
		}
		if !frozen {
			if err := master(part, at); err != nil {
				return err
			}
			continue
		}
		if err := readPart(origin, part, at); err != nil {
			return err
		}
		set, _, err := savedTable.run(chunk, 1)
		if err == nil && set {
			err = readPart(saved, part, at)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readPart reads what need not be whole blocks.
func readPart(dev blockdev.Device, p []byte, off int64) error {
	a := newArea(dev)
	return a.read(p, off)
}

// asOfCut is all of a volume as a reader gets it from its snapshot; master may be nil.
func asOfCut(tb testing.TB, v *Volume, master, dev blockdev.Device) []byte {
	tb.Helper()
	p := make([]byte, v.Info().Size)
	section, err := v.section()
	check(tb, err)
	check(tb, readSnapshot(dev, section, original(master), 0, p, 0))
	return p
}

// original reads a master, and zeros behind its end.
func original(master blockdev.Device) func(p []byte, off int64) error {
	return func(p []byte, off int64) error {
		clear(p)
		if master == nil || off >= master.Info().Size {
			return nil
		}
		return readPart(master, p[:min(int64(len(p)), master.Info().Size-off)], off)
	}
}
