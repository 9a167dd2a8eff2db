package store

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// Erase ends the store for good, durably: its header copies and slots are zeroed, its data is left. It is refused while
// another host has the store open (ErrOwned) or is opening it (ErrClaimed), and while others depend on it. The caller
// holds the device's lock on this host. After an error the store is there or gone; Erase may be called again.
func (s *Store) Erase(ctx context.Context, me cowfmt.Owner, how Claiming) error {
	if err := s.MayErase(me); err != nil {
		return err
	}
	if s.Header().Owner == nil {
		c, err := s.raise(ctx, me, uuid.Nil, how)
		if err != nil {
			return err
		}
		if err := s.MayErase(me); err != nil {
			if lerr := c.lower(); lerr != nil {
				return fmt.Errorf("%w; and %w", err, lerr)
			}
			return err
		}
	}
	// The sector with each copy's magic first: it is there or not, so that a power cut never leaves half a store. A
	// claim that is raised keeps others out until neither is there.
	for _, off := range cowfmt.HeaderOffsets {
		if err := s.wipe(off, int64(s.dev.Info().BlockSize)); err != nil {
			return err
		}
	}
	return s.wipe(0, cowfmt.MetadataSize)
}

// wipe zeroes a part of the store, durably.
func (s *Store) wipe(off, length int64) error {
	err := zero(s.dev, off, length)
	if err == nil {
		err = s.dev.Flush()
	}
	if err != nil {
		return fmt.Errorf("erase %s: %w", s.Name(), err)
	}
	return nil
}

// MayErase reads the header again and says who needs the store.
func (s *Store) MayErase(me cowfmt.Owner) error {
	if err := s.Reread(); err != nil {
		return err
	}
	if err := s.Elsewhere(me.Host); err != nil {
		return err
	}
	h := s.Header()
	switch {
	case len(h.Grants) > 0:
		return fmt.Errorf("%s: %w: volume %s is granted to %s", s.Name(), blockdev.ErrLocked, h.Name, hostName(h.Grants[0].HostName, h.Grants[0].Host))
	case len(h.Stack) > 0:
		return fmt.Errorf("%s: %w: volume %s has %d snapshots and trackers: remove them first", s.Name(), blockdev.ErrLocked, h.Name, len(h.Stack))
	}
	return nil
}
