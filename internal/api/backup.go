package api

// Paths that an image node answers: hosts' daemons over TLS, commands on its own host on a unix socket (NodeSocket). All are POST.
const (
	PathNodeStatus  = "/v1/node/status"  // {} -> NodeStatus
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

// Paths of the daemon's control socket that are about backups. All but the first are passed on to the image node.
const (
	PathBackup       = "/v1/backup"        // POST BackupRequest -> JobStatus: the cut is made and the image node has the job. ErrorBusy
	PathBackupJobs   = "/v1/backup/jobs"   // POST {} -> JobList
	PathBackupJob    = "/v1/backup/job"    // POST JobRequest -> JobStatus
	PathBackupCancel = "/v1/backup/cancel" // POST JobRequest -> JobStatus
)

// PathNodeMetrics is a path of NodeSocket alone: GET, for Prometheus.
const PathNodeMetrics = "/metrics"

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

// Whether the guest's file systems are frozen for the cut.
const (
	QuiesceRequire = "require" // a backup that would be of grade crash fails
	QuiesceTry     = "try"     // the default
	QuiesceOff     = "off"
)

// BackupRequest has a domain backed up that is on this host, or one volume.
type BackupRequest struct {
	Domain       string   `json:"domain,omitempty"`       // name or UUID
	Volume       string   `json:"volume,omitempty"`       // instead: its name; of a domain that has more, only this one
	Quiesce      string   `json:"quiesce,omitempty"`      // require, try, off; try if empty
	Hooks        bool     `json:"hooks,omitempty"`        // the operator's word that the guest has freeze hooks: then the grade may be app
	OnError      string   `json:"onError,omitempty"`      // break-snapshot, break-guest-write; the first if empty
	Rate         int64    `json:"rate,omitempty"`         // of copying, bytes a second; 0: the image node's
	Exclude      []string `json:"exclude,omitempty"`      // targets of disks to leave out
	LeaveForeign bool     `json:"leaveForeign,omitempty"` // leave out what can't be backed up; else it is refused
	ChunkSize    int64    `json:"chunkSize,omitempty"`    // bytes, of the snapshots of linear volumes; 0: the volume's
	WaitSeconds  int64    `json:"waitSeconds,omitempty"`  // for a migration to end, MaxWait at most; 0: ten minutes

	// Where snapshot stores are made; by default where the configuration says.
	Folder   string `json:"folder,omitempty"`   // absolute path
	Pool     string `json:"pool,omitempty"`     // libvirt's
	Provider string `json:"provider,omitempty"` // plugin
}

// BackupStatus tells of the last backup of a domain: a daemon's, whose cut it made, or an image node's. Times are Unix seconds, sizes bytes.
type BackupStatus struct {
	Domain      string `json:"domain"` // name
	UUID        string `json:"uuid"`   // of the domain
	Job         string `json:"job"`
	State       string `json:"state"`           // of the job, as far as it is known
	Waits       string `json:"waits,omitempty"` // for what the cut waits, or the job
	Error       string `json:"error,omitempty"`
	Grade       string `json:"grade,omitempty"`
	GradeWhy    string `json:"gradeWhy,omitempty"`
	HeldMicros  int64  `json:"heldMicros,omitempty"`  // how long the guest's writes were held for the cut
	Begun       int64  `json:"begun"`                 // when it was asked for
	Ended       int64  `json:"ended,omitempty"`       // when the job had ended
	LastSuccess int64  `json:"lastSuccess,omitempty"` // when the last one was done, this or one before; 0: never
	Size        int64  `json:"size,omitempty"`        // of all disks
	Read        int64  `json:"read,omitempty"`
	Zero        int64  `json:"zero,omitempty"`        // holes and zeros
	Reused      int64  `json:"reused,omitempty"`      // the archive had it already
	Written     int64  `json:"written,omitempty"`     // to the archive
	MaybeFrozen bool   `json:"maybeFrozen,omitempty"` // its thaw has not succeeded yet, and is being tried on

	// How the guest's writes were since the backup before, or since the engines were started, and since just before the cut. A
	// daemon's, for as long as it follows the job and the guest is on its host.
	WritesBefore *WriteLatency `json:"writesBefore,omitempty"`
	WritesDuring *WriteLatency `json:"writesDuring,omitempty"`
}

// WriteLatency is how long requests to write took, of all disks of a backup together.
type WriteLatency struct {
	Writes     uint64 `json:"writes"`
	MeanMicros uint64 `json:"meanMicros"`
	P99Micros  uint64 `json:"p99Micros"` // no more than this, a power of two; of the slowest bucket, no less than half of it
}

// SnapshotNote is a snapshot that this host knows of.
type SnapshotNote struct {
	Volume   string `json:"volume"`   // name
	Snapshot string `json:"snapshot"` // UUID
	Job      string `json:"job"`      // its cut, which is the job
	Store    string `json:"store"`    // path
	State    string `json:"state"`    // in the volume's stack; "" if it is not there
	Stale    bool   `json:"stale,omitempty"`
	Why      string `json:"why,omitempty"` // why it stays, though stale or not known to be needed
}

// ReserveRequest begins the backup of a domain.
type ReserveRequest struct {
	Domain  string   `json:"domain"`  // name
	UUID    string   `json:"uuid"`    // of the domain
	Host    string   `json:"host"`    // host name of the one that asks
	Address string   `json:"address"` // of its daemon, for other hosts
	Volumes []string `json:"volumes"` // UUIDs

	WaitSeconds int64 `json:"waitSeconds,omitempty"` // that the cut may wait for a migration, besides what it takes; MaxWait at most
}

// MaxWait is how long a cut may wait for a migration to end, at most, in seconds.
const MaxWait = 24 * 60 * 60

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
	Via       string `json:"via,omitempty"`    // of a backup that is done: as JobDisk's
	Why       string `json:"why,omitempty"`
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
	GradeWhy string    `json:"gradeWhy,omitempty"`   // why it is no better
	Held     int64     `json:"heldMicros,omitempty"` // how long the guest's I/O was held for the cut
	Reserved int64     `json:"reserved"`
	Started  int64     `json:"started,omitempty"`
	Ended    int64     `json:"ended,omitempty"`
	Size     int64     `json:"size"`    // of all disks
	Done     int64     `json:"done"`    // of them, durable in the archive
	Seen     int64     `json:"seen"`    // of them, read or known to be zeros: durable with the next checkpoint
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
	Via    string `json:"via,omitempty"`   // lun, nbd: how it is read
	Why    string `json:"why,omitempty"`   // why over NBD
	Saved  *int64 `json:"saved,omitempty"` // bytes that its snapshot's store holds, of Size at most, as its owner said last
}

// JobList is the image node's jobs, youngest first.
type JobList struct {
	Jobs []JobStatus `json:"jobs"`
}

// NodeStatus tells of an image node.
type NodeStatus struct {
	Version string         `json:"version"`
	Started int64          `json:"started"` // Unix seconds
	Jobs    map[string]int `json:"jobs"`    // how many are in each state, of those that are remembered
	Running []JobStatus    `json:"running"` // that have not ended
	Backups []BackupStatus `json:"backups"` // the last of each domain
	Archive ArchiveStatus  `json:"archive"`
}

// ArchiveStatus tells of the archive as the image node has found it last. Times are Unix seconds, 0: not since it was started.
type ArchiveStatus struct {
	Up               bool   `json:"up"`                         // it could be opened
	Error            string `json:"error,omitempty"`            // why not
	Seen             int64  `json:"seen,omitempty"`             // when it was opened last
	NotOurs          bool   `json:"notOurs,omitempty"`          // another host does its maintenance
	Maintained       int64  `json:"maintained,omitempty"`       // when maintenance was done last
	MaintenanceError string `json:"maintenanceError,omitempty"` // of the last one
}

// PeerSnapshot names a snapshot of a volume.
type PeerSnapshot struct {
	Volume   string `json:"volume"`   // UUID
	Snapshot string `json:"snapshot"` // UUID
	Cut      string `json:"cut"`
	Job      string `json:"job"`
	Cursor   int64  `json:"cursor,omitempty"`
}

// Of is the snapshot that a request is about.
func (p PeerSnapshot) Of() PeerSnapshot { return p }

// PeerAttestAnswer is the owner's word for a snapshot. Unbroken: the engine has it open, in this epoch, and nothing went past it.
type PeerAttestAnswer struct {
	Unbroken bool   `json:"unbroken"`
	Why      string `json:"why,omitempty"` // why not
	Epoch    uint32 `json:"epoch"`
	Open     bool   `json:"open"`            // an engine of this host has the volume open
	Saved    int64  `json:"saved,omitempty"` // bytes that the snapshot's store holds
}
