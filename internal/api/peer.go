package api

// Paths that a daemon answers other hosts' daemons, over TLS. A volume goes by its UUID: its name may be another one there.
const (
	PathPeerGrant   = "/v1/peer/grant"   // POST PeerGrantRequest -> PeerGrantAnswer, once the grant is durable
	PathPeerSeal    = "/v1/peer/seal"    // POST PeerVolume -> {}: the receiver waits for the giver to stop writing
	PathPeerClosed  = "/v1/peer/closed"  // POST PeerVolume -> {}: the receiver has closed, or will not open
	PathPeerOpen    = "/v1/peer/open"    // POST PeerVolume -> PeerOpenAnswer: the giver asks whether the receiver has it open
	PathPeerRelease = "/v1/peer/release" // POST PeerReleaseRequest -> {}, once the store has no owner any more
	PathPeerHello   = "/v1/peer/hello"   // POST {} -> PeerHello
)

// PeerVolume names a volume, and the grant it is about.
type PeerVolume struct {
	Volume string `json:"volume"` // name, for people
	UUID   string `json:"uuid"`
	Grant  string `json:"grant,omitempty"` // UUID
}

// PeerGrantRequest asks the owner's host for a grant.
type PeerGrantRequest struct {
	Volume    string `json:"volume"` // name, for people
	UUID      string `json:"uuid"`
	Domain    string `json:"domain"` // UUID of the domain that is to come: the owner's must be the same
	Migration string `json:"migration"`
	Grant     Grant  `json:"grant"`
}

// PeerGrantAnswer tells the receiver how the giver's domain has the volume. Off: the domain is off, and nothing was granted; then
// the rest is empty.
type PeerGrantAnswer struct {
	Off     bool   `json:"off,omitempty"`
	Use     Use    `json:"use"`
	Hydrate bool   `json:"hydrate"`
	Rate    int64  `json:"rate,omitempty"` // bytes a second
	Epoch   uint32 `json:"epoch"`
	Frozen  bool   `json:"frozen,omitempty"` // a backup may have left its file systems frozen: thaw it once it runs
}

// PeerOpenAnswer says whether the receiver has the volume open by the grant, or may still open it.
type PeerOpenAnswer struct {
	Open bool   `json:"open"`
	Host string `json:"host"` // UUID of the host that answers: one that has another's address now knows nothing of its grants
	Boot string `json:"boot"` // of the host that answers: a grant to an earlier one is of engines that ended with it
}

// PeerReleaseRequest asks a host to close a volume that nobody uses there. One that somebody uses is refused.
type PeerReleaseRequest struct {
	Volume string `json:"volume"` // name, for people
	UUID   string `json:"uuid"`
	Why    string `json:"why"` // for the log
}

// PeerHello is who answers.
type PeerHello struct {
	Host     string `json:"host"` // UUID
	Boot     string `json:"boot"`
	HostName string `json:"hostName"`
	Version  string `json:"version"` // of the program
}
