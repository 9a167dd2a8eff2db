package api

// CacheRequest switches the exception cache: on, off. It returns once that is durable in the header.
type CacheRequest struct {
	Mode string `json:"mode"`
}

// The modes of the exception cache.
const (
	CacheOn  = "on"
	CacheOff = "off"
)

// Owner is the engine that the header names as the one that may write it.
type Owner struct {
	Host     string `json:"host"` // UUID
	Boot     string `json:"boot"` // its boot id
	Instance string `json:"instance"`
	HostName string `json:"hostName,omitempty"`
	Address  string `json:"address,omitempty"` // where its daemon answers other hosts
	Since    int64  `json:"since"`             // Unix seconds
}

// Grant is the owner's permission for one other host to have the volume open.
type Grant struct {
	ID       string `json:"id"`   // UUID, of the receiver's engine as well
	Host     string `json:"host"` // UUID
	Boot     string `json:"boot"` // its boot id
	HostName string `json:"hostName,omitempty"`
	Address  string `json:"address,omitempty"`
	Since    int64  `json:"since"` // Unix seconds
}

// GrantRequest asks an owner's engine for a grant. Since is ignored. It switches the cache off and stops hydration first.
type GrantRequest struct {
	Grant
}

// Why a grant is over.
const (
	GrantClosed = "closed" // the receiver says that it has closed the volume, and will not open it by this grant
	GrantFenced = "fenced" // its host is proven dead
)

// GrantEndRequest ends a grant. The engine refuses while the receiver has not let go of its slot, unless it is fenced. Once none
// is left the cache is on again, and hydration as it was.
type GrantEndRequest struct {
	ID  string `json:"id"`
	Why string `json:"why"`
}

// What a domain is doing on an engine's host.
const (
	GuestRuns    = "runs"    // it is here for good: neither arriving nor leaving
	GuestLeaves  = "leaves"  // it runs here, and is being migrated to another host
	GuestStopped = "stopped" // suspended by a migration, still arriving, or not there
	GuestUnknown = "unknown"
)

// GuestRequest tells an engine what libvirt says of its domain. It counts only if libvirt was asked after the engine came to its
// Turn, and for GuestFor; then the engine takes it as unknown.
type GuestRequest struct {
	State string `json:"state"`
	Turn  uint64 `json:"turn"` // of the engine's Handover, as it was before libvirt was asked
}

// GuestFor is how long, in seconds, what an engine was told of its guest holds.
const GuestFor = 10

// DeadOwner is the proof that the owner which the header names is dead: its engine will never write again. Only exactly this
// one is taken over from.
type DeadOwner struct {
	Host     string `json:"host"`     // UUID
	Instance string `json:"instance"` // UUID
	Epoch    uint32 `json:"epoch"`
	By       string `json:"by"` // who says so: operator, fence command, reservation
}

// ByReservation is the proof that the LUN gives itself: the engine that takes over shuts the owner out of it first.
const ByReservation = "reservation"

// The roles in a hand-over.
const (
	RoleGiver    = "giver"
	RoleReceiver = "receiver"
)

// Handover is where an engine stands in a hand-over; the states are those of docs/MIGRATION.md.
type Handover struct {
	Role      string `json:"role"`
	State     string `json:"state"`               // alone, open, sealed, reclaim, yield, given; idle, active, writer, owner
	Since     int64  `json:"since"`               // Unix milliseconds: of the state
	Grant     string `json:"grant"`               // UUID
	Peer      string `json:"peer"`                // host name of the other
	PeerHost  string `json:"peerHost"`            // its UUID
	PeerState string `json:"peerState,omitempty"` // what its slot said last
	Guest     string `json:"guest"`               // what this engine knows of its domain
	Turn      uint64 `json:"turn"`                // moves on whenever what was known of the domain is too old to decide by
	Held      int    `json:"held,omitempty"`      // requests that wait
	Wrote     bool   `json:"wrote,omitempty"`     // the receiver has written to the volume
	Waits     string `json:"waits,omitempty"`     // for what, in words, if anybody has to do something
}

// Divided says whether another host has, or may have, the volume open. Of a hand-over that is over the status still tells.
func (s *EngineStatus) Divided() bool {
	return len(s.Grants) > 0 || s.Handover != nil && s.Handover.State != "alone" && s.Handover.State != "owner"
}

// Incoming has an engine open a volume that another host owns, by a grant.
type Incoming struct {
	Grant string `json:"grant"` // UUID
}
