package api

// DaemonVersion is the version of the daemon's control API.
const DaemonVersion = 1

// DaemonSocket is the name of the daemon's control socket in its run folder.
const DaemonSocket = "daemon.sock"

// Paths of the daemon's control socket.
const (
	PathDaemonStatus    = "/v1/status"    // GET -> DaemonStatus
	PathDaemonAttach    = "/v1/attach"    // POST AttachRequest -> VolumeStatus
	PathDaemonDetach    = "/v1/detach"    // POST DetachRequest -> VolumeStatus
	PathDaemonHydration = "/v1/hydration" // POST VolumeHydrationRequest -> VolumeStatus
)

// DaemonStatus is what the daemon knows. Volumes are in the order of their names.
type DaemonStatus struct {
	APIVersion int            `json:"apiVersion"`
	Version    string         `json:"version"` // of the program
	PID        int            `json:"pid"`
	Libvirt    LibvirtStatus  `json:"libvirt"`
	Volumes    []VolumeStatus `json:"volumes"`
}

// LibvirtStatus tells of the connection to libvirt.
type LibvirtStatus struct {
	Connected bool   `json:"connected"`
	Error     string `json:"error,omitempty"` // why not
}

// The states of a volume.
const (
	VolumeOff       = "off"       // its domain does not run
	VolumeStarting  = "starting"  // its engine is being started, or its disk attached
	VolumeAttached  = "attached"  // the guest has it
	VolumeDetaching = "detaching" // waiting for the guest to let go of it
	VolumeDetached  = "detached"  // given back
	VolumeFailed    = "failed"    // Error says why; tried again
)

// VolumeStatus tells of one volume and of the domain that has it.
type VolumeStatus struct {
	Volume string        `json:"volume"`
	Store  string        `json:"store"`
	Domain string        `json:"domain,omitempty"`
	Target string        `json:"target,omitempty"`
	State  string        `json:"state"`
	Error  string        `json:"error,omitempty"`
	PID    int           `json:"pid,omitempty"`    // of its engine process
	Engine *EngineStatus `json:"engine,omitempty"` // what the engine said just now
}

// AttachRequest gives a domain a disk, now and whenever it starts.
type AttachRequest struct {
	Domain  string `json:"domain"`           // name or UUID
	Store   string `json:"store"`            // absolute path
	Volume  string `json:"volume,omitempty"` // checked against the store if given
	Target  string `json:"target,omitempty"` // the first free one if empty
	Bus     string `json:"bus,omitempty"`    // virtio if empty
	Hydrate bool   `json:"hydrate"`
	Rate    int64  `json:"rate,omitempty"` // of hydration, bytes a second, 0: no limit
}

// DetachRequest takes a volume from its domain for good.
type DetachRequest struct {
	Domain string `json:"domain"` // name or UUID
	Volume string `json:"volume"`
}

// VolumeHydrationRequest changes the hydration of a volume, now and for its later starts.
type VolumeHydrationRequest struct {
	Volume string `json:"volume"`
	HydrationRequest
}
