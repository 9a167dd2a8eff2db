package api

// Paths of the daemon's catalogue of volumes. {name} is a volume's name.
const (
	PathVolumes       = "/v1/volumes"                // GET -> VolumeList; POST CreateRequest -> VolumeInfo
	PathVolumesAdopt  = "/v1/volumes-adopt"          // POST AdoptRequest -> VolumeInfo
	PathVolumesScan   = "/v1/volumes-scan"           // POST ScanRequest -> ScanReport
	PathVolume        = "/v1/volumes/{name}"         // GET -> VolumeInfo
	PathVolumeDelete  = "/v1/volumes/{name}/delete"  // POST DeleteRequest -> VolumeInfo
	PathVolumeStart   = "/v1/volumes/{name}/start"   // POST -> VolumeStatus: served, though no domain has it
	PathVolumeStop    = "/v1/volumes/{name}/stop"    // POST -> VolumeStatus: no longer
	PathVolumeRestart = "/v1/volumes/{name}/restart" // POST -> VolumeStatus: its engine is replaced by a new process
)

// The states of a volume in the catalogue.
const (
	StateCreating = "creating" // begun; undone or finished at the daemon's next start
	StateReady    = "ready"
	StateDeleting = "deleting" // begun; finished at the daemon's next start
	StateMissing  = "missing"  // the last scan did not find its store where it was
)

// VolumeInfo is a volume as the catalogue has it. Sizes are bytes. The catalogue is a cache: truth is in the
// store's header.
type VolumeInfo struct {
	Name      string        `json:"name"`
	UUID      string        `json:"uuid"`
	State     string        `json:"state"`
	Store     string        `json:"store"` // path; of a raw disk that of its state store
	Role      string        `json:"role"`  // clone, state
	Size      int64         `json:"size"`
	ChunkSize int64         `json:"chunkSize"`
	Master    string        `json:"master,omitempty"` // as given to --master
	Origin    string        `json:"origin,omitempty"` // the raw disk of a state store
	CutLoose  bool          `json:"cutLoose,omitempty"`
	Pool      string        `json:"pool,omitempty"`     // libvirt's storage pool that holds the store
	Provider  string        `json:"provider,omitempty"` // plugin that made the store
	Created   int64         `json:"created"`            // Unix seconds
	Status    *VolumeStatus `json:"status,omitempty"`   // nil while nobody uses it
	Error     string        `json:"error,omitempty"`
}

// VolumeList is the catalogue in the order of names.
type VolumeList struct {
	Volumes []VolumeInfo `json:"volumes"`
}

// CreateRequest makes a volume: a clone if it has a master, else an empty disk. Its store is the path Store, or is
// made in a pool, by a provider, or as a file in the folder configured for stores.
type CreateRequest struct {
	Name      string `json:"name"`
	Master    string `json:"master,omitempty"`    // as for `store create`
	From      string `json:"from,omitempty"`      // a volume of the catalogue that is the master
	Size      int64  `json:"size,omitempty"`      // 0: the master's
	ChunkSize int64  `json:"chunkSize,omitempty"` // 0: the default
	Store     string `json:"store,omitempty"`
	Pool      string `json:"pool,omitempty"`
	LUN       string `json:"lun,omitempty"` // of a pool that can't make volumes (iscsi): the one to use
	Provider  string `json:"provider,omitempty"`
	Force     bool   `json:"force,omitempty"` // use a device or LUN although something is on it
}

// AdoptRequest takes a store that exists into the catalogue, or gives a raw disk a state store.
type AdoptRequest struct {
	Store string `json:"store"`          // path; with Raw where the state store is made, "": in the folder for stores
	Raw   string `json:"raw,omitempty"`  // path of a raw disk
	Name  string `json:"name,omitempty"` // checked against a store; of a raw disk, its new volume's

	// Of a raw disk.
	ForceRaw bool `json:"forceRaw,omitempty"` // although it looks like an image or a store
	// Check makes nothing: it asks whether a disk that is to be written to Raw could be adopted then. Nothing need be there yet, and
	// what is there may be nobody's store, raw disk or master.
	Check bool `json:"check,omitempty"`
}

// DeleteRequest removes a volume from the catalogue.
type DeleteRequest struct {
	KeepStore bool `json:"keepStore,omitempty"` // forget it, but leave the store as it is
	Force     bool `json:"force,omitempty"`     // although it can't be known whether a domain that is off has it
}

// ScanRequest rebuilds the catalogue from the stores in these folders and devices, or in the configured ones.
type ScanRequest struct {
	Paths []string `json:"paths,omitempty"`
}

// ScanReport tells what a scan changed: names of volumes; of snapshots "snapshot UUID of volume NAME".
type ScanReport struct {
	Examined int      `json:"examined"` // files and devices
	Found    []string `json:"found,omitempty"`
	Moved    []string `json:"moved,omitempty"`   // known, at another path now
	Missing  []string `json:"missing,omitempty"` // known, not found any more; kept as StateMissing
	Refused  []string `json:"refused,omitempty"` // a sentence each: two stores of one name, damage
}
