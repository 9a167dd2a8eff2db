package engine

import (
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/handover"
)

// Handover is where a volume stands in a hand-over between two hosts.
type Handover struct {
	Role      string // giver, receiver
	State     handover.State
	Since     time.Time // of the state
	Grant     uuid.UUID
	Peer      string // host name of the other
	PeerHost  uuid.UUID
	PeerState handover.Slot // what its slot said last
	Guest     handover.Guest
	Turn      uint64 // what is said of the guest counts only if it was found out since this one
	Held      int    // requests that wait
	Wrote     bool   // receiver: it may have written to the volume
	Waits     string // for what, in words, if anybody has to do something
}

// Handover tells where the volume stands in a hand-over: nil where no other host has, or is to have, or has had it open.
func (v *Volume) Handover() *Handover {
	m := v.moving
	m.mu.Lock()
	past := m.past
	alone := m.role == giver && m.state == handover.Alone
	m.mu.Unlock()
	switch {
	case !alone:
		return m.tell()
	case past == nil:
		return nil
	}
	out := *past
	out.Guest, _ = m.guest.now()
	return &out
}

func (m *mover) tell() *Handover {
	writes := m.v.gate.written() // before anybody asks libvirt
	held, oldest := m.v.waiting()
	guest, _ := m.guest.now()
	m.mu.Lock()
	defer m.mu.Unlock()
	out := &Handover{
		Role: m.role.String(), State: m.state, Since: m.since, Grant: m.grant.ID, Peer: m.grant.HostName, PeerHost: m.grant.Host,
		PeerState: m.peer, Guest: guest, Turn: m.guest.turnNow(writes), Held: held, Wrote: m.wrote,
	}
	if m.role == receiver {
		out.Peer, out.PeerHost = m.giver.HostName, m.giver.Host
	}
	// A guest that runs here with a giver that does not stop will have to wait as soon as it writes.
	stuck := m.state == handover.Active && time.Since(m.since) > patience
	if held > 0 && time.Since(oldest) > patience || stuck || m.closing || m.trouble != nil {
		out.Waits = m.waits(out)
	}
	return out
}

// patience is how long requests may wait before anybody is told of it.
const patience = 3 * time.Second

// waits says for what. Called with mu held.
func (m *mover) waits(h *Handover) string {
	peer := h.Peer
	if peer == "" {
		peer = "host " + h.PeerHost.String()
	}
	fence := fmt.Sprintf("if it is dead: virt-cow host fenced %s", peer)
	switch {
	case m.trouble != nil:
		return m.trouble.Error()
	case h.State == handover.Idle && h.Guest == handover.GuestUnknown:
		return "writes wait: nobody says whether the guest runs here: is the virt-cow daemon running?"
	case h.State == handover.Idle:
		return "writes wait until the guest runs here"
	case h.State == handover.Active && (m.peer == handover.SlotSealed || m.peer == handover.SlotYield):
		return fmt.Sprintf("writes wait until %s has handed the volume over; %s", peer, fence)
	case h.State == handover.Active && m.peer == handover.SlotKept:
		return fmt.Sprintf("writes wait for ever: the guest has stayed on %s and runs there: end it here, with `virsh destroy`", peer)
	case h.State == handover.Active:
		return fmt.Sprintf("writes wait: %s has not stopped writing; %s", peer, fence)
	case m.closing && h.Role == giver.String() && h.State != handover.Given:
		return fmt.Sprintf("to be closed once %s has taken the volume over or closed it; %s", peer, fence)
	case m.closing && h.State == handover.Writer:
		return fmt.Sprintf("to be closed once %s has handed the volume over; %s", peer, fence)
	case h.Held > 0:
		return fmt.Sprintf("requests wait: the volume is with %s, or about to be; %s", peer, fence)
	}
	return ""
}

// peerName is the other host's name for people. Called by the runner, or with mu held.
func (m *mover) peerName() string {
	name, host := m.grant.HostName, m.grant.Host
	if m.role == receiver {
		name, host = m.giver.HostName, m.giver.Host
	}
	if name == "" {
		return "host " + host.String()
	}
	return name
}

var slotNames = map[handover.Slot]string{
	handover.SlotIdle: "idle", handover.SlotActive: "active", handover.SlotOpen: "open", handover.SlotSealed: "sealed",
	handover.SlotReclaim: "reclaim", handover.SlotYield: "yield", handover.SlotKept: "kept", handover.Absent: "absent",
}

func slotName(s handover.Slot) string { return slotNames[s] }

// Name is the slot's state as in docs/MIGRATION.md, "" where it was not read.
func (h *Handover) PeerSays() string { return slotName(h.PeerState) }
