// Package reader is a volume as it was at a cut, read from the shared disks by a host that does not own it, while its guest
// writes. Nothing asks the owner and nothing is locked: that what was read is right follows from the order alone.
//
// A piece is read in this order:
//
//  1. of a clone, the frozen table, which never changes: a chunk that is clear there is the master's, whatever came after;
//  2. the origin's data;
//  3. then, by a read issued after 2 returned, the snapshot's flags;
//  4. where one is set, the snapshot's data instead of what 2 read.
//
// The owner overwrites a chunk only after its flag is durable. So a chunk whose flag is still clear after it was read was read
// before it was overwritten. A flag that is set stays so, and its data with it: ones are remembered, zeros never.
//
// All of that holds while the snapshot is unbroken and the bytes are not released, and what says so is the volume's header. So
// what was read is good once a look at the header that began after the reads says that they were: Verify. Both its copies count.
//
// The model in this package's tests explores that order, and what writers do meanwhile; each other order that was tried is
// found to be wrong by it.
package reader

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// What ends a View for good. Any other error may pass.
var (
	// ErrBroken says that a write went past the snapshot: what was read since the last good look counts for nothing.
	ErrBroken = errors.New("snapshot is broken")
	// ErrReleased says that bytes are below the snapshot's cursor: they are no longer kept.
	ErrReleased = errors.New("below the snapshot's cursor: no longer kept")
	// ErrGone says that the volume lists no such snapshot any more, or that its store is another one now.
	ErrGone = errors.New("snapshot is gone")
)

// Config says what to read. Files must be open with O_DIRECT unless no other host can see them: a page cache shows what another
// host has overwritten. The devices stay the caller's to close.
type Config struct {
	Volume   blockdev.Device // with the volume's store, for looks at its header
	Origin   blockdev.Device // the raw disk; of a clone the data area of its store, or nil: then it is found on Volume
	Snapshot blockdev.Device // with the snapshot's store
	Master   blockdev.Device // of a clone that was not cut loose at the cut; nil where it has none

	SnapshotUUID uuid.UUID // of its store
	Cut          uuid.UUID
	Log          zerolog.Logger
}

// View is a volume as it was at a cut: a read-only device. Requests are multiples of 512 bytes, best long ones: each reads the
// table once. It may be used by several goroutines at the same time.
type View struct {
	info     blockdev.Info
	log      zerolog.Logger
	volume   blockdev.Device
	snapshot *store.Snapshot
	entry    cowfmt.StackEntry // UUID and CutID
	chunk    int64

	origin part
	saved  part
	master part // dev nil: zeros
	tells  bool // the origin's holes are what all hosts see

	frozen *flags // nil: all chunks are the origin's
	ones   *flags

	epoch    atomic.Int64 // of the header at the last look
	cursor   atomic.Int64 // the highest seen, or said by the caller: what is below is refused
	unjudged atomic.Int64 // where what was read since the last good look begins
	fate     atomic.Pointer[error]
	closed   atomic.Bool

	verifying sync.Mutex
}

var _ blockdev.Device = (*View)(nil)

// Open looks at the header and makes the view. The snapshot must be active: while one is pending its frozen table changes. The
// context bounds the look.
func Open(ctx context.Context, c Config) (*View, error) {
	v := &View{log: c.Log, volume: c.Volume, entry: cowfmt.StackEntry{UUID: c.SnapshotUUID, CutID: c.Cut}}
	for _, dev := range []blockdev.Device{c.Volume, c.Origin, c.Snapshot} {
		if f, _, ok := fileOf(dev); ok && f.Shared() && !f.Direct() {
			return nil, fmt.Errorf("%s: is open through the page cache, which does not show what another host has written: open it with O_DIRECT", f.Info().Name)
		}
	}
	var err error
	if v.snapshot, err = store.OpenSnapshot(c.Snapshot); err != nil {
		return nil, err
	}
	v.unjudged.Store(nothing)
	h, _, err := v.look(ctx)
	if err != nil {
		return nil, err
	}
	if err := v.parts(c, h); err != nil {
		return nil, err
	}
	s := v.snapshot.Header()
	v.chunk = s.ChunkSize
	v.info = blockdev.Info{
		Name: fmt.Sprintf("%s at cut %v", h.Name, c.Cut), Size: s.Size, BlockSize: blockdev.SectorSize, ReadOnly: true,
	}
	v.ones = newFlags(v.snapshot.Leaves(), v.snapshot.ReadLeaf)
	if v.snapshot.HasFrozen() {
		v.frozen = newFlags(v.snapshot.Leaves(), v.snapshot.ReadFrozen)
	}
	v.log.Debug().Str("volume", h.Name).Stringer("snapshot", c.SnapshotUUID).Int64("cursor", v.Cursor()).Msg("reading as of the cut")
	return v, nil
}

func fileOf(dev blockdev.Device) (f *blockdev.File, base int64, ok bool) {
	if dev == nil {
		return nil, 0, false
	}
	return blockdev.FileOf(dev)
}

// parts finds what the chunks are read from.
func (v *View) parts(c Config, volume *cowfmt.Header) error {
	s := v.snapshot.Header()
	saved, err := v.snapshot.Data()
	if err != nil {
		return err
	}
	v.saved = newPart(saved)
	origin := c.Origin
	switch {
	case origin == nil && volume.Role == cowfmt.RoleClone:
		if origin, err = blockdev.NewSection(c.Volume, volume.Layout.Data, volume.DataEnd()-volume.Layout.Data); err != nil {
			return err
		}
	case origin == nil:
		return fmt.Errorf("%s: is the state store of a raw disk, and the disk is not given", c.Volume.Info().Name)
	}
	if size := origin.Info().Size; size < s.Size {
		return fmt.Errorf("%s: has %d bytes, the volume %d", origin.Info().Name, size, s.Size)
	}
	v.origin = newPart(origin)
	f, _, ok := blockdev.FileOf(origin)
	v.tells = !ok || !f.Shared()
	switch {
	case !v.snapshot.HasFrozen():
		return nil
	case s.Master == nil:
		return nil // a clone that began empty
	case c.Master == nil:
		return fmt.Errorf("%s: chunks of its volume are still in the master %v, which is not given", v.snapshot.Name(), *s.Master)
	}
	if size := c.Master.Info().Size; s.MasterIdentity != nil && size != s.MasterIdentity.Size {
		return fmt.Errorf("%s: has %d bytes, the master of the volume has %d", c.Master.Info().Name, size, s.MasterIdentity.Size)
	}
	v.master = newPart(c.Master)
	return nil
}

// Info implements blockdev.Device.
func (v *View) Info() blockdev.Info { return v.info }

// WriteAt implements blockdev.Device: there is nothing to write.
func (v *View) WriteAt([]byte, int64) (int, error) { return 0, v.readOnly() }

// WriteZeroes implements blockdev.Device.
func (v *View) WriteZeroes(int64, int64, bool) error { return v.readOnly() }

// Flush implements blockdev.Device: there is nothing to flush.
func (v *View) Flush() error { return v.check(0, 0) }

func (v *View) readOnly() error { return fmt.Errorf("%s: %w", v.info.Name, blockdev.ErrReadOnly) }

// Close implements blockdev.Device. The devices below stay open.
func (v *View) Close() error {
	if v.closed.Swap(true) {
		return fmt.Errorf("%s: %w", v.info.Name, os.ErrClosed)
	}
	return nil
}

// check refuses what can't be served.
func (v *View) check(off, length int64) error {
	if v.closed.Load() {
		return fmt.Errorf("%s: %w", v.info.Name, os.ErrClosed)
	}
	if err := v.fate.Load(); err != nil {
		return *err
	}
	if err := blockdev.CheckRange(v.info, off, length); err != nil {
		return err
	}
	if cursor := v.cursor.Load(); length > 0 && off < cursor {
		return fmt.Errorf("%s: offset %d: %w, %d", v.info.Name, off, ErrReleased, cursor)
	}
	return nil
}
