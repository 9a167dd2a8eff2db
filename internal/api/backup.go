package api

// Paths that an image node answers: hosts' daemons over TLS, commands on its own host on a unix socket (NodeSocket). All are POST.
const (
	PathNodeReserve = "/v1/node/reserve" // ReserveRequest -> JobStatus: a job that waits for its cut. ErrorBusy: the domain has one
	PathNodeStart   = "/v1/node/start"   // StartRequest -> JobStatus: the cut is made, copy
	PathNodeJobs    = "/v1/node/jobs"    // {} -> JobList
	PathNodeJob     = "/v1/node/job"     // JobRequest -> JobStatus; with Wait once it has changed
	PathNodeCancel  = "/v1/node/cancel"  // JobRequest -> JobStatus
)

// Paths that a daemon answers the image node, over TLS.
const (
	PathPeerAttest         = "/v1/peer/attest"          // PeerSnapshot -> PeerAttestAnswer
	PathPeerCursor         = "/v1/peer/cursor"          // PeerSnapshot -> {}: Cursor is durable in the archive
	PathPeerSnapshotRemove = "/v1/peer/snapshot-remove" // PeerSnapshot -> {}: out of the stack, and its store deleted
)

// NodeSocket is the name of the image node's socket in its run folder.
const NodeSocket = "image-node.sock"

// ErrorBusy is the Code of the Error that refuses a second backup of a domain: exit code 4.
const ErrorBusy = "busy"

// The states of a job.
const (
	JobReserved   = "reserved"   // the cut is being made
	JobQueued     = "queued"     // others are copied first
	JobCopying    = "copying"    // from the disks into the archive
	JobCompleting = "completing" // waits for the owners' attestation, then is entered into the archive
	JobDone       = "done"
	JobFailed     = "failed"
	JobCancelled  = "cancelled"
)

// The grades of a backup: what the guest had made of its disks at the cut. Never more than is certain.
const (
	GradeCrash = "crash" // as after a power cut
	GradeFS    = "fs"    // its file systems were frozen, and thawed in time
	GradeApp   = "app"   // the same, and its own freeze hooks were there to run
	GradeOff   = "off"   // the domain was not running
)

// ReserveRequest begins the backup of a domain.
type ReserveRequest struct {
	Domain  string   `json:"domain"` // name
	UUID    string   `json:"uuid"`   // of the domain
	Host    string   `json:"host"`   // host name of the one that asks
	Address string   `json:"address"`
	Volumes []string `json:"volumes"` // UUIDs
}

// StartRequest hands over what the cut made.
type StartRequest struct {
	Job      string   `json:"job"`
	Manifest Manifest `json:"manifest"`
	Rate     int64    `json:"rate,omitempty"` // bytes a second; 0: the image node's
}

// Manifest is what a backup holds and where its parts were. Sizes are bytes.
type Manifest struct {
	Version     int               `json:"version"`
	Domain      string            `json:"domain"`
	UUID        string            `json:"uuid"`  // of the domain
	Host        string            `json:"host"`  // where it ran at the cut
	Cut         string            `json:"cut"`   // UUID
	CutAt       int64             `json:"cutAt"` // Unix milliseconds
	HeldMicros  int64             `json:"heldMicros"`
	Grade       string            `json:"grade"`
	GradeWhy    string            `json:"gradeWhy,omitempty"` // why it is no better
	XML         string            `json:"xml"`                // active
	InactiveXML string            `json:"inactiveXML"`        // what it will be at its next start
	Disks       []ManifestDisk    `json:"disks"`
	Left        []LeftDisk        `json:"left,omitempty"`  // disks that are not in the backup, and why
	Files       map[string][]byte `json:"files,omitempty"` // nvram, tpm/NAME: a few MiB at most
}

// ManifestDisk is one disk of a backup.
type ManifestDisk struct {
	Target    string `json:"target"` // vda
	Volume    string `json:"volume"` // name
	UUID      string `json:"uuid"`   // of the volume
	Size      int64  `json:"size"`
	ChunkSize int64  `json:"chunkSize"`        // of the snapshot
	Epoch     uint32 `json:"epoch"`            // of the volume at the cut
	Snapshot  string `json:"snapshot"`         // UUID of its store
	Store     Place  `json:"store"`            // the volume's
	Origin    *Place `json:"origin,omitempty"` // the raw disk of a state store
	Master    *Place `json:"master,omitempty"` // of a clone that is not cut loose
	Saves     Place  `json:"saves"`            // the snapshot's store
}

// Place says where something was found on the host that had it, and how it is known again elsewhere.
type Place struct {
	Address string `json:"address"`        // path or URI
	WWID    string `json:"wwid,omitempty"` // of the device
	UUID    string `json:"uuid,omitempty"` // of the store on it
	Size    int64  `json:"size,omitempty"`
}

// LeftDisk is a disk that a backup does not hold.
type LeftDisk struct {
	Target string `json:"target"`
	Why    string `json:"why"`
}

// JobRequest names a job.
type JobRequest struct {
	Job     string `json:"job"`               // UUID
	Changed uint64 `json:"changed,omitempty"` // wait until its Changed is another, at most ten seconds
}

// JobStatus tells of a job. Sizes are bytes, times Unix seconds.
type JobStatus struct {
	Job      string    `json:"job"` // UUID
	Changed  uint64    `json:"changed"`
	Domain   string    `json:"domain"`
	UUID     string    `json:"uuid"`
	State    string    `json:"state"`
	Error    string    `json:"error,omitempty"`
	Waits    string    `json:"waits,omitempty"`  // for what, in words
	Backup   string    `json:"backup,omitempty"` // its id in the archive, once done
	Grade    string    `json:"grade,omitempty"`
	Reserved int64     `json:"reserved"`
	Started  int64     `json:"started,omitempty"`
	Ended    int64     `json:"ended,omitempty"`
	Size     int64     `json:"size"`    // of all disks
	Done     int64     `json:"done"`    // of them, durable in the archive
	Read     int64     `json:"read"`    // from the disks
	Zero     int64     `json:"zero"`    // holes and zeros
	Reused   int64     `json:"reused"`  // the archive had it already
	Written  int64     `json:"written"` // to the archive, compressed
	Disks    []JobDisk `json:"disks,omitempty"`
}

// JobDisk is one disk of a job.
type JobDisk struct {
	Target string `json:"target"`
	Volume string `json:"volume"`
	Size   int64  `json:"size"`
	Done   int64  `json:"done"`
	Via    string `json:"via,omitempty"` // lun, nbd: how it is read
	Why    string `json:"why,omitempty"` // why over NBD
}

// JobList is the image node's jobs, youngest first.
type JobList struct {
	Jobs []JobStatus `json:"jobs"`
}

// PeerSnapshot names a snapshot of a volume.
type PeerSnapshot struct {
	Volume   string `json:"volume"`   // UUID
	Snapshot string `json:"snapshot"` // UUID
	Cut      string `json:"cut"`
	Job      string `json:"job"`
	Cursor   int64  `json:"cursor,omitempty"`
}

// PeerAttestAnswer is the owner's word for a snapshot. Unbroken: the engine has it open, in this epoch, and nothing went past it.
type PeerAttestAnswer struct {
	Unbroken bool   `json:"unbroken"`
	Why      string `json:"why,omitempty"` // why not
	Epoch    uint32 `json:"epoch"`
	Open     bool   `json:"open"` // an engine of this host has the volume open
}
