package store

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// # Who writes what
//
//	standing   how it comes                     header             table
//	stranger   Open, Release                    while nobody owns the store (tools; Acquire checks for itself)
//	holder     Acquire, Takeover,               yes                yes
//	           TakeOwnership
//	receiver   Receive                          no: ErrNotOwner    groups that are ready; else ErrUnready
//	former     HandOver, a takeover             no: ErrNotOwner    no: ErrNotOwner
//	           that did not come to its end
//
// On a device that other hosts may see, a holder and a receiver look before each write of the table whether the
// header is still the one they know: the first block of either copy, which has its epoch and sequence. A holder
// reads both copies whole before each write of the header. Who finds that another host has taken the store gets
// ErrEpoch, then and for everything later. No look stops a write that is on its way: where what is lost so must not be,
// a dead host is fenced first (see Takeover).

var (
	// ErrEpoch says that another host has taken the store over. It is an I/O error to a guest, and stays.
	ErrEpoch = fmt.Errorf("store was taken over by another host: %w", unix.EIO)
	// ErrNotOwner says that the store's header, or its table, isn't this handle's to write.
	ErrNotOwner = errors.New("not the owner of the store")
	// ErrUnready says that a receiver's flags are in a table group that only the owner can initialise.
	ErrUnready = errors.New("table group is not initialised, which only the owner of the store can do")
)

// standing is what this handle is to the store.
type standing uint8

const (
	stranger standing = iota
	holder
	receiver
	former
)

// SetClaiming says how the store is to be claimed at its end, and whether other hosts may see its device, as Acquire and
// Takeover do with theirs.
func (s *Store) SetClaiming(how Claiming) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.claiming = how
}

// Owns says whether this handle is the store's owner, as far as it knows.
func (s *Store) Owns() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.standing == holder && s.moved == nil
}

func (s *Store) stand(as standing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.standing = as
}

// mayUpdate says why this handle may not write the header. Called with mu held.
func (s *Store) mayUpdate() error {
	if s.moved != nil {
		return s.moved
	}
	switch {
	case s.standing == holder && s.claiming.Shared:
		return s.look()
	case s.standing == holder, s.standing == stranger && s.Header().Owner == nil:
		return nil
	}
	return s.notOwner()
}

// mayCommit says why this handle may not write these leaves of the table. Called with the table held, not mu.
func (s *Store) mayCommit(leaves []Leaf) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.moved != nil:
		return s.moved
	case s.standing == former, s.standing == stranger && s.Header().Owner != nil:
		return s.notOwner()
	case s.standing != stranger && s.claiming.Shared:
		if err := s.glance(); err != nil {
			return err
		}
	}
	if s.Header().Progress.Kind == cowfmt.ProgressTakeover {
		return fmt.Errorf("%s: %w", s.Name(), errUnfinished)
	}
	if s.standing != receiver {
		return nil
	}
	for _, l := range leaves {
		if !s.LeafReady(l.Index) {
			return fmt.Errorf("%s: %w (group %d)", s.Name(), ErrUnready, l.Index/groupLeaves)
		}
	}
	return nil
}

var errUnfinished = errors.New("its table is being written to the other area, and that did not come to its end: take it over, or open it, once more")

func (s *Store) notOwner() error {
	by := "nobody is"
	if o := s.Header().Owner; o != nil {
		by = ownerName(o) + " is"
	}
	return fmt.Errorf("%s: %w: %s", s.Name(), ErrNotOwner, by)
}

// glance reads the first block of both header copies. Where they are those of the header that is known, nobody has
// written another one. Called with mu held.
func (s *Store) glance() error {
	h := s.Header()
	known := s.good == [2]bool{true, true}
	for i := range cowfmt.HeaderOffsets {
		if !known {
			break
		}
		b, ok, err := s.brief(i)
		known = err == nil && ok && b.Epoch == h.Epoch && b.Sequence == h.Sequence
	}
	if known {
		return nil
	}
	return s.look()
}

// look reads both header copies, and judges them: is this still who it was? Called with mu held.
func (s *Store) look() error {
	h := s.Header()
	torn := -1 // a copy of a newer header that isn't whole: a takeover that is going on, or was cut off
	for i := range cowfmt.HeaderOffsets {
		b, ok, err := s.brief(i)
		if err == nil && ok && b.Epoch > s.epoch && s.standing == holder {
			torn = i
		}
	}
	now, err := s.peek()
	if err != nil {
		// Not for good: what can't be read now may be readable later.
		return fmt.Errorf("%w: is the store still this host's? %w", unix.EIO, err)
	}
	is := s.is(now.Header)
	switch {
	case !is && now.Header.Epoch < h.Epoch:
		return fmt.Errorf("%s: %w: its header has gone back to epoch %d, it was %d", s.Name(), unix.EIO, now.Header.Epoch, h.Epoch)
	case !is:
		s.moved = fmt.Errorf("%s: %w: %s", s.Name(), ErrEpoch, s.takenBy(now.Header))
	case torn >= 0:
		s.moved = fmt.Errorf("%s: %w: header copy %d is being written under a newer epoch than %d", s.Name(), ErrEpoch, torn, h.Epoch)
	}
	if s.moved != nil {
		return s.moved
	}
	if s.standing == receiver && newer(now.Header.Epoch, now.Header.Sequence, h) {
		s.adopt(now)
		return nil
	}
	same := now.Header.Epoch == h.Epoch && now.Header.Sequence == h.Sequence
	for i := range s.good {
		s.good[i] = s.good[i] && same && now.Problem[i] == nil
	}
	return nil
}

// is says whether a header that was read leaves this handle what it was: a holder the owner, by its own writes only; a
// receiver one with a grant in an unchanged epoch, or the owner.
func (s *Store) is(now *cowfmt.Header) bool {
	o, h := now.Owner, s.Header()
	if s.standing == receiver {
		if now.Epoch == h.Epoch && findGrant(now, s.grant.ID) != nil {
			return true
		}
		return o != nil && o.Host == s.grant.Host && o.Boot == s.grant.Boot && o.Instance == s.grant.ID
	}
	return o != nil && h.Owner != nil && o.Host == h.Owner.Host && o.Boot == h.Owner.Boot &&
		now.Epoch <= s.epoch && now.Sequence <= s.sequence
}

func (s *Store) takenBy(now *cowfmt.Header) string {
	switch {
	case now.Owner == nil:
		return fmt.Sprintf("epoch %d, without an owner now", now.Epoch)
	case s.standing == receiver && now.Epoch == s.Header().Epoch:
		return fmt.Sprintf("the grant %v has ended, %s is the owner", s.grant.ID, ownerName(now.Owner))
	}
	return fmt.Sprintf("epoch %d, %s has it since %s", now.Epoch, ownerName(now.Owner), time.Unix(now.Owner.Since, 0).Format(time.RFC3339))
}

// overtaken looks at a header copy that is about to be written with next, after the other one was: where another host
// has written it meanwhile, that one's header must stay. Called with mu held.
func (s *Store) overtaken(i int, next *cowfmt.Header) error {
	if s.standing != holder || !s.claiming.Shared {
		return nil
	}
	if b, ok, err := s.brief(i); err == nil && ok && newer(b.Epoch, b.Sequence, next) {
		return s.look()
	}
	return nil
}

// brief reads the beginning of a header copy; ok: it is one of this store.
func (s *Store) brief(i int) (b cowfmt.Brief, ok bool, err error) {
	buf := blockdev.Alloc(s.dev.Info().BlockSize)
	defer blockdev.Free(buf)
	if _, err := s.dev.ReadAt(buf, cowfmt.HeaderOffsets[i]); err != nil {
		return b, false, fmt.Errorf("read header copy %d: %w", i, err)
	}
	b, ok = cowfmt.DecodeBrief(buf)
	return b, ok && b.UUID == s.Header().UUID, nil
}
