package store

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

var (
	// ErrGranted says that the store is granted to another host.
	ErrGranted = errors.New("store is granted to another host")
	// ErrNoGrant says that there is no such grant in the header.
	ErrNoGrant = errors.New("no such grant")
)

// Grant lets another host have the volume open, durably, and says in the header that the cache is off: the caller has
// turned it off, and committed the table. The owner only. One grant at a time: ErrGranted names the host that has
// one; the same grant once more is fine. After an error the device may have it: EndGrant takes it back.
func (s *Store) Grant(g cowfmt.Grant) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.mustHold(); err != nil {
		return err
	}
	h := s.Header()
	for i := range h.Grants {
		if h.Grants[i].ID != g.ID {
			return s.granted(&h.Grants[i])
		}
	}
	if h.Progress.Kind == cowfmt.ProgressTakeover {
		return fmt.Errorf("%s: %w", s.Name(), errUnfinished)
	}
	if g.Host == h.Owner.Host {
		return fmt.Errorf("%s: a grant to the owner's own host: %w", s.Name(), cowfmt.ErrInvalid)
	}
	return s.update(func(h *cowfmt.Header) { h.Grants, h.Cache = []cowfmt.Grant{g}, cowfmt.CacheOff })
}

// EndGrant takes a grant back, durably: the receiver is surely not writing, and never will under it. The owner only.
// Where there is no such grant, nor a write of one that failed, it does nothing.
func (s *Store) EndGrant(id uuid.UUID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.mustHold(); err != nil {
		return err
	}
	if findGrant(s.Header(), id) == nil && s.good == [2]bool{true, true} {
		return nil
	}
	return s.update(func(h *cowfmt.Header) { dropGrant(h, id) })
}

// SetCache writes into the header whether the exception cache is on. It can't be while there is a grant: ErrGranted.
// The owner only.
func (s *Store) SetCache(mode cowfmt.CacheMode) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.mustHold(); err != nil {
		return err
	}
	h := s.Header()
	switch {
	case mode == cowfmt.CacheOn && len(h.Grants) > 0:
		return s.granted(&h.Grants[0])
	case mode == h.Cache && s.good == [2]bool{true, true}:
		return nil
	}
	return s.update(func(h *cowfmt.Header) { h.Cache = mode })
}

// HandOver is the owner's last write of the header: the grant's host becomes the owner, with the grant's ID for its
// instance, the epoch moves on, the cache stays off. The caller has drained the volume and sealed it. From the call on
// this handle writes nothing more, to table or header, whatever comes of it: after an error only HandOver may, and
// should, be called again, since the device may have the new owner already.
func (s *Store) HandOver(id uuid.UUID) error {
	s.table.Lock()
	defer s.table.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.Header()
	g := findGrant(h, id)
	if s.standing == former && h.Owner != nil && h.Owner.Instance == id {
		return nil
	}
	if s.standing == former && g != nil { // once more
		if done, err := s.handedOver(id); done || err != nil {
			return err
		}
		s.standing = holder
		defer func() { s.standing = former }()
	}
	if err := s.mustHold(); err != nil {
		return err
	}
	if g == nil {
		return fmt.Errorf("%s: hand over: %w: %v", s.Name(), ErrNoGrant, id)
	}
	err := s.update(func(h *cowfmt.Header) {
		h.Owner = &cowfmt.Owner{
			Host: g.Host, Boot: g.Boot, Instance: g.ID, HostName: g.HostName, Address: g.Address, Since: time.Now().Unix(),
		}
		h.Epoch++
		h.Opens++
		h.Grants, h.Cache = nil, cowfmt.CacheOff
	})
	s.standing = former
	if errors.Is(err, ErrEpoch) { // not the new owner's doing?
		if done, herr := s.handedOver(id); done && herr == nil {
			s.moved = nil
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	return nil
}

// handedOver says whether the device has the owner that a grant makes, and makes sure that it stays. Called with mu held.
func (s *Store) handedOver(id uuid.UUID) (bool, error) {
	now, err := s.peek()
	if err != nil {
		return false, err
	}
	if o := now.Header.Owner; o == nil || o.Instance != id {
		return false, nil
	}
	if err := s.dev.Flush(); err != nil { // its write came to the device, perhaps without its flush
		return false, fmt.Errorf("hand over: %w", err)
	}
	s.adopt(now)
	return true, nil
}

// Receive makes this handle the receiver of a grant, as it is in the header now: it may write what WriteLeaves lets
// it, not the header. ErrNoGrant: there is none of this ID for this host and boot. A host that was made the owner by
// it, its engine having died since, acquires the store as any owner.
func (s *Store) Receive(id, host, boot uuid.UUID) (cowfmt.Grant, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.moved != nil {
		return cowfmt.Grant{}, s.moved
	}
	if s.standing == holder {
		return cowfmt.Grant{}, fmt.Errorf("%s: receive a grant: this handle is the owner", s.Name())
	}
	if _, err := s.reread(); err != nil {
		return cowfmt.Grant{}, err
	}
	g := findGrant(s.Header(), id)
	if g == nil || g.Host != host || g.Boot != boot {
		return cowfmt.Grant{}, fmt.Errorf("%s: %w: %v", s.Name(), ErrNoGrant, id)
	}
	s.standing, s.grant, s.claiming.Shared = receiver, *g, true
	return *g, nil
}

// TakeOwnership reads the header, and where the giver has made this receiver the owner, it is from now on. false: not
// yet. The giver writes two copies: until both are there, or long enough for its write to have come to nothing, the
// header is left to it.
func (s *Store) TakeOwnership(id uuid.UUID) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.moved != nil:
		return false, s.moved
	case s.standing == holder:
		return s.Header().Owner.Instance == id, nil
	case s.standing != receiver || s.grant.ID != id:
		return false, fmt.Errorf("%s: %w: this is not its receiver", s.Name(), ErrNoGrant)
	}
	if err := s.look(); err != nil {
		return false, err
	}
	now, err := s.peek()
	if err != nil {
		return false, err
	}
	if !s.is(now.Header) || now.Header.Owner.Instance != id {
		return false, nil // the next look says what came between
	}
	s.adopt(now)
	if s.half.IsZero() {
		s.half = time.Now()
	}
	if s.good != [2]bool{true, true} && time.Since(s.half) < halfPatience {
		return false, nil
	}
	s.standing, s.grant = holder, cowfmt.Grant{}
	return true, nil
}

// halfPatience is how long a receiver leaves a hand-over that is in one header copy only to the giver.
var halfPatience = 10 * time.Second

// mustHold refuses everybody but the owner. Called with mu held.
func (s *Store) mustHold() error {
	if s.standing != holder && s.moved == nil {
		return s.notOwner()
	}
	return s.mayUpdate()
}

func (s *Store) granted(g *cowfmt.Grant) error {
	return fmt.Errorf("%s: %w: %s has it since %s, under %v", s.Name(), ErrGranted, hostName(g.HostName, g.Host),
		time.Unix(g.Since, 0).Format(time.RFC3339), g.ID)
}

func findGrant(h *cowfmt.Header, id uuid.UUID) *cowfmt.Grant {
	for i := range h.Grants {
		if h.Grants[i].ID == id {
			return &h.Grants[i]
		}
	}
	return nil
}

func dropGrant(h *cowfmt.Header, id uuid.UUID) {
	h.Grants = slices.DeleteFunc(h.Grants, func(g cowfmt.Grant) bool { return g.ID == id })
	if len(h.Grants) == 0 {
		h.Grants = nil
	}
}
