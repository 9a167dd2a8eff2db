// Package api is the control API: what the daemon and each engine process answer over HTTP with JSON on a
// unix socket, and the clients for both. It knows nothing of how either does it.
package api

import (
	"path/filepath"
	"strings"
)

// ControlVersion is the version of the engine's control protocol. A daemon drives engines of this
// version and the one before.
const ControlVersion = 4

// Paths of an engine's control socket. What came with a later version than 1 says so.
const (
	PathEngineStatus    = "/v1/status"    // GET -> EngineStatus
	PathEngineHydration = "/v1/hydration" // POST HydrationRequest -> EngineStatus
	PathEngineSuspend   = "/v1/suspend"   // POST SuspendRequest -> EngineStatus
	PathEngineResume    = "/v1/resume"    // POST -> EngineStatus
	PathEngineStop      = "/v1/stop"      // POST: flush, close the store, end the process
	PathEngineClient    = "/v1/client"    // POST ClientRequest -> EngineStatus; since 2
	PathEngineCache     = "/v1/cache"     // POST CacheRequest -> EngineStatus; since 3, as all below
	PathEngineGrant     = "/v1/grant"     // POST GrantRequest -> EngineStatus, once the grant is durable
	PathEngineGrantEnd  = "/v1/grant/end" // POST GrantEndRequest -> EngineStatus, once it is ended, or refused
	PathEngineGuest     = "/v1/guest"     // POST GuestRequest -> EngineStatus
	PathEngineDead      = "/v1/dead"      // POST DeadOwner -> EngineStatus: a proof of death
)

// ControlPath is where the control socket of the engine with this NBD socket is, unless it was told otherwise.
func ControlPath(socket string) string { return strings.TrimSuffix(socket, ".sock") + ".ctl" }

// CachePath is where an engine with this run folder has the exception cache of a volume, given its UUID. It is there
// from the opening of a volume with the cache on until its store is closed.
func CachePath(runDir, uuid string) string { return filepath.Join(runDir, "cache", uuid+".cache") }

// EngineStatus is what an engine process says of itself and its volume. Sizes are bytes.
type EngineStatus struct {
	ControlVersion int        `json:"controlVersion"`
	Version        string     `json:"version"` // of the program
	PID            int        `json:"pid"`
	Volume         string     `json:"volume"`
	UUID           string     `json:"uuid"`
	Store          string     `json:"store"`  // path
	Socket         string     `json:"socket"` // NBD, path
	Size           int64      `json:"size"`
	ChunkSize      int64      `json:"chunkSize"`
	Target         string     `json:"target"`           // linear, clone
	Client         *Peer      `json:"client,omitempty"` // since 2
	Master         string     `json:"master,omitempty"`
	Origin         string     `json:"origin,omitempty"`     // the raw disk of a state store; since 2
	Cache          string     `json:"cache"`                // on, off
	CacheSince     int64      `json:"cacheSince,omitempty"` // Unix seconds: when the cache was switched last, 0: never; since 3
	Epoch          uint32     `json:"epoch"`
	Owner          *Owner     `json:"owner,omitempty"`    // as the header has it; since 3
	Grants         []Grant    `json:"grants,omitempty"`   // open ones; since 3
	Handover       *Handover  `json:"handover,omitempty"` // while another host has, or had, or is to have the volume open; since 3
	ReadOnly       bool       `json:"readOnly,omitempty"`
	Suspended      bool       `json:"suspended,omitempty"`
	Connections    int        `json:"connections"`
	Started        int64      `json:"started"`         // Unix seconds
	Error          string     `json:"error,omitempty"` // why FLUSH fails, if it does
	Lost           bool       `json:"lost,omitempty"`  // another host has taken the volume over: every request fails; since 3
	Hydration      *Hydration `json:"hydration,omitempty"`
	IO             IOCounters `json:"io"`

	Stack []SnapshotStatus `json:"stack,omitempty"` // oldest first; since 4
}

// The states of a hydration.
const (
	HydrationPaused  = "paused"
	HydrationRunning = "running"
	HydrationFailed  = "failed" // some chunks could not be copied; Error says why
	HydrationDone    = "done"   // cut loose
)

// Hydration tells how far the background copy is.
type Hydration struct {
	State string `json:"state"`
	Done  int64  `json:"done"`            // bytes whose chunks are in the store
	Total int64  `json:"total"`           // bytes
	Rate  int64  `json:"rate,omitempty"`  // limit, bytes a second; 0: none
	Error string `json:"error,omitempty"` // of the last failure
}

// IOCounters counts since the engine process started.
type IOCounters struct {
	Reads      uint64 `json:"reads"`
	Writes     uint64 `json:"writes"`
	Flushes    uint64 `json:"flushes"`
	ReadBytes  uint64 `json:"readBytes"`
	WriteBytes uint64 `json:"writeBytes"`
	Copied     uint64 `json:"copiedBytes"` // from the master because of guest writes
	Hydrated   uint64 `json:"hydratedBytes"`
	Commits    uint64 `json:"commits"` // of the exception table
	Errors     uint64 `json:"errors"`
	Refused    uint64 `json:"refused"` // connections of processes that may not have the volume; since 2

	// How long requests took, by kind: read, write (with trim and zero), flush. Since 2.
	Latency map[string]*Histogram `json:"latency,omitempty"`
}

// HydrationRequest starts or pauses the background copy, or changes its rate. Nil leaves as it is.
type HydrationRequest struct {
	Run  *bool  `json:"run,omitempty"`
	Rate *int64 `json:"rate,omitempty"` // bytes a second; 0: no limit
}

// SuspendRequest holds the volume's I/O. The engine resumes by itself at the deadline.
type SuspendRequest struct {
	DeadlineMillis int64 `json:"deadlineMillis"`
}

// Error is the body of every answer that is not 2xx.
type Error struct {
	Message string `json:"error"`
	Code    string `json:"code,omitempty"` // ErrorBusy, for one: what a program may go by
}
