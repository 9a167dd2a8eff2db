package plugin

import "time"

// Schema is the version of the documents plugins read. New fields do not change it: a plugin ignores what it does
// not know.
const Schema = 1

// Events before something: plugins are asked, and any may veto.
const (
	EventAttach = "attach" // a volume is to be given to a domain
	EventDetach = "detach" // a volume is to be taken from its domain
	EventDelete = "delete" // a volume is to be deleted
)

// Events after something: plugins are told.
const (
	EventCreated         = "created"          // a volume was created or adopted
	EventDeleted         = "deleted"          // a volume is deleted
	EventAttached        = "attached"         // a domain has a volume
	EventDetached        = "detached"         // a domain no longer has a volume
	EventHydrated        = "hydrated"         // a clone needs its master no more
	EventEngineRestarted = "engine-restarted" // an engine that ended by itself was replaced
	EventFailed          = "failed"           // what was to be done with a volume failed; Error says why
)

// Operations of providers.
const (
	OperationCapabilities = "capabilities"
	OperationCreate       = "create"
	OperationDelete       = "delete"
	OperationResolve      = "resolve"
)

// Before are the events that may be vetoed, After those that are only told.
var (
	Before = []string{EventAttach, EventDetach, EventDelete}
	After  = []string{
		EventCreated, EventDeleted, EventAttached, EventDetached, EventHydrated, EventEngineRestarted, EventFailed,
	}
)

// Event is what plugins hear of. What is not known or makes no sense is left empty.
type Event struct {
	Event  string    `json:"event"` // Event…
	Time   time.Time `json:"time"`  // of the event; zero: now
	Volume Volume    `json:"volume,omitzero"`
	Domain Domain    `json:"domain,omitzero"`
	Target string    `json:"target,omitempty"` // such as vdb
	Error  string    `json:"error,omitempty"`
}

// Volume names a volume.
type Volume struct {
	Name  string `json:"name"`
	UUID  string `json:"uuid,omitempty"`
	Store string `json:"store,omitempty"` // path
}

// Domain names a libvirt domain.
type Domain struct {
	Name string `json:"name"`
	UUID string `json:"uuid,omitempty"`
}

// store is what a provider is to do something with.
type store struct {
	Name string `json:"name"`           // of the volume
	Size int64  `json:"size,omitempty"` // bytes; create
	Path string `json:"path,omitempty"` // delete
}

// document is what a plugin reads on stdin.
type document struct {
	Schema  int    `json:"schema"`
	ID      string `json:"id"`      // UUID, the same for all plugins that hear of one event
	Host    string `json:"host"`    // name
	Version string `json:"version"` // of virt-cow
	Event
	Store *store `json:"store,omitempty"` // of providers only
}
