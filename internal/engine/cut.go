package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// # The cut
//
//	add   the snapshot is in the header as pending; a clone's table as it is now is written to it
//	cut   the volume is suspended, flushed and committed, the frozen table is brought up to date
//	end   it goes on, with the snapshot in place, and then the header says active: or without, and the entry is taken out
//
// Whatever goes wrong, and the deadline, ends a cut without its snapshots. The header is not written while the volume is
// suspended, but where the commit has a table group to initialise. No grant is given while a cut is being made, so that
// who receives one finds all snapshots active.

// cut is one that is being made.
type cut struct {
	id        uuid.UUID
	snapshots []*snapshot
	held      *Suspension // nil: not suspended yet
	ready     bool        // all that there was to do while it is suspended is done
	kept      bool        // set before the suspension ends
	over      chan struct{}

	ctx  context.Context // until the cut is void, or kept
	stop context.CancelFunc
}

// AddSnapshot opens a snapshot store that was made for this volume and puts it into the stack as pending, for a cut to
// come. Of the entry UUID, CutID, OnError, Timeout and Locator are given. The same once more is fine.
func (v *Volume) AddSnapshot(ctx context.Context, e cowfmt.StackEntry) error {
	if v.info.ReadOnly {
		return fmt.Errorf("snapshot of %s: %w", v.info.Name, blockdev.ErrReadOnly)
	}
	if err := v.moving.undivided("snapshot"); err != nil {
		return err
	}
	if s := v.stack.find(e.UUID); s != nil && s.cut == e.CutID && s.is(cowfmt.StackPending) {
		return nil
	}
	e.Kind, e.State, e.Cursor = cowfmt.StackSnapshot, cowfmt.StackPending, 0
	on, close, err := v.stack.open(ctx, e)
	if err != nil {
		return fmt.Errorf("snapshot of %s: %w", v.info.Name, err)
	}
	e.Generation = on.Header().Generation
	err = on.Belongs(v.st.Header(), e)
	var s *snapshot
	if err == nil {
		s, err = newSnapshot(v, &e, on, close)
	}
	if err == nil {
		err = v.isFresh(ctx, s)
	}
	if err == nil {
		err = v.freeze(ctx, s)
	}
	if err == nil {
		err = v.moving.call(ctx, func() error {
			if err := v.moving.undivided("snapshot"); err != nil {
				return err
			}
			if err := v.st.AddSnapshot(e); err != nil {
				return err
			}
			v.stack.mu.Lock()
			defer v.stack.mu.Unlock()
			v.stack.all = append(v.stack.all, s)
			return nil
		})
	}
	if err != nil {
		return errors.Join(fmt.Errorf("snapshot of %s: %w", v.info.Name, err), close())
	}
	return nil
}

// Cut suspends the volume, and makes all ready for the snapshots that were added for this cut. It stays suspended until
// EndCut, or the deadline: then it goes on without them. ErrGranted: not while another host has the volume open.
func (v *Volume) Cut(ctx context.Context, id uuid.UUID, deadline time.Duration) error {
	c, err := v.beginCut(id)
	if err != nil || c.ready {
		return err
	}
	defer context.AfterFunc(ctx, c.stop)()
	// First without holding the guest up: then there is little left to do.
	if err = v.settleCut(c); err == nil {
		c.held, err = v.suspend(c.ctx, deadline, true)
	}
	if err != nil {
		v.endCut(c)
		return fmt.Errorf("cut of %s: %w", v.info.Name, err)
	}
	settled := make(chan struct{})
	go func() {
		<-c.held.ended
		c.stop()
		<-settled
		if !c.kept {
			v.endCut(c)
		}
	}()
	err = v.settleCut(c)
	v.stack.mu.Lock()
	if err == nil {
		err = c.ctx.Err()
	}
	c.ready = err == nil
	v.stack.mu.Unlock()
	close(settled)
	if err != nil {
		_ = c.held.Resume()
		<-c.over
		return fmt.Errorf("cut of %s: %w", v.info.Name, err)
	}
	select {
	case <-c.held.ended:
		<-c.over
		return fmt.Errorf("cut of %s: %w", v.info.Name, ErrResumed)
	default:
		return nil
	}
}

// beginCut notes a cut, so that there is but one at a time and no grant meanwhile. One that is ready is given back once more.
func (v *Volume) beginCut(id uuid.UUID) (*cut, error) {
	if err := v.moving.undivided("cut"); err != nil {
		return nil, err
	}
	c, again, err := v.stack.noteCut(id)
	if err != nil {
		return nil, fmt.Errorf("cut of %s: %w", v.info.Name, err)
	}
	if again {
		return c, nil
	}
	if err := v.gate.setCutting(true); err != nil { // outside of the stack's lock, which is taken under the gate's
		v.closeCut(c)
		return nil, fmt.Errorf("cut of %s: %w", v.info.Name, err)
	}
	return c, nil
}

// noteCut is the cut from now on, of the snapshots that were added for it; again: it was made ready before.
func (k *stack) noteCut(id uuid.UUID) (c *cut, again bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if c := k.cut; c != nil {
		if c.id == id && c.ready {
			return c, true, nil
		}
		return nil, false, fmt.Errorf("%w: the cut %v is being made", ErrSuspended, c.id)
	}
	c = &cut{id: id, over: make(chan struct{})}
	c.ctx, c.stop = context.WithCancel(context.Background())
	for _, s := range k.all {
		if s.cut == id && s.is(cowfmt.StackPending) {
			c.snapshots = append(c.snapshots, s)
		}
	}
	if len(c.snapshots) == 0 {
		return nil, false, fmt.Errorf("%w: none was added for the cut %v", ErrNoSnapshot, id)
	}
	k.cut = c
	return c, false, nil
}

// settleCut brings what the guest wrote to the disk, and what the table says into the snapshots. Done while the volume is
// suspended it is the cut's. It does not wait for a snapshot's device longer than for the cut: that goes on alone.
func (v *Volume) settleCut(c *cut) error {
	done := make(chan error, 1)
	go func() {
		var all errgroup.Group
		all.Go(func() error { return v.commit.commit(v.table) })
		for _, s := range c.snapshots {
			all.Go(func() error { return v.freeze(c.ctx, s) })
		}
		done <- all.Wait()
	}()
	select {
	case err := <-done:
		return err
	case <-c.ctx.Done():
		return fmt.Errorf("it took too long: %w", c.ctx.Err())
	}
}

// endCut is the end of a cut without its snapshots.
func (v *Volume) endCut(c *cut) {
	for _, s := range c.snapshots {
		if err := v.removeEntry(s); err != nil {
			v.log.Warn().Err(err).Stringer("snapshot", s.id).Msg("the cut is void, its snapshot is in the stack still")
		}
	}
	v.closeCut(c)
}

// closeCut lets a grant begin, and then the next cut, which must not lose its own hold on grants.
func (v *Volume) closeCut(c *cut) {
	c.stop()
	_ = v.gate.setCutting(false)
	v.stack.mu.Lock()
	v.stack.cut = nil
	v.stack.mu.Unlock()
	close(c.over)
}

// EndCut ends a cut: the volume goes on, with keep with its snapshots, which are active once this returns nil. Otherwise, and
// after any error, they are gone, or about to be: the cut is void. Once more is fine.
func (v *Volume) EndCut(ctx context.Context, id uuid.UUID, keep bool) error {
	v.stack.mu.Lock()
	c := v.stack.cut
	if c != nil && c.id != id {
		c = nil
	}
	ready := c != nil && c.ready
	if c != nil && !ready && !keep {
		c.stop()
	}
	v.stack.mu.Unlock()
	switch {
	case c == nil:
		return v.endedCut(ctx, id, keep)
	case !ready && keep:
		return fmt.Errorf("end cut %v of %s: it is not suspended yet", id, v.info.Name)
	case !keep:
		if ready {
			_ = c.held.Resume() // or its deadline was first
		}
		<-c.over
		return v.endedCut(ctx, id, false)
	}
	err := c.held.resume(func() {
		c.kept = true
		for _, s := range c.snapshots {
			s.held.Store(int64(time.Since(c.held.began)))
			s.activate()
		}
		v.remap(func() {})
	})
	if err != nil { // its deadline was first, or who asked for the same before
		<-c.over
		return v.endedCut(ctx, id, true)
	}
	for _, s := range c.snapshots {
		if err = v.st.SetSnapshot(s.id, func(e *cowfmt.StackEntry) { e.State = cowfmt.StackActive }); err != nil {
			break
		}
	}
	if err != nil {
		v.endCut(c)
		return fmt.Errorf("cut %v of %s: %w", id, v.info.Name, err)
	}
	v.closeCut(c)
	return nil
}

// endedCut is EndCut for a cut that is not being made: it was ended before, or never begun. It was kept if the header says so.
func (v *Volume) endedCut(ctx context.Context, id uuid.UUID, keep bool) error {
	if keep {
		if !slices.ContainsFunc(v.st.Header().Stack, func(e cowfmt.StackEntry) bool { return e.CutID == id && e.State == cowfmt.StackActive }) {
			return fmt.Errorf("cut %v of %s: %w", id, v.info.Name, ErrResumed)
		}
		return nil
	}
	for _, s := range v.stack.snapshots() {
		if s.cut != id {
			continue
		}
		if err := v.RemoveSnapshot(ctx, s.id); err != nil {
			return err
		}
	}
	return nil
}

// AbandonCut ends a cut that is being made, without its snapshots.
func (v *Volume) AbandonCut() {
	v.stack.mu.Lock()
	c := v.stack.cut
	ready := c != nil && c.ready
	if c != nil && !ready {
		c.stop()
	}
	v.stack.mu.Unlock()
	if ready {
		_ = c.held.Resume()
	}
}

// awaitCut waits until no cut is being made.
func (v *Volume) awaitCut() {
	v.stack.mu.Lock()
	c := v.stack.cut
	v.stack.mu.Unlock()
	if c != nil {
		<-c.over
	}
}

// removeEntry takes a snapshot out of the header, and then out of the way.
func (v *Volume) removeEntry(s *snapshot) error {
	if err := v.st.RemoveSnapshot(s.id); err != nil && !errors.Is(err, ErrNoSnapshot) {
		return err
	}
	return v.letGoOf(s)
}

// letGoOf is for a snapshot that the header does not list any more.
func (v *Volume) letGoOf(s *snapshot) error {
	s.end(false)
	v.stack.drop(s)
	v.remap(func() {})
	return s.shut(s.timeout)
}

// RemoveSnapshot takes a snapshot out of the stack, durably, and closes its store. One that is not there is fine.
func (v *Volume) RemoveSnapshot(ctx context.Context, id uuid.UUID) error {
	if c := v.stack.cutOf(id); c != nil {
		return fmt.Errorf("remove snapshot %v of %s: %w: the cut %v is being made", id, v.info.Name, ErrSuspended, c.id)
	}
	var s *snapshot
	err := v.change(ctx, "remove a snapshot of", func() error {
		s = v.stack.find(id) // not before: it may just be added
		if err := v.st.RemoveSnapshot(id); !errors.Is(err, ErrNoSnapshot) {
			return err
		}
		return nil
	})
	if err != nil || s == nil {
		return err
	}
	return v.letGoOf(s)
}

// SetCursor says that all bytes of the volume below cursor are kept elsewhere: once that is durable they are not saved in
// this snapshot any more. It never moves back.
func (v *Volume) SetCursor(ctx context.Context, id uuid.UUID, cursor int64) error {
	s := v.stack.find(id)
	switch {
	case s == nil:
		return fmt.Errorf("%s: %w: %v", v.info.Name, ErrNoSnapshot, id)
	case cursor < 0 || cursor > v.info.Size:
		return fmt.Errorf("%s: cursor %d of snapshot %v: the volume has %d bytes", v.info.Name, cursor, id, v.info.Size)
	case !s.is(cowfmt.StackActive):
		return fmt.Errorf("%s: cursor of snapshot %v: it is %s", v.info.Name, id, cowfmt.StackStateName(uint8(s.state.Load())))
	case cursor <= s.cursor.Load():
		return nil
	}
	err := v.change(ctx, "move the cursor of a snapshot of", func() error {
		return v.st.SetSnapshot(id, func(e *cowfmt.StackEntry) { e.Cursor = max(e.Cursor, cursor) })
	})
	if err != nil {
		return err
	}
	for was := s.cursor.Load(); was < cursor && !s.cursor.CompareAndSwap(was, cursor); {
		was = s.cursor.Load()
	}
	return nil
}

// change writes the header on the hand-over's goroutine, between two of its steps: who is about to receive the volume
// must not have looked at a stack that changes after that.
func (v *Volume) change(ctx context.Context, what string, write func() error) error {
	return v.moving.call(ctx, func() error {
		if state := v.moving.now(); !state.MayWrite() || !v.st.Owns() {
			return fmt.Errorf("%s %s: it is being handed over (%v): try again", what, v.info.Name, state)
		}
		if err := write(); err != nil {
			return fmt.Errorf("%s %s: %w", what, v.info.Name, err)
		}
		return nil
	})
}
