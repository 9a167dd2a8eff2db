package store

import (
	"context"
	"errors"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// BreakSnapshot marks a snapshot broken, durably, in a store that nobody has open: its volume can be opened without that
// snapshot then. The recorded owner stays, so that what its engine left is found as before. The caller holds the device's lock
// on this host. Errors: as Acquire's; ErrGranted; ErrNoSnapshot. After any error it may be called again.
func (s *Store) BreakSnapshot(ctx context.Context, me cowfmt.Owner, id uuid.UUID, how Claiming) error {
	resumed, err := s.mayBreak(me)
	if err != nil {
		return err
	}
	broken := func(e *cowfmt.StackEntry) { e.State = cowfmt.StackBroken }
	if resumed { // an engine of this boot owned it when it died: nobody else may write
		s.SetClaiming(how)
		s.stand(holder)
		defer s.stand(stranger)
		return s.SetSnapshot(id, broken)
	}
	c, err := s.raise(ctx, me, uuid.Nil, how)
	if err != nil {
		return err
	}
	if _, err = s.mayBreak(me); err == nil && c.late() {
		err = c.verify()
	}
	if err != nil {
		return errors.Join(s.named(err), c.lower())
	}
	// As on opening: a claim stays up after a write that failed.
	s.mu.Lock()
	err = s.setSnapshot(id, broken)
	s.mu.Unlock()
	if errors.Is(err, ErrNoSnapshot) || err == nil {
		err = errors.Join(err, c.lower())
	}
	return err
}

// mayBreak reads the header again and judges its owner. resumed: that is an engine of this boot.
func (s *Store) mayBreak(me cowfmt.Owner) (resumed bool, err error) {
	if resumed, err = s.mayAcquire(me); err != nil {
		return false, err
	}
	if h := s.Header(); len(h.Grants) > 0 {
		return false, s.granted(&h.Grants[0])
	}
	return resumed, nil
}
