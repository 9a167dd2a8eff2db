package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// Acquire makes me the owner, durably. The caller holds the device's lock on this host, so an owner of
// this host and boot is dead: resumed is then true, the owner record stays as it is, and the caller goes
// on with what that engine left in this host's memory. An owner of this host but an earlier boot died
// with it. Another host's owner is ErrOwned, another host that is just opening the store ErrClaimed.
//
// The header is read again first: much may have happened on other hosts, or on this one by another path,
// since the store was opened. The context ends the wait for another host's claim.
func (s *Store) Acquire(ctx context.Context, me cowfmt.Owner, how Claiming) (resumed bool, err error) {
	s.table.Lock()
	defer s.table.Unlock()
	s.mu.Lock()
	s.claiming, err = how, s.moved
	s.mu.Unlock()
	if err != nil {
		return false, err
	}
	if resumed, err = s.acquire(ctx, me, how); err != nil {
		return false, err
	}
	s.mu.Lock()
	mend := s.good != [2]bool{true, true}
	s.mu.Unlock()
	if mend { // perhaps of a takeover that was cut off, which this owner outlived
		if err := s.change(func(*cowfmt.Header) {}); err != nil {
			return false, err
		}
	}
	s.stand(holder)
	if resumed && how.Shared { // a claim that the dead engine left up would keep out who gets the store from this one
		c := &claim{Claiming: how, s: s, mine: cowfmt.ClaimSlot{Host: me.Host}}
		claims, err := s.Claims()
		if err == nil {
			err = c.lowerLeft(claims)
		}
		if err != nil {
			return false, err
		}
	}
	return resumed, s.finish(true)
}

func (s *Store) acquire(ctx context.Context, me cowfmt.Owner, how Claiming) (resumed bool, err error) {
	if resumed, err = s.mayAcquire(me); err != nil || resumed {
		return resumed, err
	}
	own := func(h *cowfmt.Header) {
		h.Owner = &me
		h.Opens++
	}
	// What can't be written must not leave a claim behind.
	trial := s.Header().Clone()
	own(trial)
	if _, err := trial.Encode(); err != nil {
		return false, fmt.Errorf("%s: header: %w", s.Name(), err)
	}
	c, err := s.raise(ctx, me, uuid.Nil, how)
	if err != nil {
		return false, err
	}
	if resumed, err = s.mayAcquire(me); err == nil && c.late() {
		err = c.verify()
	}
	if err != nil || resumed {
		return resumed, errors.Join(s.named(err), c.lower())
	}
	// A write that fails may land all the same, later: the claim stays up then, and keeps other hosts out. This
	// one's next attempt takes it over.
	if err := s.change(own); err != nil {
		return false, err
	}
	if c.late() {
		if err := c.confirm(ctx, me); err != nil {
			return false, errors.Join(err, s.named(c.verify()), c.lower())
		}
	}
	return false, c.lower()
}

// named is err, with a rival's claim told as people need it.
func (s *Store) named(err error) error {
	var other rival
	if errors.As(err, &other) {
		return s.refusal(other.SlotClaim)
	}
	return err
}

// mayAcquire reads the header again and judges its owner. resumed: that is an engine of this boot.
func (s *Store) mayAcquire(me cowfmt.Owner) (resumed bool, err error) {
	if err := s.Reread(); err != nil {
		return false, err
	}
	if err := s.Elsewhere(me.Host); err != nil {
		return false, err
	}
	if owner := s.Header().Owner; owner != nil {
		if owner.Boot == me.Boot {
			return true, nil
		}
		if owner.HostName != me.HostName && owner.HostName != "" && me.HostName != "" {
			return false, s.owned(owner, fmt.Sprintf("that is not %s: if both have one machine id, give each its own with --host-uuid; "+
				"if this host was renamed, name it so once more", me.HostName))
		}
	}
	return false, nil
}

// Elsewhere is ErrOwned where another host than this one is the owner, as far as the header was read.
func (s *Store) Elsewhere(host uuid.UUID) error {
	if owner := s.Header().Owner; owner != nil && owner.Host != host {
		return s.owned(owner, "stop the volume there first")
	}
	return nil
}

func (s *Store) owned(by *cowfmt.Owner, advice string) error {
	return fmt.Errorf("%s: %w: %s has it since %s; %s", s.Name(), ErrOwned, ownerName(by),
		time.Unix(by.Since, 0).Format(time.RFC3339), advice)
}

// Release clears the owner, durably: the clean close. It claims the store for it: from the first header copy without
// an owner on another host could write itself in, and the second copy would land on what that host wrote. After an
// error this host is still the owner, as far as anybody knows. While another host has a grant it is ErrGranted.
func (s *Store) Release() error {
	s.table.Lock()
	defer s.table.Unlock()
	h := s.Header()
	owner := h.Owner
	if owner == nil {
		return nil
	}
	s.mu.Lock()
	how, err := s.claiming, s.mustHold()
	s.mu.Unlock()
	switch {
	case err != nil:
		return err
	case len(h.Grants) > 0:
		return s.granted(&h.Grants[0])
	case h.Progress.Kind == cowfmt.ProgressTakeover:
		return fmt.Errorf("%s: %w", s.Name(), errUnfinished)
	}
	c, err := s.raise(context.Background(), *owner, uuid.Nil, how)
	if err != nil {
		return fmt.Errorf("close: %w", err)
	}
	if err := s.Update(func(h *cowfmt.Header) { h.Owner = nil }); err != nil {
		return err
	}
	s.stand(stranger)
	return c.lower()
}

func ownerName(o *cowfmt.Owner) string { return hostName(o.HostName, o.Host) }
