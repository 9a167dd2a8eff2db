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
	s.claiming = how
	if resumed, err = s.mayAcquire(me); err != nil || resumed {
		return resumed, err
	}
	own := func(h *cowfmt.Header) {
		h.Owner = &me
		h.Opens++
	}
	if s.Header().Owner != nil { // this host's, of an earlier boot: no other host writes the header
		err = s.Update(own)
		s.own(err == nil)
		return false, err
	}
	// What can't be written must not leave a claim behind.
	trial := s.Header().Clone()
	own(trial)
	if _, err := trial.Encode(); err != nil {
		return false, fmt.Errorf("%s: header: %w", s.Name(), err)
	}
	c, err := s.raise(ctx, me, how)
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
	if err := s.Update(own); err != nil {
		return false, err
	}
	if c.late() {
		if err := c.confirm(ctx, me); err != nil {
			return false, errors.Join(err, s.named(c.verify()), c.lower())
		}
	}
	if err := c.lower(); err != nil {
		return false, err
	}
	s.own(true)
	return false, nil
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
			s.own(true)
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

func (s *Store) own(mine bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mine = mine
}

// Release clears the owner, durably: the clean close. It claims the store for it: from the first header copy without
// an owner on another host could write itself in, and the second copy would land on what that host wrote. After an
// error this host is still the owner, as far as anybody knows.
func (s *Store) Release() error {
	owner := s.Header().Owner
	if owner == nil {
		return nil
	}
	c, err := s.raise(context.Background(), *owner, s.claiming)
	if err != nil {
		return fmt.Errorf("close: %w", err)
	}
	if err := s.Update(func(h *cowfmt.Header) { h.Owner = nil }); err != nil {
		return err
	}
	s.own(false)
	return c.lower()
}

func ownerName(o *cowfmt.Owner) string { return hostName(o.HostName, o.Host) }
