package cowfmt

import (
	"encoding/hex"
	"fmt"
	"strings"
)

func (r Role) String() string {
	return enumName("role", int(r), "clone", "snapshot", "state")
}

func (m CacheMode) String() string {
	return enumName("cache", int(m), "on", "off")
}

func (k LocatorKind) String() string {
	return enumName("locator", int(k), "raw", "store", "nbd", "archive")
}

func (k IdentityKind) String() string {
	return enumName("identity", int(k), "store", "wwid", "samples")
}

func (k StackKind) String() string {
	return enumName("kind", int(k), "snapshot", "tracker")
}

func (s SlotState) String() string {
	return enumName("state", int(s), "idle", "open", "sealed", "reclaim", "yield", "active", "kept")
}

// enumName names value n of an enum that begins at 1.
func enumName(what string, n int, names ...string) string {
	if n < 1 || n > len(names) {
		return fmt.Sprintf("%s(%d)", what, n)
	}
	return names[n-1]
}

func (l Locator) String() string {
	return l.Kind.String() + " " + l.Address
}

func (id Identity) String() string {
	switch id.Kind {
	case IdentityStore:
		return fmt.Sprintf("store %v, opened %d times, %d bytes", id.UUID, id.Opens, id.Size)
	case IdentityWWID:
		return fmt.Sprintf("wwid %s, %d bytes", id.WWID, id.Size)
	default:
		return fmt.Sprintf("%v %s, %d bytes", id.Kind, hex.EncodeToString(id.Digest[:]), id.Size)
	}
}

func (o Owner) String() string {
	return fmt.Sprintf("host %s, boot %v, instance %v", hostString(o.HostName, o.Host.String(), o.Address), o.Boot, o.Instance)
}

func (g Grant) String() string {
	return fmt.Sprintf("%v to host %s, boot %v, slot %d", g.ID, hostString(g.HostName, g.Host.String(), g.Address), g.Boot, g.Slot)
}

// StackStateName is the name of a state of a stack entry.
func StackStateName(state uint8) string {
	return enumName("state", int(state), "active", "broken", "pending")
}

// OnErrorName is the name of a policy, as QEMU's copy-before-write filter has it.
func OnErrorName(policy uint8) string {
	return enumName("on-error", int(policy)+1, "break-snapshot", "break-guest-write")
}

func (e StackEntry) String() string {
	state := StackStateName(e.State)
	return fmt.Sprintf("%v %v %s, generation %d, cursor %d, cut %v, %v", e.Kind, e.UUID, state, e.Generation, e.Cursor, e.CutID, e.Locator)
}

func (p Progress) String() string {
	names := [...]string{"none", "create", "reset", "takeover", "resize", "merge", "cut", "remove"}
	if int(p.Kind) >= len(names) {
		return fmt.Sprintf("progress(%d)", p.Kind)
	}
	return names[p.Kind]
}

func (s ClaimSlot) String() string {
	return fmt.Sprintf("host %s, boot %v, instance %v, nonce %#x, time %d", hostString(s.HostName, s.Host.String(), ""), s.Boot, s.Instance, s.Nonce, s.Time)
}

func (s MigrationSlot) String() string {
	return fmt.Sprintf("%v, host %s, grant %v, epoch %d, sequence %d, time %d", s.State, hostString(s.HostName, s.Host.String(), ""), s.Grant, s.Epoch, s.Sequence, s.Time)
}

// String names the store in one line, for messages.
func (h *Header) String() string {
	return fmt.Sprintf("%v %s (%v), %d bytes in chunks of %d, epoch %d, sequence %d", h.Role, h.Name, h.UUID, h.Size, h.ChunkSize, h.Epoch, h.Sequence)
}

// hostString joins what is known of a host: its name, its UUID in brackets, where its daemon answers.
func hostString(name, id, address string) string {
	s := id
	if name != "" {
		s = name + " (" + id + ")"
	}
	if address != "" {
		s += " at " + address
	}
	return strings.TrimSpace(s)
}
