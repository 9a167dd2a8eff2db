package engine

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/handover"
)

// Err is why the volume does not work any more, or nil: a flush failed, or another host has taken the store.
func (v *Volume) Err() error {
	if err := v.lost.Load(); err != nil {
		return *err
	}
	return v.FlushError()
}

// Lost says that another host has taken the store, or shut this one out of it: every request fails.
func (v *Volume) Lost() bool { return v.lost.Load() != nil }

// BeginClose says that the volume is to be closed as soon as it may: not while another host has it open. It goes on
// serving; MayClose tells when.
func (v *Volume) BeginClose() {
	m := v.moving
	m.mu.Lock()
	m.closing = true
	m.mu.Unlock()
	m.wake()
}

// MayClose is closed once the volume may be closed, after BeginClose. What a hand-over still held was refused then.
func (v *Volume) MayClose() <-chan struct{} { return v.moving.ended }

// Close drains the volume, commits its table, gives up the store and closes the master. While another host has the volume
// open it waits until that is over: see BeginClose. On an error what a successor needs is left in place: open the volume
// again. The device stays the caller's to close.
func (v *Volume) Close() error {
	v.BeginClose()
	<-v.MayClose()
	if v.closed.Swap(true) {
		return os.ErrClosed
	}
	return v.end(v.moving.last)
}

// Abandon ends the volume as if its process were killed, but for requests inside, which it waits for: store, slots and
// exception cache stay as they are, and the next engine goes on from there.
func (v *Volume) Abandon() error {
	v.moving.kill()
	if v.closed.Swap(true) {
		return os.ErrClosed
	}
	return v.end(v.moving.last)
}

// end does what the table of the hand-over says last; Nothing where it has said nothing.
func (v *Volume) end(do handover.Action) error {
	if v.hydrator != nil {
		v.hydrator.shut()
	}
	v.closeGate()
	if v.stopTicks != nil {
		v.stopTicks()
		v.ticks.Wait()
	}
	var err error
	over := do != handover.Nothing // nothing in the cache is needed any more
	switch {
	case v.info.ReadOnly:
		over = false // it has no file
	case do == handover.DoRelease:
		if err = v.commit.commit(v.table); err == nil {
			err = v.st.Release()
		}
	case do == handover.DoClose:
		err = v.moving.closeReceiver()
	}
	return errors.Join(err, v.cache.close(over && err == nil), v.closeMaster())
}

// closeReceiver is DoClose: the giver may have made this host the owner before it saw the slot.
func (m *mover) closeReceiver() error {
	if err := m.v.st.WriteSlot(m.slot, nil); err != nil {
		return err
	}
	mine, err := m.v.st.TakeOwnership(m.grant.ID)
	if err != nil {
		m.v.log.Warn().Err(err).Msg("closed; whether the volume was handed over meanwhile is not known")
		return nil
	}
	if mine {
		return m.v.st.Release()
	}
	return nil
}

// stillborn ends a mover that never ran.
func (m *mover) stillborn() {
	m.last = handover.DoLeave
	close(m.ended)
}

// SetClients says how to find out whether anybody is connected. Until then the volume takes it that somebody is.
func (v *Volume) SetClients(count func() int) { v.moving.clients.Store(&count) }

// begin sets a mover going where the store's header and this host's slot say that it stands.
func (m *mover) begin(ctx context.Context, wanted cowfmt.CacheMode) error {
	v := m.v
	if wanted != 0 {
		m.wanted = wanted
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
