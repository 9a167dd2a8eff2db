package store

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// ErrNoClaim says that there is no claim to clear.
var ErrNoClaim = errors.New("no such claim")

// SlotClaim is a claim slot that is not free.
type SlotClaim struct {
	Slot int
	cowfmt.ClaimSlot
	Err error // the slot is damaged, and the rest unknown
}

// Claims reads the claim slots from the device, those that are not free.
func (s *Store) Claims() ([]SlotClaim, error) {
	buf := blockdev.Alloc(cowfmt.ClaimSlots * cowfmt.SlotSize)
	defer blockdev.Free(buf)
	if _, err := s.dev.ReadAt(buf, cowfmt.ClaimOffset); err != nil {
		return nil, fmt.Errorf("read claim slots: %w", err)
	}
	var out []SlotClaim
	for i := range cowfmt.ClaimSlots {
		c, used, err := cowfmt.DecodeClaimSlot(buf[i*cowfmt.SlotSize:][:cowfmt.SlotSize], s.Header().UUID, i)
		if used || err != nil {
			out = append(out, SlotClaim{i, c, err})
		}
	}
	return out, nil
}

// ClearClaims frees the claim slots for which which is true, durably, and returns how many. It is for the operator's
// word that a host is dead, or for a slot that is damaged: a host that lives must not lose its claim.
func (s *Store) ClearClaims(which func(SlotClaim) bool) (cleared int, err error) {
	claims, err := s.Claims()
	if err != nil {
		return 0, err
	}
	for _, c := range claims {
		if which(c) {
			if err := s.writeSlot(c.Slot, nil); err != nil {
				return cleared, err
			}
			cleared++
		}
	}
	if cleared == 0 {
		return 0, fmt.Errorf("%s: %w", s.Name(), ErrNoClaim)
	}
	return cleared, nil
}

// writeSlot makes a claim slot durable; nil frees it.
func (s *Store) writeSlot(slot int, c *cowfmt.ClaimSlot) error {
	b := make([]byte, cowfmt.SlotSize)
	if c != nil {
		var err error
		if b, err = c.Encode(s.Header().UUID, slot); err != nil {
			return fmt.Errorf("%s: %w", s.Name(), err)
		}
	}
	if _, err := s.dev.WriteAt(b, cowfmt.ClaimOffset+int64(slot)*cowfmt.SlotSize); err != nil {
		return fmt.Errorf("write claim slot %d: %w", slot, err)
	}
	if err := s.dev.Flush(); err != nil {
		return fmt.Errorf("write claim slot %d: %w", slot, err)
	}
	return nil
}

// refusal says whose claim is in the way, and what an operator can do.
func (s *Store) refusal(c SlotClaim) error {
	if c.Err != nil {
		return fmt.Errorf("%s: %w: if no host is opening it: virt-cow store claims --clear %d %s", s.Name(), c.Err, c.Slot, s.Name())
	}
	return fmt.Errorf("%s: %w: %s claims it since %s; if that host died while it opened it: virt-cow store claims --clear %s %s",
		s.Name(), ErrClaimed, hostName(c.HostName, c.Host), time.UnixMilli(c.Time).Format(time.RFC3339), c.Host, s.Name())
}

func hostName(name string, id uuid.UUID) string {
	if name == "" {
		return "host " + id.String()
	}
	return fmt.Sprintf("%s (host %s)", name, id)
}
