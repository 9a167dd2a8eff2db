package store

import (
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// Acquire makes me the owner, durably. The caller holds the device's lock on this host, so an owner of
// this host and boot is dead: resumed is then true, the owner record stays as it is, and the caller goes
// on with what that engine left in this host's memory. An owner of this host but an earlier boot died
// with it. Another host's owner is ErrOwned.
//
// The header is read again first: much may have happened on other hosts, or on this one by another path,
// since the store was opened.
func (s *Store) Acquire(me cowfmt.Owner) (resumed bool, err error) {
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
	err = s.Update(func(h *cowfmt.Header) {
		h.Owner = &me
		h.Opens++
	})
	s.own(err == nil)
	return false, err
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

// Release clears the owner, durably: the clean close.
func (s *Store) Release() error {
	err := s.Update(func(h *cowfmt.Header) { h.Owner = nil })
	if err == nil {
		s.own(false)
	}
	return err
}

func ownerName(o *cowfmt.Owner) string {
	if o.HostName == "" || o.Host == uuid.Nil {
		return "host " + o.Host.String()
	}
	return fmt.Sprintf("%s (host %s)", o.HostName, o.Host)
}
