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
	PathDaemonPrepare   = "/v1/prepare"   // POST PrepareRequest -> PrepareAnswer, once all volumes are served
	PathDaemonNotice    = "/v1/notice"    // POST NoticeRequest -> {}, at once
	PathDaemonMetrics   = "/metrics"      // GET, Prometheus text
)

// DaemonStatus is what the daemon knows. Volumes are in the order of their names.
type DaemonStatus struct {
	APIVersion int            `json:"apiVersion"`
	Version    string         `json:"version"` // of the program
	PID        int            `json:"pid"`
	Launcher   string         `json:"launcher"` // of engines: systemd, child
	Started    int64          `json:"started"`  // Unix seconds
	Libvirt    LibvirtStatus  `json:"libvirt"`
	Volumes    []VolumeStatus `json:"volumes"` // in use, or failed
	Domains    []DomainStatus `json:"domains"` // what could not be done for a domain; well ones are not here
	Catalogue  int            `json:"catalogue"`
	Counters   Counters       `json:"counters"`

	Backups   []BackupStatus `json:"backups,omitempty"`   // the last of each domain, in the order of their names
	Snapshots []SnapshotNote `json:"snapshots,omitempty"` // in the order of their volumes' names
}

// DomainStatus tells what is wrong with a domain's disks as a whole.
type DomainStatus struct {
	Domain string `json:"domain"` // name
	UUID   string `json:"uuid"`
	Error  string `json:"error"`
}

// Counters count since the daemon started.
type Counters struct {
	Reconciles      uint64 `json:"reconciles"`
	ReconcileErrors uint64 `json:"reconcileErrors"`
	EngineRestarts  uint64 `json:"engineRestarts"` // of engines that ended without having been asked to
	Resumes         uint64 `json:"resumes"`        // of guests that an I/O error had paused
	Reconnects      uint64 `json:"reconnects"`     // to libvirt
	PluginFailures  uint64 `json:"pluginFailures"`
	Vetoes          uint64 `json:"vetoes"` // by plugins

	MigrationsIn     uint64 `json:"migrationsIn"`  // domains with volumes that came, and run here
	MigrationsOut    uint64 `json:"migrationsOut"` // domains with volumes that went
	MigrationsFailed uint64 `json:"migrationsFailed"`
	Takeovers        uint64 `json:"takeovers"` // forced ones
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
	VolumeServed    = "served"    // by an engine, to no domain
	VolumeAttached  = "attached"  // the guest has it
	VolumeDetaching = "detaching" // waiting for the guest to let go of it
	VolumeDetached  = "detached"  // given back
	VolumeStopping  = "stopping"  // its engine flushes, closes the store and ends
	VolumeIncoming  = "incoming"  // open beside its owner, for a domain that is migrating here
	VolumeElsewhere = "elsewhere" // its domain has gone to another host
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
	Old    bool          `json:"old,omitempty"`    // the engine is of another version of the program than the daemon
	Held   string        `json:"held,omitempty"`   // HeldRequest, HeldHydration: served though no domain has it
	Engine *EngineStatus `json:"engine,omitempty"` // what the engine said just now

	Migration *MigrationStatus `json:"migration,omitempty"`

	// UUIDs of snapshots whose stores were not found here before the engine's last start, and without which it does not open the volume.
	MissingSnapshots []string `json:"missingSnapshots,omitempty"`
}

// AttachRequest gives a domain a disk, now and whenever it starts.
type AttachRequest struct {
	Domain  string `json:"domain"`           // name or UUID
	Store   string `json:"store,omitempty"`  // absolute path; the catalogue's if empty
	Volume  string `json:"volume,omitempty"` // checked against the store if both are given
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

// PrepareRequest is the hook's: a domain is about to start, and QEMU will connect to these volumes.
type PrepareRequest struct {
	Domain    string   `json:"domain"` // name
	UUID      string   `json:"uuid"`
	Operation string   `json:"operation"` // prepare, restore, migrate
	Volumes   []string `json:"volumes"`   // names

	Disks []PrepareDisk `json:"disks,omitempty"` // what the XML says of the volumes; for migrate
}

// PrepareDisk is what a domain's XML says of a volume.
type PrepareDisk struct {
	Volume string `json:"volume"`
	Serial string `json:"serial,omitempty"` // of the disk: made from the volume's UUID
	Store  string `json:"store,omitempty"`  // path, from the metadata
}

// PrepareAnswer is empty: what counts is that it came.
type PrepareAnswer struct{}

// NoticeRequest is the hook's: something happened to a domain. Nothing waits for what is done about it.
type NoticeRequest struct {
	Domain    string `json:"domain"` // name
	UUID      string `json:"uuid"`
	Operation string `json:"operation"` // started, stopped, release, reconnect
}
