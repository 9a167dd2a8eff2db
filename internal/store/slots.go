package store

import (
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// SlotMigration is a migration slot that is not free.
type SlotMigration struct {
	Slot int
	cowfmt.MigrationSlot
	Err error // the slot is damaged, and the rest unknown
}

// Slots reads the migration slots from the device, those that are not free.
func (s *Store) Slots() ([]SlotMigration, error) {
	buf := blockdev.Alloc(cowfmt.MigrationSlots * cowfmt.SlotSize)
	defer blockdev.Free(buf)
	if _, err := s.dev.ReadAt(buf, cowfmt.MigrationOffset); err != nil {
		return nil, fmt.Errorf("read migration slots: %w", err)
	}
	var out []SlotMigration
	for i := range cowfmt.MigrationSlots {
		m, used, err := cowfmt.DecodeMigrationSlot(buf[i*cowfmt.SlotSize:][:cowfmt.SlotSize], s.Header().UUID, i)
		if used || err != nil {
			out = append(out, SlotMigration{i, m, err})
		}
	}
	return out, nil
}

// ReadSlot reads one migration slot from the device, by a read that is issued now; used is false for a free one. A
// damaged one is cowfmt.ErrCorrupt.
func (s *Store) ReadSlot(slot int) (m cowfmt.MigrationSlot, used bool, err error) {
	if err := s.checkSlot(slot); err != nil {
		return m, false, err
	}
	buf := blockdev.Alloc(cowfmt.SlotSize)
	defer blockdev.Free(buf)
	if _, err := s.dev.ReadAt(buf, cowfmt.MigrationOffset+int64(slot)*cowfmt.SlotSize); err != nil {
		return m, false, fmt.Errorf("read migration slot %d: %w", slot, err)
	}
	m, used, err = cowfmt.DecodeMigrationSlot(buf, s.Header().UUID, slot)
	if err != nil {
		err = fmt.Errorf("%s: %w", s.Name(), err)
	}
	return m, used, err
}

// WriteSlot makes a migration slot durable; nil frees it. Its Sequence is counted here, on from what the slot had when
// this handle first wrote it. After an error the device has the old or the new one, and may have the new one later.
func (s *Store) WriteSlot(slot int, m *cowfmt.MigrationSlot) error {
	if err := s.checkSlot(slot); err != nil {
		return err
	}
	s.slots.Lock()
	defer s.slots.Unlock()
	sequence, known := s.numbered[slot]
	if !known {
		was, _, err := s.ReadSlot(slot)
		if err != nil && !errors.Is(err, cowfmt.ErrCorrupt) && !errors.Is(err, cowfmt.ErrInvalid) {
			return err
		}
		sequence = was.Sequence
	}
	b := make([]byte, cowfmt.SlotSize)
	if m != nil {
		next := *m
		sequence++
		next.Sequence = sequence
		var err error
		if b, err = next.Encode(s.Header().UUID, slot); err != nil {
			return fmt.Errorf("%s: %w", s.Name(), err)
		}
	}
	if s.numbered == nil {
		s.numbered = map[int]uint64{}
	}
	s.numbered[slot] = sequence
	if _, err := s.dev.WriteAt(b, cowfmt.MigrationOffset+int64(slot)*cowfmt.SlotSize); err != nil {
		return fmt.Errorf("write migration slot %d: %w", slot, err)
	}
	if err := s.dev.Flush(); err != nil {
		return fmt.Errorf("write migration slot %d: %w", slot, err)
	}
	return nil
}

func (s *Store) checkSlot(slot int) error {
	if slot < 0 || slot >= cowfmt.MigrationSlots {
		return fmt.Errorf("%s: migration slot %d of %d: %w", s.Name(), slot, cowfmt.MigrationSlots, cowfmt.ErrInvalid)
	}
	return nil
}

// ChooseSlots finds the migration slots of the owner's host and of the one it is about to grant the store to: a host's
// own, known by its UUID, or else a free one. If none is free it is one that no grant names, of a host that had the
// volume before. The owner only, who thereby sees that no two hosts take the same.
func (s *Store) ChooseSlots(mine, theirs uuid.UUID) (my, their int, err error) {
	if !s.Owns() {
		return 0, 0, s.notOwner()
	}
	used, err := s.Slots()
	if err != nil {
		return 0, 0, err
	}
	var taken [cowfmt.MigrationSlots]bool // not to be chosen
	for _, g := range s.Header().Grants {
		if g.Host != theirs {
			taken[g.Slot] = true
		}
	}
	own := func(host uuid.UUID) int {
		for _, m := range used {
			if m.Err == nil && m.Host == host && !taken[m.Slot] {
				taken[m.Slot] = true
				return m.Slot
			}
		}
		return -1
	}
	my, their = own(mine), own(theirs)
	busy := taken
	for _, m := range used {
		busy[m.Slot] = true
	}
	fresh := func(host uuid.UUID) int {
		for _, not := range []*[cowfmt.MigrationSlots]bool{&busy, &taken} {
			for i := range cowfmt.MigrationSlots {
				slot := (firstSlot(host) + i) % cowfmt.MigrationSlots
				if !not[slot] {
					taken[slot], busy[slot] = true, true
					return slot
				}
			}
		}
		return -1 // there are more slots than grants and these two
	}
	if my < 0 {
		my = fresh(mine)
	}
	if their < 0 {
		their = fresh(theirs)
	}
	return my, their, nil
}
