package api

// Paths of an engine's control socket that are about snapshots; since 4.
const (
	PathEngineSnapshotAdd    = "/v1/snapshot/add"    // POST SnapshotAddRequest -> EngineStatus: pending, its frozen table written
	PathEngineSnapshotRemove = "/v1/snapshot/remove" // POST SnapshotRequest -> EngineStatus: out of the stack, durably, and closed
	PathEngineSnapshotCursor = "/v1/snapshot/cursor" // POST SnapshotCursorRequest -> EngineStatus, once it is durable
	PathEngineCut            = "/v1/cut"             // POST CutRequest -> EngineStatus: suspended, with all ready for the snapshot
	PathEngineCutEnd         = "/v1/cut/end"         // POST CutEndRequest -> EngineStatus: resumed, the snapshot active or gone, durably
)

// The states of a snapshot.
const (
	SnapshotPending = "pending" // no cut yet
	SnapshotActive  = "active"  // unbroken since its cut
	SnapshotBroken  = "broken"  // a write went past it
)

// ErrorGranted is the Code of an engine's Error that refuses a cut, or a suspension, while another host has the volume open.
const ErrorGranted = "granted"

// What happens when a chunk can't be saved before the guest's write, named as QEMU's copy-before-write filter has it.
const (
	BreakSnapshot   = "break-snapshot"
	BreakGuestWrite = "break-guest-write"
)

// SnapshotAddRequest has an engine open a snapshot store that was made for its volume, for a cut to come.
type SnapshotAddRequest struct {
	UUID          string `json:"uuid"`  // of the store
	Store         string `json:"store"` // path
	Cut           string `json:"cut"`   // UUID, the same for all volumes of a domain
	OnError       string `json:"onError,omitempty"`
	TimeoutMillis int64  `json:"timeoutMillis,omitempty"` // of saving a chunk; 0: the default
}

// SnapshotRequest names a snapshot by its store's UUID.
type SnapshotRequest struct {
	UUID string `json:"uuid"`
}

// SnapshotCursorRequest says that all bytes below Cursor are kept elsewhere. It never moves back.
type SnapshotCursorRequest struct {
	UUID   string `json:"uuid"`
	Cursor int64  `json:"cursor"`
}

// CutRequest suspends the volume for a cut. At the deadline the engine resumes by itself, without the snapshot, and drops it.
type CutRequest struct {
	Cut            string `json:"cut"`
	DeadlineMillis int64  `json:"deadlineMillis"`
}

// CutEndRequest ends the suspension of a cut. With Keep it fails if the deadline was first: then there is no snapshot.
type CutEndRequest struct {
	Cut  string `json:"cut"`
	Keep bool   `json:"keep"`
}

// SnapshotStatus is an entry of a volume's stack, as its engine has it. Sizes are bytes.
type SnapshotStatus struct {
	UUID       string `json:"uuid"`
	Cut        string `json:"cut"`
	Store      string `json:"store"` // path
	State      string `json:"state"`
	Error      string `json:"error,omitempty"` // why it broke
	Cursor     int64  `json:"cursor"`
	Saved      int64  `json:"saved"` // chunks it holds
	ChunkSize  int64  `json:"chunkSize"`
	OnError    string `json:"onError"`
	HeldMicros int64  `json:"heldMicros,omitempty"` // how long the volume was suspended for its cut
}
