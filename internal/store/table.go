package store

import (
	"fmt"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// The table is read and written in leaves of eight sectors: 4096 bytes, the largest logical sector a
// device may have, so that no write of one leaf touches another.
const (
	LeafSectors = 8
	LeafBytes   = LeafSectors * blockdev.SectorSize    // on the device
	LeafFlags   = LeafSectors * sectorFlags            // bytes of flags, LSB first
	LeafChunks  = LeafSectors * cowfmt.FlagsPerSector  // flags
	groupLeaves = cowfmt.SectorsPerGroup / LeafSectors // leaves of a group
	sectorFlags = cowfmt.FlagsPerSector / 8
)

// Leaf is one leaf's flags on their way to the device.
type Leaf struct {
	Index int64
	Flags []byte // LeafFlags bytes
}

// Leaves is how many leaves the table has.
func (s *Store) Leaves() int64 {
	return leaves(s.Header())
}

// LeafReady says whether a leaf's group was initialised; if not, all its flags are clear.
func (s *Store) LeafReady(index int64) bool { return s.Header().GroupReady(int(index / groupLeaves)) }

// ReadLeaf reads one leaf's flags from the device into flags, LeafFlags bytes. A sector that is not what
// was written there is an error, never clear flags.
func (s *Store) ReadLeaf(index int64, flags []byte) error {
	h := s.Header()
	if !h.GroupReady(int(index / groupLeaves)) {
		clear(flags)
		return nil
	}
	return activeArea(s.dev, h).readLeaf(index, flags)
}

// WriteLeaves makes the leaves, sorted by index, durable. A group that is written for the first time is
// written whole, and counts from the header update after it. That only the owner can do: for a receiver it is
// ErrUnready, and nothing is written. ErrEpoch: another host has taken the store.
func (s *Store) WriteLeaves(leaves []Leaf) error {
	if len(leaves) == 0 {
		return nil
	}
	s.table.Lock()
	defer s.table.Unlock()
	if err := s.mayCommit(leaves); err != nil {
		return err
	}
	h := s.Header()
	var fresh []int
	for i := 0; i < len(leaves); {
		group := int(leaves[i].Index / groupLeaves)
		n := i
		for n < len(leaves) && int(leaves[n].Index/groupLeaves) == group {
			n++
		}
		if h.GroupReady(group) {
			if err := activeArea(s.dev, h).writeRuns(leaves[i:n]); err != nil {
				return err
			}
		} else {
			if err := activeArea(s.dev, h).writeGroup(group, leaves[i:n]); err != nil {
				return err
			}
			fresh = append(fresh, group)
		}
		i = n
	}
	if err := s.dev.Flush(); err != nil {
		return fmt.Errorf("commit exception table: %w", err)
	}
	if fresh == nil {
		return nil
	}
	return s.setReady(fresh)
}

func (s *Store) setReady(groups []int) error {
	return s.Update(func(h *cowfmt.Header) {
		for _, g := range groups {
			h.SetGroupReady(g)
		}
	})
}

// ReadyGroups initialises table groups that are not yet, at most max of them, and says whether all are then. It costs
// 1 MiB of writes a group, and holds up WriteLeaves. With all of them ready a receiver never needs the owner to write
// its flags. The owner only.
func (s *Store) ReadyGroups(max int) (all bool, err error) {
	s.table.Lock()
	defer s.table.Unlock()
	if !s.Owns() {
		return false, s.notOwner()
	}
	if err := s.mayCommit(nil); err != nil {
		return false, err
	}
	h, all := s.Header(), true
	var fresh []int
	for g := 0; g < h.Groups() && all; g++ {
		switch {
		case h.CutLoose || h.GroupReady(g):
		case len(fresh) == max:
			all = false
		default:
			if err := activeArea(s.dev, h).writeGroup(g, nil); err != nil {
				return false, err
			}
			fresh = append(fresh, g)
		}
	}
	if fresh == nil {
		return all, nil
	}
	if err := s.dev.Flush(); err != nil {
		return false, fmt.Errorf("initialise table groups: %w", err)
	}
	return all, s.setReady(fresh)
}
