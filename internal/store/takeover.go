package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// # Forced takeover
//
// A dead host's writes may still be on their way: its engine is gone, a request in a queue is not. What it may write
// late is one header copy (it flushes before it writes the other), sectors of the table, and data. The header copy is
// of an older epoch, and the other copy stays. Sectors go to the table area it knew, which is not read any more. Late
// writes to the data area nothing here can stop: proof that the host is dead must say that its writes have ended, too.
//
//	1 read the table: a damaged sector ends it here, nothing has changed
//	2 raise a claim, as on opening; read the header again: the owner must be exactly the dead one
//	3 header: owner, epoch + 1, no grants, progress takeover, all of the stack broken. From here on an old owner that
//	  lives after all is stopped by its own look at the header, before the table is read
//	4 lower the claim: an owner of this epoch is there, for others to be told of
//	5 read the active area, write all groups that have a flag to the other one, under this epoch; flush
//	6 header: other area active, table epoch = epoch, groups = those written, no progress
//
// Cut off before 3 nothing has happened; between 3 and 6 the active area is the old one still, whole, and whoever comes
// next (the same host by Acquire, another by Takeover) does 5 and 6 under an epoch of its own, so that nothing which a
// cut-off attempt writes late can pass for a later one's.

// ErrNotDead says that the store's owner is another one than that which was proved dead.
var ErrNotDead = errors.New("the owner is not the one that was proved dead: its header has moved on")

// Dead is an owner of which is proved that it will never write again, as its record in the header has it.
type Dead struct {
	Host, Boot, Instance uuid.UUID
	Epoch                uint32
	Receivers            []uuid.UUID // hosts with a grant of which the same is proved
}

// DeadOwner is what a header says of its owner, for Takeover once it is proved dead; zero without one.
func DeadOwner(h *cowfmt.Header) Dead {
	d := Dead{Epoch: h.Epoch}
	if o := h.Owner; o != nil {
		d.Host, d.Boot, d.Instance = o.Host, o.Boot, o.Instance
	}
	return d
}

// Takeover makes me the owner of a store whose owner is dead, durably. The caller holds the device's lock on this
// host, and proof of the death. Not of this host: what it left, Acquire finds. Errors: ErrNotDead; ErrGranted where
// another host that is not proved dead has a grant, and may be writing; ErrClaimed. After any error it may be called
// again, with the same owner; until it returns nil this handle writes nothing else, where it got so far as to write
// the header. A receiver calls it with its grant's ID for me.Instance.
//
// The header says then that the cache is on, which is always safe to say.
func (s *Store) Takeover(ctx context.Context, me cowfmt.Owner, dead Dead, how Claiming) error {
	s.table.Lock()
	defer s.table.Unlock()
	s.mu.Lock()
	moved := s.moved
	s.claiming = how
	s.mu.Unlock()
	if moved != nil {
		return moved
	}
	begun, err := s.mayTakeOver(me, dead)
	if err != nil {
		return err
	}
	if err := s.readTable(ctx); err != nil {
		return err
	}
	if begun {
		left, err := s.Claims()
		if err == nil {
			err = (&claim{Claiming: how, s: s, mine: cowfmt.ClaimSlot{Host: me.Host}}).lowerLeft(left)
		}
		if err != nil {
			return err
		}
		s.stand(holder)
		if s.Header().Progress.Kind == cowfmt.ProgressNone { // all but the flush of its last write
			return s.Update(func(*cowfmt.Header) {})
		}
		return s.finish(true)
	}
	own := func(h *cowfmt.Header) {
		s.begin(h)
		h.Owner, h.Grants, h.Cache = &me, nil, cowfmt.CacheOn
		h.Opens++
	}
	trial := s.Header().Clone()
	own(trial)
	if _, err := trial.Encode(); err != nil {
		return fmt.Errorf("%s: header: %w", s.Name(), err)
	}
	c, err := s.raise(ctx, me, dead.Boot, how)
	if err != nil {
		return err
	}
	if begun, err = s.mayTakeOver(me, dead); err == nil && c.late() {
		err = c.verify()
	}
	if err != nil || begun {
		return errors.Join(s.named(err), c.lower())
	}
	if err := s.change(own); err != nil {
		return err
	}
	s.stand(holder) // for the header: Progress keeps the table
	if c.late() {
		if err := c.confirm(ctx, me); err != nil {
			return errors.Join(err, s.named(c.verify()), c.lower())
		}
	}
	if err := errors.Join(c.lower(), c.lowerDead()); err != nil {
		return err
	}
	return s.finish(false)
}

// TakeoverGrant drops the grant of a receiver that is proved dead but may have been writing: the owner stays, the
// table moves to the other area under the next epoch. After an error it is called again.
func (s *Store) TakeoverGrant(id uuid.UUID) error {
	s.table.Lock()
	defer s.table.Unlock()
	s.mu.Lock()
	err := s.mustHold()
	s.mu.Unlock()
	if err != nil {
		return err
	}
	h := s.Header()
	if h.Progress.Kind == cowfmt.ProgressTakeover && findGrant(h, id) == nil {
		return s.finish(true)
	}
	if findGrant(h, id) == nil {
		return fmt.Errorf("%s: %w: %v", s.Name(), ErrNoGrant, id)
	}
	if err := s.readTable(context.Background()); err != nil {
		return err
	}
	if err := s.Update(func(h *cowfmt.Header) {
		s.begin(h)
		dropGrant(h, id)
	}); err != nil {
		return err
	}
	return s.finish(false)
}

// mayTakeOver reads the header again, and judges it. begun: me has taken it over, but perhaps for the table.
func (s *Store) mayTakeOver(me cowfmt.Owner, dead Dead) (begun bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.standing == holder && s.Header().Progress.Kind != cowfmt.ProgressTakeover {
		return false, fmt.Errorf("%s: take over: this handle is the owner", s.Name())
	}
	now, err := s.reread()
	if err != nil {
		return false, err
	}
	h := s.Header()
	if newer(h.Epoch, h.Sequence, now.Header) { // an owner that was no more dead than that wrote over it
		s.adopt(now)
		s.standing, h = stranger, now.Header
	}
	o := h.Owner
	switch {
	case o != nil && o.Host == me.Host && o.Boot == me.Boot && o.Instance == me.Instance:
		return true, nil
	case h.Progress.Kind != cowfmt.ProgressNone && h.Progress.Kind != cowfmt.ProgressTakeover:
		return false, fmt.Errorf("%s: an operation on it was not finished (%v): finish it with the program that began it", s.Name(), h.Progress)
	case o == nil:
		return false, fmt.Errorf("%s: %w: nobody is, epoch %d", s.Name(), ErrNotDead, h.Epoch)
	case o.Host != dead.Host || o.Boot != dead.Boot || o.Instance != dead.Instance || h.Epoch != dead.Epoch:
		return false, fmt.Errorf("%s: %w: %s is, boot %v, instance %v, epoch %d", s.Name(), ErrNotDead, ownerName(o), o.Boot, o.Instance, h.Epoch)
	case o.Host == me.Host:
		return false, fmt.Errorf("%s: take over: its owner is this host: open it", s.Name())
	}
	for i := range h.Grants {
		if g := &h.Grants[i]; g.Host != me.Host && !slices.Contains(dead.Receivers, g.Host) {
			return false, s.granted(g)
		}
	}
	return false, nil
}

// begin is the header change with which the table's move to the other area begins, under an epoch that no attempt of
// this handle had. The tables of snapshots have no other area to move to, and end.
func (s *Store) begin(h *cowfmt.Header) {
	breakStack(h)
	h.Epoch = max(h.Epoch, s.epoch) + 1
	if h.TableSectors() > 0 && !h.CutLoose {
		h.Progress = cowfmt.Progress{Kind: cowfmt.ProgressTakeover}
	}
}

// finish moves the table to the other area, if the header says that it is on its way. again: it was begun earlier, and
// needs an epoch of its own. Called by the owner, with the table held.
func (s *Store) finish(again bool) error {
	if s.Header().Progress.Kind != cowfmt.ProgressTakeover {
		return nil
	}
	if again {
		if err := s.Update(s.begin); err != nil {
			return err
		}
	}
	groups, err := s.copyTable()
	if err != nil {
		return err
	}
	return s.Update(func(h *cowfmt.Header) {
		h.ActiveTable, h.TableEpoch, h.TableGroups = 1-h.ActiveTable, h.Epoch, nil
		for _, g := range groups {
			h.SetGroupReady(g)
		}
		h.Progress = cowfmt.Progress{}
	})
}

// readTable reads the active area to its end; a sector that can't be trusted is an error.
func (s *Store) readTable(ctx context.Context) error {
	h := s.Header()
	if h.CutLoose {
		return nil
	}
	for g := range h.Groups() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if h.GroupReady(g) {
			if _, err := activeArea(s.dev, h).readGroup(g); err != nil {
				return err
			}
		}
	}
	return nil
}

// copyTable writes the active area's groups that have a flag to the other area, under the header's epoch, durably.
func (s *Store) copyTable() (groups []int, err error) {
	h := s.Header()
	from, to := activeArea(s.dev, h), area{dev: s.dev, h: h, at: h.Layout.Table[1-h.ActiveTable]}
	for g := range h.Groups() {
		if !h.GroupReady(g) {
			continue
		}
		leaves, err := from.readGroup(g)
		if err != nil {
			return nil, err
		}
		if len(leaves) == 0 {
			continue
		}
		if err := to.writeGroup(g, leaves); err != nil {
			return nil, err
		}
		groups = append(groups, g)
	}
	if err := s.dev.Flush(); err != nil {
		return nil, fmt.Errorf("write exception table: %w", err)
	}
	return groups, nil
}
