package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// BreakSnapshot marks a snapshot broken, durably, in a store that nobody has open: its volume can be opened without that
// snapshot then. The recorded owner stays, so that what its engine left is found as before. The caller holds the device's lock
// on this host. Errors: as Acquire's; ErrGranted; ErrNoSnapshot. After any error it may be called again.
func (s *Store) BreakSnapshot(ctx context.Context, me cowfmt.Owner, id uuid.UUID, how Claiming) error {
	return s.aside(ctx, me, id, how, func() error {
		return s.setSnapshot(id, func(e *cowfmt.StackEntry) { e.State = cowfmt.StackBroken })
	})
}

// DropSnapshot is BreakSnapshot for one that nobody needs any more: it is taken out of the stack.
func (s *Store) DropSnapshot(ctx context.Context, me cowfmt.Owner, id uuid.UUID, how Claiming) error {
	return s.aside(ctx, me, id, how, func() error { return s.removeSnapshot(id) })
}

// aside changes a snapshot's entry as the owner would, without becoming it. Change is called with mu held.
func (s *Store) aside(ctx context.Context, me cowfmt.Owner, id uuid.UUID, how Claiming, change func() error) error {
	resumed, err := s.mayStepIn(me, id)
	if err != nil {
		return err
	}
	if resumed { // an engine of this boot owned it when it died: nobody else may write
		s.SetClaiming(how)
		s.stand(holder)
		defer s.stand(stranger)
		s.mu.Lock()
		defer s.mu.Unlock()
		if err := s.mayUpdate(); err != nil {
			return err
		}
		return change()
	}
	c, err := s.raise(ctx, me, uuid.Nil, how)
	if err != nil {
		return err
	}
	if _, err = s.mayStepIn(me, id); err == nil && c.late() {
		err = c.verify()
	}
	if err != nil {
		return errors.Join(s.named(err), c.lower())
	}
	s.mu.Lock()
	err = change()
	s.mu.Unlock()
	if err != nil { // as on opening: the write may land later, and the claim stays up
		return err
	}
	return c.lower()
}

// mayStepIn reads the header again and judges it. resumed: its owner is an engine of this boot.
func (s *Store) mayStepIn(me cowfmt.Owner, id uuid.UUID) (resumed bool, err error) {
	if resumed, err = s.mayAcquire(me); err != nil {
		return false, err
	}
	h := s.Header()
	switch {
	case len(h.Grants) > 0:
		return false, s.granted(&h.Grants[0])
	case !slices.ContainsFunc(h.Stack, func(e cowfmt.StackEntry) bool { return e.UUID == id }):
		return false, fmt.Errorf("%s: %w: %v", s.Name(), ErrNoSnapshot, id)
	}
	return resumed, nil
}
