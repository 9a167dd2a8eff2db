package engine

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/handover"
	"github.com/virt-cow/virt-cow/internal/store"
)

// facts is what is known now.
func (m *mover) facts() handover.Facts {
	waiting, _ := m.v.waiting()
	// Between two guests that may both run an old answer is as bad as an old read of a slot. A receiver's only becomes more
	// true with a request.
	if waits := waiting > 0; waits != m.waited {
		if m.waited = waits; waits && m.role == giver {
			m.guest.forget()
		}
	}
	if m.role == giver {
		m.guest.wrote(m.v.gate.written())
	}
	guest, since := m.guest.now()
	return handover.Facts{
		Peer: m.peer, Guest: guest, Clients: m.hasClients(), Waits: waiting > 0,
		Settled: guest == handover.GuestRuns && time.Since(since) >= settledAfter,
		Asked:   m.asked != nil, PeerClosed: m.peerClosed, PeerDead: m.ownerIsDead(), Ready: m.ready(), Mine: m.mine,
		Closing: m.isClosing(),
	}
}

func (m *mover) hasClients() bool {
	count := m.clients.Load()
	return count == nil || (*count)() > 0
}

// settledAfter is how long a guest must have been running here before an engine activates without a write.
const settledAfter = 2 * time.Second

// ready says whether this host could set flags of any chunk without a header write.
func (m *mover) ready() bool {
	if m.v.table == nil {
		return true
	}
	h := m.v.st.Header()
	if h.CutLoose {
		return true
	}
	for g := range h.Groups() {
		if !h.GroupReady(g) {
			return false
		}
	}
	return true
}

func (m *mover) ownerIsDead() bool {
	if m.dead == nil || m.role != receiver {
		return false
	}
	return isDead(m.v.st.Header(), m.dead)
}

// poll reads what other hosts have written.
func (m *mover) poll() error {
	if m.v.lost.Load() != nil {
		return nil
	}
	if m.unwritten != 0 {
		if err := m.say(m.unwritten); err != nil {
			return err
		}
	}
	err := m.read()
	if errors.Is(err, store.ErrEpoch) {
		m.v.lose(err)
		return nil
	}
	return err
}

func (m *mover) read() (err error) {
	switch {
	case m.role == receiver:
		m.refuseMirror()
		if m.mine, err = m.v.st.TakeOwnership(m.grant.ID); err != nil || m.mine || m.state == handover.Idle {
			return err
		}
		return m.readPeer(m.v.st.Header().Owner.Host)
	case m.state == handover.Alone:
		return m.checkEpoch()
	case m.state == handover.Given:
		return nil
	}
	// The grant was taken back and could not be put back.
	if len(m.v.st.Header().Grants) == 0 && !m.fenced {
		if err := m.v.st.Grant(m.grant); err != nil {
			return err
		}
	}
	if err := m.readPeer(m.grant.Host); err != nil {
		return err
	}
	switch m.peer {
	case handover.SlotIdle, handover.SlotActive:
		m.seen = true
	case handover.Absent:
		m.peerClosed = m.peerClosed || m.seen
	}
	return nil
}

// checkEpoch looks whether the store is still this host's, if the guest did something since the last look: rewrites commit
// nothing, and would never find out.
func (m *mover) checkEpoch() error {
	ops := m.v.stats.guestOps()
	if ops == m.lastOps || time.Since(m.looked) < lookEvery || !m.claims.Shared {
		return nil
	}
	m.lastOps, m.looked = ops, time.Now()
	if h := m.v.st.Header(); h.Owner != nil {
		return m.v.st.SetCache(h.Cache) // writes nothing, but looks
	}
	return nil
}

// readPeer reads the slot of the other host; its state is Unread after an error.
func (m *mover) readPeer(host [16]byte) error {
	m.setPeer(handover.Unread)
	if m.fenced {
		m.setPeer(handover.Absent)
		return nil
	}
	if m.role == receiver {
		found, err := m.findSlot(host, m.peerSlot)
		if err != nil {
			return err
		}
		if m.peerSlot = found; found < 0 {
			m.setPeer(handover.Absent)
			return nil
		}
	}
	s, used, err := m.v.st.ReadSlot(m.peerSlot)
	if err != nil {
		return err
	}
	if !used || s.Host != host || s.Grant != m.grant.ID {
		m.setPeer(handover.Absent)
		return nil
	}
	m.setPeer(slotFacts[s.State])
	return nil
}

func (m *mover) setPeer(s handover.Slot) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.peer = s
}

// findSlot finds the slot of a host, known if it is there still; -1: it has none.
func (m *mover) findSlot(host [16]byte, known int) (int, error) {
	if known >= 0 {
		if s, used, err := m.v.st.ReadSlot(known); err == nil && used && s.Host == host {
			return known, nil
		}
	}
	slots, err := m.v.st.Slots()
	if err != nil {
		return -1, err
	}
	for _, s := range slots {
		if s.Err == nil && s.Host == host {
			return s.Slot, nil
		}
	}
	return -1, nil
}

var slotFacts = map[cowfmt.SlotState]handover.Slot{
	cowfmt.SlotIdle: handover.SlotIdle, cowfmt.SlotActive: handover.SlotActive, cowfmt.SlotOpen: handover.SlotOpen,
	cowfmt.SlotSealed: handover.SlotSealed, cowfmt.SlotReclaim: handover.SlotReclaim, cowfmt.SlotYield: handover.SlotYield,
	cowfmt.SlotKept: handover.SlotKept,
}

// say makes this host's slot durable. What the other's says must be read again then.
func (m *mover) say(s cowfmt.SlotState) error {
	m.setPeer(handover.Unread)
	err := m.v.st.WriteSlot(m.slot, &cowfmt.MigrationSlot{
		Host: m.me.Host, HostName: m.me.HostName, State: s, Epoch: m.v.st.Header().Epoch, Grant: m.grant.ID, Time: time.Now().UnixMilli(),
	})
	if err == nil {
		m.unwritten = 0
	}
	return err
}

// mirrorPatience is how long a write is held before it is refused as a mirror's.
const mirrorPatience = 3 * time.Second

// refuseMirror refuses writes that come while the guest is known not to run here: virsh migrate --copy-storage-all, which
// would mirror a disk that both hosts share onto itself. A write is never refused while nobody says what the guest does.
func (m *mover) refuseMirror() {
	if m.state != handover.Idle {
		return
	}
	now := time.Now()
	if before, sure := m.guest.stoppedSince(now.Add(-mirrorPatience)); sure {
		err := fmt.Errorf("write while the guest does not run here: %w", unix.EPERM)
		if n := m.v.refuseHeld(before, err); n > 0 {
			m.v.log.Warn().Int("writes", n).Stringer("grant", m.grant.ID).
				Msg("writes refused: the guest does not run here, so they are a copy of the disk onto itself (--copy-storage-all)")
		}
	}
}
