// Package libvirtx is what virt-cow asks of libvirt: one small interface, typed events, the XML of its disks
// and of its metadata element. The driver here speaks libvirt's RPC protocol through
// github.com/digitalocean/go-libvirt over the local socket; nothing above this package knows that.
//
// A connection is never mended: once anything about it is in doubt it is dropped, and Keep dials a new one,
// subscribes to events and only then lists the domains. So a missed event does no lasting harm.
package libvirtx

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
)

var (
	// ErrNoDomain says that libvirt knows no such domain.
	ErrNoDomain = errors.New("no such domain")
	// ErrGone says that the connection was lost or dropped; a new one must be dialled.
	ErrGone = errors.New("connection to libvirt lost")
	// ErrNoDevice says that the domain has no such device.
	ErrNoDevice = errors.New("no such device")
	// ErrNoSlot says that no free PCI slot is left to plug a disk into.
	ErrNoSlot = errors.New("no free PCI slot for another disk: give the domain more <controller type='pci' model='pcie-root-port'/>, it needs a restart")
)

// DefaultSocket is where libvirtd, or virtqemud's proxy, answers.
const DefaultSocket = "/run/libvirt/libvirt-sock"

// CallTimeout bounds every call of a driver: a libvirtd that hangs is dropped. An attach waits for QEMU, a detach
// for the guest, so it is generous.
const CallTimeout = 60 * time.Second

// Domain names a domain. The UUID is what counts: a name may change.
type Domain struct {
	Name string
	UUID uuid.UUID
}

// State is what a domain does.
type State struct {
	Active  bool // running or paused: it has a QEMU
	Paused  bool
	IOError bool // paused by QEMU because a disk failed a request
}

// Conn is one connection to a libvirtd. All methods may be called at the same time. Errors wrap the sentinels
// above where they apply.
type Conn interface {
	// Version is libvirt's version times a million for the major, times a thousand for the minor number.
	Version(ctx context.Context) (uint64, error)
	Domains(ctx context.Context) ([]Domain, error)
	// Lookup finds a domain by its name or UUID.
	Lookup(ctx context.Context, nameOrUUID string) (Domain, error)
	State(ctx context.Context, d Domain) (State, error)
	// XML is the live definition of an active domain, the stored one of another.
	XML(ctx context.Context, d Domain) (string, error)
	// Metadata is the virt-cow element, "" if there is none.
	Metadata(ctx context.Context, d Domain) (string, error)
	// SetMetadata replaces the whole element, live and stored, as far as the domain has each; "" removes it.
	SetMetadata(ctx context.Context, d Domain, xml string) error
	// Attach plugs a device into a running domain; the stored definition stays as it is.
	Attach(ctx context.Context, d Domain, xml string) error
	// Detach asks the guest to let go of a device. DeviceRemoved tells that it did.
	Detach(ctx context.Context, d Domain, alias string) error
	Resume(ctx context.Context, d Domain) error
	// Events carries every event since the connection was made and is closed when it is lost. It must be read.
	Events() <-chan Event
	Close() error
}

// Event is one of the types below.
type Event interface{ Subject() Domain }

// What happened to a domain's life, as libvirt numbers it (virDomainEventType).
type What int32

// The lifecycle events.
const (
	Defined What = iota
	Undefined
	Started
	Suspended
	Resumed
	Stopped
	Shutdown
	PMSuspended
	Crashed
)

func (w What) String() string {
	names := [...]string{"defined", "undefined", "started", "suspended", "resumed", "stopped", "shutdown", "pmsuspended", "crashed"}
	if w < 0 || int(w) >= len(names) {
		return "unknown"
	}
	return names[w]
}

type (
	// Lifecycle says that a domain began, ended or paused.
	Lifecycle struct {
		Domain Domain
		What   What
		Detail int32 // as libvirt numbers it
	}
	// DeviceRemoved says that the guest let go of a device.
	DeviceRemoved struct {
		Domain Domain
		Alias  string
	}
	// DeviceRemovalFailed says that the guest refused to.
	DeviceRemovalFailed struct {
		Domain Domain
		Alias  string
	}
	// MetadataChanged says that a metadata element was set or removed.
	MetadataChanged struct {
		Domain    Domain
		Namespace string
	}
	// IOError says that a disk failed a request of the guest.
	IOError struct {
		Domain Domain
		Alias  string
		Reason string
	}
)

// Subject is the domain the event is about.
func (e Lifecycle) Subject() Domain           { return e.Domain }
func (e DeviceRemoved) Subject() Domain       { return e.Domain }
func (e DeviceRemovalFailed) Subject() Domain { return e.Domain }
func (e MetadataChanged) Subject() Domain     { return e.Domain }
func (e IOError) Subject() Domain             { return e.Domain }
