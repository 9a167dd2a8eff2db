package api

// A disk that the image node can't see is read by a host that does: a process there reads it as the node would, and exports it
// read-only over NBD with TLS.

// Paths that a daemon answers the image node about that, over TLS.
const (
	PathPeerPull     = "/v1/peer/pull"      // PeerPull -> PullAnswer: a new export of a volume as of the cut
	PathPeerPullLook = "/v1/peer/pull-look" // PeerPull -> PullAnswer: a look at the volume's header by the process of that export
	PathPeerOwner    = "/v1/peer/owner"     // PeerSnapshot -> PeerStanding, by the volume's header
)

// PeerPull asks for a volume as of the cut. Its Cursor is, for a look, PullLook's Released.
type PeerPull struct {
	PeerSnapshot
	Size   int64  `json:"size"`             // bytes
	Export string `json:"export,omitempty"` // which is meant
}

// PeerStanding is who has a volume, by its header.
type PeerStanding struct {
	Owned   bool   `json:"owned"`
	Epoch   uint32 `json:"epoch"`
	Address string `json:"address,omitempty"` // of the owner's daemon
	Name    string `json:"name,omitempty"`    // of its host, for people
}

// PullAnswer tells of an export: it is at the host that was asked.
type PullAnswer struct {
	PeerStanding
	Export string `json:"export,omitempty"` // its name, another one each time
	Port   int    `json:"port,omitempty"`
	Cursor int64  `json:"cursor"`          // bytes below it are not kept any more
	Error  string `json:"error,omitempty"` // then the rest is empty
	Final  bool   `json:"final,omitempty"` // the error can't get better: the snapshot is broken, gone, or of something else
	Broken bool   `json:"broken,omitempty"`
}

// PullSpec is what the process of an export is given, as the first line of its input. It answers with a PullAnswer, and then so each
// PullLook, a line each. It ends with its input.
type PullSpec struct {
	Disk   ManifestDisk `json:"disk"` // Places are those on this host: nothing else is opened
	Export string       `json:"export"`
	Node   string       `json:"node"`   // name or address of the one host that may connect
	Listen string       `json:"listen"` // IP address; "": all
	From   int          `json:"from"`   // ports: the first that is free
	To     int          `json:"to"`
	CA     string       `json:"ca"`
	Cert   string       `json:"cert"`
	Key    string       `json:"key"`
}

// PullLook asks for a look at the volume's header.
type PullLook struct {
	Released int64 `json:"released"` // -1: no look, but what the last ones have found
}
