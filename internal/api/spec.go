package api

// SpecVersion is the version of EngineSpec. Files of the version before are read too.
const SpecVersion = 4

// SpecSuffix ends the name of the file, in the daemon's run folder, that holds a volume's EngineSpec.
const SpecSuffix = ".volume"

// EngineSpec is what one engine process is to serve and how. The daemon writes it, as JSON, before it has the
// engine started, and removes it after the engine was stopped: `virt-cow serve --spec FILE` reads it, and by it
// the next daemon knows which engines are its own. The run folder is emptied by a reboot, and so are the engines.
type EngineSpec struct {
	Version int    `json:"version"`
	Volume  string `json:"volume"`
	UUID    string `json:"uuid,omitempty"` // of the volume; another one is refused
	Store   string `json:"store"`          // path
	Socket  string `json:"socket"`         // NBD, path
	Control string `json:"control"`        // path
	Group   string `json:"group,omitempty"`
	Client  *Peer  `json:"client,omitempty"`

	Hydrate  bool  `json:"hydrate,omitempty"`
	Rate     int64 `json:"rate,omitempty"` // of hydration, bytes a second, 0: no limit
	CacheOff bool  `json:"cacheOff,omitempty"`
	ReadOnly bool  `json:"readOnly,omitempty"`

	Address      string     `json:"address,omitempty"`      // where this host's daemon answers others: goes into the header
	Incoming     *Incoming  `json:"incoming,omitempty"`     // opened by a grant of its owner, unless this host is the owner by now
	Dead         *DeadOwner `json:"dead,omitempty"`         // proof that the owner which the header may name is dead
	Epoch        uint32     `json:"epoch,omitempty"`        // a guest has the volume since this one: another means that it went on elsewhere
	Reservations bool       `json:"reservations,omitempty"` // SCSI persistent reservations keep other hosts from the store's LUN

	Snapshots map[string]string `json:"snapshots,omitempty"` // paths of snapshot stores on this host, by UUID, where the header's are not right here

	Devices []string `json:"devices,omitempty"` // block devices it opens: all others are kept from its unit

	Use *Use `json:"use,omitempty"`
}

// Use is what the daemon notes for its successor. The engine does not read it.
type Use struct {
	Target   string `json:"target,omitempty"`
	Bus      string `json:"bus,omitempty"`
	Plugged  bool   `json:"plugged,omitempty"`  // by the daemon, whose it is to take back
	Held     string `json:"held,omitempty"`     // HeldRequest, HeldHydration
	Arrived  bool   `json:"arrived,omitempty"`  // plugins were told that the domain has it
	Hydrated bool   `json:"hydrated,omitempty"` // plugins were told that it is cut loose
	Thaw     bool   `json:"thaw,omitempty"`     // its guest may come frozen from another host
}

// Why a volume is served though no domain has it.
const (
	HeldRequest   = "request"   // until Stop
	HeldHydration = "hydration" // until it is cut loose
)

// Peer is the domain whose QEMU may connect to an engine. All guests of a host share one uid, so the process is
// what counts: libvirt writes QEMU's process id to PIDFile before QEMU runs. Root may always connect.
type Peer struct {
	Domain  string `json:"domain"`  // name
	UUID    string `json:"uuid"`    // of the domain
	PIDFile string `json:"pidFile"` // path
}

// ClientRequest changes whose QEMU may connect; nil: whoever may open the socket. Open connections stay.
type ClientRequest struct {
	Client *Peer `json:"client"`
}

// LatencyBuckets is how many buckets a Histogram has: bucket i counts what took less than 2^i microseconds and no
// less than half of it; the last one also all that took longer.
const LatencyBuckets = 26

// Histogram counts requests by how long they took, from the arrival of their header to the hand-over of their
// reply to the kernel.
type Histogram struct {
	Counts [LatencyBuckets]uint64 `json:"counts"`
	Micros uint64                 `json:"micros"` // the sum
}
