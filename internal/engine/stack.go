package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// OpenSnapshot opens the store of an entry of the stack, on a device of NewLatch that is locked against other processes,
// and says how it is closed. Where the entry's locator is not right on this host it knows better.
type OpenSnapshot func(ctx context.Context, e cowfmt.StackEntry) (*store.Snapshot, func() error, error)

// ErrNoSnapshot says that the volume has no such snapshot.
var ErrNoSnapshot = store.ErrNoSnapshot

// stack is the volume's snapshots, as its header lists them, and the cut that is being made.
type stack struct {
	open     OpenSnapshot
	openWait time.Duration // 0: as its entry says

	mu  sync.Mutex
	all []*snapshot // oldest first
	cut *cut        // nil: none
}

func (k *stack) snapshots() []*snapshot {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.all)
}

func (k *stack) find(id uuid.UUID) *snapshot {
	for _, s := range k.snapshots() {
		if s.id == id {
			return s
		}
	}
	return nil
}

// cutOf is the cut that is being made with a snapshot.
func (k *stack) cutOf(id uuid.UUID) *cut {
	k.mu.Lock()
	defer k.mu.Unlock()
	if c := k.cut; c != nil && slices.ContainsFunc(c.snapshots, func(s *snapshot) bool { return s.id == id }) {
		return c
	}
	return nil
}

// drop takes a snapshot out of the list.
func (k *stack) drop(s *snapshot) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.all = slices.DeleteFunc(k.all, func(o *snapshot) bool { return o == s })
}

// openStack opens the snapshots that the header lists and that are not open yet. What can't be opened is broken before
// the first write, at once where the header is this host's to write; or it is an error, where the guest is to wait for it.
func (v *Volume) openStack(ctx context.Context) error {
	entries := slices.DeleteFunc(slices.Clone(v.st.Header().Stack), func(e cowfmt.StackEntry) bool {
		return v.stack.find(e.UUID) != nil || e.State == cowfmt.StackPending
	})
	opened := make([]*snapshot, len(entries))
	var group errgroup.Group
	for i := range entries { // at once: of several that hang the guest waits for one
		group.Go(func() (err error) {
			opened[i], err = v.openEntry(ctx, &entries[i])
			return err
		})
	}
	err := group.Wait()
	opened = slices.DeleteFunc(opened, func(s *snapshot) bool { return s == nil })
	v.stack.mu.Lock()
	v.stack.all = append(v.stack.all, opened...)
	v.stack.mu.Unlock()
	if err != nil {
		return err
	}
	for _, s := range opened {
		go s.survey()
	}
	v.remap(func() {})
	return nil
}

func (v *Volume) openEntry(ctx context.Context, e *cowfmt.StackEntry) (*snapshot, error) {
	if e.State == cowfmt.StackBroken {
		s, err := newSnapshot(v, e, nil, nil)
		if err == nil {
			s.end(true)
		}
		return s, err
	}
	o := v.openInTime(ctx, e)
	if o.err == nil {
		return newSnapshot(v, e, o.on, o.close)
	}
	if ctx.Err() != nil { // this engine is told to end, which says nothing of the snapshot
		return nil, fmt.Errorf("%s: open its snapshot %v: %w", v.info.Name, e.UUID, o.err)
	}
	if e.OnError == cowfmt.OnErrorBreakGuestWrite {
		return nil, fmt.Errorf("%s: its snapshot %v can't be opened, and nothing may be written without it: %w; if its store is lost for good, "+
			"give that backup up: virt-cow store break-snapshot %s %v", v.info.Name, e.UUID, o.err, v.st.Name(), e.UUID)
	}
	v.log.Error().Err(o.err).Stringer("snapshot", e.UUID).Msg("a snapshot can't be opened: it will be broken")
	s, nerr := newSnapshot(v, e, nil, nil)
	if nerr == nil {
		s.failure = o.err
	}
	return s, nerr
}

// settleStack brings the header's stack in order, once it is this host's to write: cuts that were not made are void,
// and what could not be opened is broken.
func (v *Volume) settleStack() error {
	for _, e := range v.st.Header().Stack {
		s := v.stack.find(e.UUID)
		var err error
		switch {
		case e.State == cowfmt.StackPending && s == nil:
			err = v.st.RemoveSnapshot(e.UUID)
		case e.State == cowfmt.StackActive && s != nil && s.store == nil:
			if err = v.st.SetSnapshot(e.UUID, func(e *cowfmt.StackEntry) { e.State = cowfmt.StackBroken }); err == nil {
				s.end(true)
			}
		}
		if err != nil {
			return err
		}
	}
	v.remap(func() {})
	return nil
}

// follow takes over what the header says of the snapshots: another host may have broken or removed some.
func (v *Volume) follow() {
	h := v.st.Header()
	for _, s := range v.stack.snapshots() {
		i := slices.IndexFunc(h.Stack, func(e cowfmt.StackEntry) bool { return e.UUID == s.id })
		switch {
		case i < 0:
			s.end(false)
			v.stack.drop(s)
			go v.leave(s)
		case h.Stack[i].State == cowfmt.StackBroken && !s.ended():
			s.end(true)
			go v.leave(s)
		default:
			s.cursor.Store(max(s.cursor.Load(), h.Stack[i].Cursor))
		}
	}
	v.remap(func() {})
}

// beginWriting is for who comes to write the volume, before the first write is let in: another host may have set flags of
// the snapshots meanwhile, so that no zero is trusted that was read before.
func (v *Volume) beginWriting() {
	v.follow()
	for _, s := range v.stack.snapshots() {
		if s.store != nil && !s.ended() {
			s.saved.forget()
		}
	}
}

// restStack returns once no snapshot that is in use is being written to. Nobody asks for anything any more. One whose writes don't
// end is broken; an error where the guest is to wait for it.
func (v *Volume) restStack() error {
	for _, s := range v.stack.snapshots() {
		switch {
		case s.ended() || waitFor(s.copier.rest(), s.timeout):
		case s.onError == cowfmt.OnErrorBreakGuestWrite:
			return fmt.Errorf("%s: writes to its snapshot %v on %s don't end", v.info.Name, s.id, s.path)
		default:
			if err := s.awaitBreak(errSlow); err != nil {
				return err
			}
		}
	}
	return nil
}

// leave closes what a snapshot that has ended is on.
func (v *Volume) leave(s *snapshot) {
	if err := s.shut(s.timeout); err != nil {
		v.log.Warn().Err(err).Msg("close a snapshot")
	}
}

// closeStack is the end: no snapshot that is active may be written to by this host after the store was given up. One
// whose writes don't end is broken.
func (v *Volume) closeStack() error {
	var errs []error
	for _, s := range v.stack.snapshots() {
		if !s.ended() && s.store != nil {
			if !waitFor(s.copier.rest(), s.timeout) {
				errs = append(errs, s.awaitBreak(errSlow))
			}
		}
	}
	return errors.Join(errs...)
}

// shutStack closes what the snapshots are on; what hangs is left to the end of the process.
func (v *Volume) shutStack() {
	for _, s := range v.stack.snapshots() {
		if err := s.shut(shutWait); err != nil {
			v.log.Warn().Err(err).Msg("close a snapshot")
		}
	}
}

const shutWait = time.Second

// SnapshotInfo is what there is to know of an entry of the stack. Sizes are bytes.
type SnapshotInfo struct {
	ID, Cut   uuid.UUID
	Path      string
	State     uint8 // cowfmt.StackPending and so on
	Err       error // why it is broken, or about to be
	Cursor    int64
	Saved     int64 // chunks; for a moment after it was opened fewer than it has
	ChunkSize int64
	OnError   uint8
	Held      time.Duration // that the volume was suspended for its cut
}

// Stack tells of the volume's snapshots, oldest first.
func (v *Volume) Stack() []SnapshotInfo {
	var out []SnapshotInfo
	for _, s := range v.stack.snapshots() {
		out = append(out, SnapshotInfo{
			ID: s.id, Cut: s.cut, Path: s.path, State: uint8(s.state.Load()), Err: s.why(), Cursor: s.cursor.Load(),
			Saved: s.saved.total.Load(), ChunkSize: s.chunk, OnError: s.onError, Held: time.Duration(s.held.Load()),
		})
	}
	return out
}
