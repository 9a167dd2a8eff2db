package store

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

var (
	// ErrNotSnapshot says that a store is not a snapshot store.
	ErrNotSnapshot = errors.New("is not a snapshot store")
	// ErrForeign says that a snapshot store is not the one that a volume's stack lists.
	ErrForeign = errors.New("is not the snapshot that the volume lists")
)

// Snapshot is a snapshot store, a part of its volume: who may write the volume may write it, and that must have been
// looked at before each call. Its header never changes. Its methods may be called at the same time, but for leaves of
// one table that are written at the same time: they must be different ones.
type Snapshot struct {
	dev    blockdev.Device
	header *cowfmt.Header
	table  sync.Mutex // held while a table is written
}

// SnapshotParams say what snapshot store to make.
type SnapshotParams struct {
	Volume        *cowfmt.Header // of the store of its volume
	VolumeAddress string         // where that store is
	UUID          uuid.UUID      // zero for a new one
	ChunkSize     int64          // bytes; 0: the volume's, and no other will do for a clone that has its master
	Cut           uuid.UUID      // the cut it is for
	Now           time.Time
}

// NewSnapshotHeader is the header of a fresh snapshot store, for CreateSnapshot; its DataEnd is the room it needs.
func NewSnapshotHeader(p SnapshotParams) (*cowfmt.Header, error) {
	v := p.Volume.Clone()
	if v.Role == cowfmt.RoleSnapshot {
		return nil, fmt.Errorf("%w: %v: a snapshot has no snapshots", cowfmt.ErrInvalid, v)
	}
	chunk := p.ChunkSize
	if chunk == 0 {
		chunk = v.ChunkSize
	}
	if tabled(v) && chunk != v.ChunkSize {
		return nil, fmt.Errorf("%w chunk size %d: a snapshot of %s, a clone, must have the clone's, %d", cowfmt.ErrInvalid, chunk, v.Name, v.ChunkSize)
	}
	h, err := freshHeader(Params{
		Name: v.Name, UUID: p.UUID, Role: cowfmt.RoleSnapshot, Size: v.Size, ChunkSize: chunk, Now: p.Now,
		Origin:         &cowfmt.Locator{Kind: cowfmt.LocatorStore, Address: p.VolumeAddress},
		OriginIdentity: &cowfmt.Identity{Kind: cowfmt.IdentityStore, Size: v.Size, UUID: v.UUID, Opens: v.Opens},
	})
	if err != nil {
		return nil, err
	}
	h.Cut = p.Cut
	if tabled(v) {
		h.Layout = h.Layout.WithFrozen()
		h.Master, h.MasterIdentity = v.Master, v.MasterIdentity
	}
	for g := range h.Groups() {
		h.SetGroupReady(g)
	}
	return h, h.Validate()
}

// tabled says whether a volume's table says where a chunk is: not of a raw disk, nor once a clone is cut loose.
func tabled(volume *cowfmt.Header) bool {
	return volume.Role == cowfmt.RoleClone && !volume.CutLoose
}

// CreateSnapshot puts a fresh snapshot store on dev, over whatever was there: with tables that are all clear, since its
// header is never written again. It writes a byte for each eight chunks, and a clone's snapshot two. Until it returns
// nil the device holds no store.
func CreateSnapshot(dev blockdev.Device, h *cowfmt.Header) error {
	if h.Role != cowfmt.RoleSnapshot {
		return fmt.Errorf("%s: %v: %w", dev.Info().Name, h, ErrNotSnapshot)
	}
	return create(dev, h, func() error {
		areas := []area{activeArea(dev, h)}
		if h.Layout.Frozen != 0 {
			areas = append(areas, frozenArea(dev, h))
		}
		for _, a := range areas {
			for g := range h.Groups() {
				if err := a.writeGroup(g, nil); err != nil {
					return err
				}
			}
		}
		return dev.Flush()
	})
}

// OpenSnapshot reads the snapshot store on dev. The device stays the caller's to close.
func OpenSnapshot(dev blockdev.Device) (*Snapshot, error) {
	choice, err := Peek(dev)
	if err != nil {
		return nil, err
	}
	h := choice.Header
	if h.Role != cowfmt.RoleSnapshot {
		return nil, fmt.Errorf("%s: %v: %w", dev.Info().Name, h, ErrNotSnapshot)
	}
	if err := Fits(dev.Info(), h); err != nil {
		return nil, err
	}
	return &Snapshot{dev: dev, header: h}, nil
}

// Belongs returns ErrForeign, saying why, unless this is the snapshot of which entry in the stack of volume speaks.
func (s *Snapshot) Belongs(volume *cowfmt.Header, entry cowfmt.StackEntry) error {
	h := s.header
	var why string
	switch {
	case entry.Kind != cowfmt.StackSnapshot:
		why = fmt.Sprintf("the entry is a %v's", entry.Kind)
	case h.UUID != entry.UUID:
		why = fmt.Sprintf("its UUID is %v, not %v", h.UUID, entry.UUID)
	case h.Generation != entry.Generation:
		why = fmt.Sprintf("its generation is %d, not %d", h.Generation, entry.Generation)
	case h.Cut != entry.CutID:
		why = fmt.Sprintf("it was made for the cut %v, not %v", h.Cut, entry.CutID)
	case h.OriginIdentity.UUID != volume.UUID:
		why = fmt.Sprintf("it is of the volume whose store is %v, not %v", h.OriginIdentity.UUID, volume.UUID)
	case h.Size != volume.Size:
		why = fmt.Sprintf("it is for %d bytes, not %d", h.Size, volume.Size)
	case tabled(volume) && !s.HasFrozen():
		why = "it has no room for the table of a clone"
	case s.HasFrozen() && h.ChunkSize != volume.ChunkSize:
		why = fmt.Sprintf("its chunks have %d bytes, not %d", h.ChunkSize, volume.ChunkSize)
	default:
		return nil
	}
	return fmt.Errorf("%s: %w, %s: %s", s.Name(), ErrForeign, volume.Name, why)
}

// Header is the snapshot store's header. It is shared: don't change it.
func (s *Snapshot) Header() *cowfmt.Header { return s.header }

// Device is what the snapshot store is on.
func (s *Snapshot) Device() blockdev.Device { return s.dev }

// Name is the device's name, for error messages.
func (s *Snapshot) Name() string { return s.dev.Info().Name }

// Data is the data area, rounded up to whole chunks: a chunk's place there is its place in the volume.
func (s *Snapshot) Data() (*blockdev.Section, error) { return dataArea(s.dev, s.header) }

// Leaves is how many leaves each of its tables has.
func (s *Snapshot) Leaves() int64 { return leaves(s.header) }

// ReadLeaf reads one leaf of the saved table from the device into flags, LeafFlags bytes. A sector that is not what was
// written there is an error, never clear flags.
func (s *Snapshot) ReadLeaf(index int64, flags []byte) error {
	return activeArea(s.dev, s.header).readLeaf(index, flags)
}

// WriteLeaves makes the leaves of the saved table, sorted by index, durable.
func (s *Snapshot) WriteLeaves(leaves []Leaf) error {
	return s.write(activeArea(s.dev, s.header), leaves)
}

// HasFrozen says whether it has a frozen table: of a clone that was not cut loose. Otherwise all chunks are the origin's.
func (s *Snapshot) HasFrozen() bool { return s.header.Layout.Frozen != 0 }

// ReadFrozen is ReadLeaf for the frozen table.
func (s *Snapshot) ReadFrozen(index int64, flags []byte) error {
	if !s.HasFrozen() {
		return fmt.Errorf("%s: %w", s.Name(), errNoFrozen)
	}
	return frozenArea(s.dev, s.header).readLeaf(index, flags)
}

// WriteFrozen is WriteLeaves for the frozen table.
func (s *Snapshot) WriteFrozen(leaves []Leaf) error {
	if !s.HasFrozen() {
		return fmt.Errorf("%s: %w", s.Name(), errNoFrozen)
	}
	return s.write(frozenArea(s.dev, s.header), leaves)
}

var errNoFrozen = errors.New("it has no frozen table: it is not of a clone that has its master")

func (s *Snapshot) write(a area, leaves []Leaf) error {
	if len(leaves) == 0 {
		return nil
	}
	s.table.Lock()
	defer s.table.Unlock()
	if err := a.writeRuns(leaves); err != nil {
		return err
	}
	if err := s.dev.Flush(); err != nil {
		return fmt.Errorf("commit exception table: %w", err)
	}
	return nil
}
