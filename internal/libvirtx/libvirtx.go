// Package libvirtx is what virt-cow asks of libvirt: one small interface, typed events, the XML of its disks
// and of its metadata element. It links no libvirt. Two drivers implement Conn: package rpc speaks libvirt's
// protocol through github.com/digitalocean/go-libvirt, package cgo (build tag libvirt_cgo) uses libvirt's own
// library; libvirtxtest holds what both must do.
//
// A connection is never mended: once anything about it is in doubt it is dropped, and Keep dials a new one,
// subscribes to events and only then lists the domains. So a missed event does no lasting harm.
package libvirtx

import (
	"context"
	"os"
	"time"

	"github.com/google/uuid"
)

// DefaultSocket is where libvirtd answers, or virtproxyd for the modular daemons.
const DefaultSocket = "/run/libvirt/libvirt-sock"

// qemuSocket is where virtqemud itself answers.
const qemuSocket = "/run/libvirt/virtqemud-sock"

// Socket is the socket of this host's libvirt: DefaultSocket, unless only virtqemud's own is there.
func Socket() string {
	if _, err := os.Stat(DefaultSocket); err != nil {
		if _, err := os.Stat(qemuSocket); err == nil {
			return qemuSocket
		}
	}
	return DefaultSocket
}

// CallTimeout bounds every call of a driver. An attach waits for QEMU, so it is generous.
const CallTimeout = 60 * time.Second

// Keepalive is how a libvirtd that hangs is found while nobody calls it: it is asked every Interval, and the
// connection is dropped when nothing came from it for Timeout after that. Driver cgo has whole seconds.
type Keepalive struct{ Interval, Timeout time.Duration }

// DefaultKeepalive leaves a busy host its time.
var DefaultKeepalive = Keepalive{Interval: 15 * time.Second, Timeout: 30 * time.Second}

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
	Moving  bool // paused by a migration or by its start: it is still arriving, or about to be gone
	Ending  bool // its QEMU is ending: libvirt 11 shows that of one that was migrated away too, for a moment
}

// Conn is one connection to a libvirtd. All methods may be called at the same time. Errors wrap the sentinels
// of this package where they apply. A call that its context or CallTimeout ends fails with ErrNoAnswer and may
// still take effect; the driver then finds out whether libvirtd or only the domain hangs, and drops the
// connection in the first case.
type Conn interface {
	// Version is that of libvirtd: its major number times a million plus its minor number times a thousand plus
	// its release.
	Version(ctx context.Context) (uint64, error)
	Domains(ctx context.Context) ([]Domain, error)
	// Lookup finds a domain by its name or UUID.
	Lookup(ctx context.Context, nameOrUUID string) (Domain, error)
	State(ctx context.Context, d Domain) (State, error)
	// XML is the live definition of an active domain, the stored one of another.
	XML(ctx context.Context, d Domain) (string, error)
	// InactiveXML is what the domain will be at its next start; of a transient one, what it was started from.
	InactiveXML(ctx context.Context, d Domain) (string, error)
	// Leaving says that an active domain is being migrated to another host: from before that one's hook is called until
	// the migration has succeeded or failed.
	Leaving(ctx context.Context, d Domain) (bool, error)
	// Metadata is the virt-cow element, "" if there is none: the live one of an active domain.
	Metadata(ctx context.Context, d Domain) (string, error)
	// SetMetadata replaces the whole element, live and stored, as far as the domain has each; "" removes it. Of
	// two at once the last one wins: only one may set a domain's element.
	SetMetadata(ctx context.Context, d Domain, xml string) error
	// Attach plugs a disk into a running domain; the stored definition stays as it is. ErrNoSlot, ErrNoController.
	Attach(ctx context.Context, d Domain, xml string) error
	// Detach asks the guest to let go of a device. DeviceRemoved tells that it did. ErrNoDevice.
	Detach(ctx context.Context, d Domain, alias string) error
	Resume(ctx context.Context, d Domain) error

	// CreateVolume makes a raw volume of this many bytes, or a few more where the pool has larger units, in a
	// storage pool that makes files or block devices; sparse where the pool has files. path is its own on this host.
	// ErrNoPool, ErrExists, ErrPool.
	CreateVolume(ctx context.Context, pool, name string, size int64) (path string, err error)
	// FindVolume returns a volume's path and size in bytes. A pool that does not know it is refreshed first.
	// ErrNoPool, ErrNoVolume, ErrPool.
	FindVolume(ctx context.Context, pool, name string) (path string, size int64, err error)
	// DeleteVolume deletes a volume and its data. ErrNoPool, ErrNoVolume, ErrPool.
	DeleteVolume(ctx context.Context, pool, name string) error

	// Events carries every event since the connection was made and is closed when it is lost. Those of one type come
	// in order. Reading slowly holds nothing up; a reader that falls far behind loses the connection.
	Events() <-chan Event
	// Err is why the connection is gone, wrapping ErrGone; nil while it is not.
	Err() error
	Close() error
}

// StateOf makes a State of what libvirt says: virDomainState, and virDomainPausedReason of a paused one. It is for
// the drivers.
func StateOf(state, reason int) State {
	const running, blocked, paused, shutdown, suspended = 1, 2, 3, 4, 7
	const migration, ioError, startingUp, postCopy, postCopyFailed = 2, 5, 11, 12, 13
	switch state {
	case running, blocked, suspended:
		return State{Active: true}
	case shutdown:
		return State{Active: true, Ending: true}
	case paused:
		moving := reason == migration || reason == startingUp || reason == postCopy || reason == postCopyFailed
		return State{Active: true, Paused: true, IOError: reason == ioError, Moving: moving}
	}
	return State{}
}

// LeavingBy judges a domain's job, as libvirt tells of it: virDomainJobType, and virDomainJobOperation if it is known. It is
// for the drivers.
func LeavingBy(kind int, operation int, known bool) bool {
	const bounded, unbounded, migrationOut = 1, 2, 5
	return (kind == bounded || kind == unbounded) && (!known || operation == migrationOut)
}
