package engine

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/handover"
)

// begin sets a mover going where the store's header and this host's slot say that it stands.
func (m *mover) begin(ctx context.Context, wanted cowfmt.CacheMode) error {
	v := m.v
	if wanted != 0 {
		m.want(wanted)
	}
	if m.role == giver {
		if o := v.st.Header().Owner; o != nil {
			m.me = *o
		}
		if err := m.resume(); err != nil {
			return err
		}
	}
	if v.recovered && v.table != nil && v.CacheMode() == cowfmt.CacheOff && m.state.MayWrite() {
		// What is only in this host's memory no other host could see.
		if err := v.table.reconcile(ctx); err != nil {
			return err
		}
		if err := v.commit.commit(v.table); err != nil {
			return err
		}
		v.recovered = false
	}
	if m.role == receiver && v.CacheMode() == cowfmt.CacheOn {
		v.setMode(cowfmt.CacheOff)
	}
	if staleTable && m.role == receiver && v.table != nil {
		if err := v.loadStale(); err != nil {
			return err
		}
	}
	v.guard(m.state)
	if err := m.settleCache(); err != nil {
		return err
	}
	m.v.switched.Store(0)
	return nil
}

// resume finds out where a giver stood whose engine died. What its slot said is said again: nobody knows whether that was
// durable.
func (m *mover) resume() error {
	h := m.v.st.Header()
	if len(h.Grants) == 0 {
		return m.findLeftover(h)
	}
	g := h.Grants[0]
	my, err := m.findSlot(m.me.Host, -1)
	if err != nil {
		return err
	}
	// Without a slot of this grant nothing is known of what the receiver saw: only the slot's rules lead back to writing.
	state, says := handover.Sealed, cowfmt.SlotSealed
	if my < 0 {
		if my, _, err = m.v.st.ChooseSlots(m.me.Host, g.Host); err != nil {
			return err
		}
	} else if s, used, err := m.v.st.ReadSlot(my); err != nil {
		return err
	} else if used && s.Grant == g.ID && giverStates[s.State] != 0 {
		state, says = giverStates[s.State], s.State
	}
	m.share()
	if err := m.v.divide(true); err != nil {
		return err
	}
	m.take(g, my, int(g.Slot))
	m.state = state
	if err := m.say(says); err != nil {
		return fmt.Errorf("go on with the grant to %s: %w", m.peerName(), err)
	}
	return nil
}

// findLeftover looks for a grant that is gone from the header, but not from this host's slot: an engine died between the two,
// and whether the receiver had opened the volume was not looked at yet.
func (m *mover) findLeftover(h *cowfmt.Header) error {
	if h.Cache != cowfmt.CacheOff {
		return nil
	}
	slots, err := m.v.st.Slots()
	for _, s := range slots {
		if s.Err == nil && s.Host == m.me.Host && giverStates[s.State] != 0 {
			m.leftover, m.slot = s.Grant, s.Slot
		}
	}
	return err
}

// endLeftover ends such a grant, unless another host says in its slot that it has the volume open by it. That one finds no grant
// in the header, and closes.
func (m *mover) endLeftover() error {
	if m.leftover == uuid.Nil {
		return nil
	}
	slots, err := m.v.st.Slots()
	if err != nil {
		return err
	}
	for _, s := range slots {
		if s.Err == nil && s.Host != m.me.Host && s.Grant == m.leftover {
			return fmt.Errorf("exception cache on: %w: %s has the volume open still, by grant %v, which was ended", ErrGranted, s.HostName, m.leftover)
		}
	}
	if err := m.v.st.WriteSlot(m.slot, nil); err != nil {
		return err
	}
	m.leftover = uuid.Nil
	return nil
}

var giverStates = map[cowfmt.SlotState]handover.State{
	cowfmt.SlotOpen: handover.Open, cowfmt.SlotSealed: handover.Sealed, cowfmt.SlotReclaim: handover.Reclaim, cowfmt.SlotYield: handover.Yield,
	cowfmt.SlotKept: handover.Kept,
}
