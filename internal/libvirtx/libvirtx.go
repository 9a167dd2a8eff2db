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
	// SecretXML is InactiveXML with what libvirt shows only to those who may see secrets: the passwords of VNC and SPICE.
	// Without them a screen that asked for one would ask for none. It is for backups, and goes into no log.
	SecretXML(ctx context.Context, d Domain) (string, error)
	// Leaving says that an active domain is being migrated to another host: from before that one's hook is called until
	// the migration has succeeded or failed.
	Leaving(ctx context.Context, d Domain) (bool, error)
	// Saved says that a domain is off with its memory kept: at its next start its guest goes on (virsh managedsave), or may be
	// made to go on (virsh save). Of the latter a libvirtd that was started since knows nothing.
	Saved(ctx context.Context, d Domain) (bool, error)
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

	// Freeze has the agent in the guest call the guest's freeze hooks, then write out and freeze all its file systems, and
	// says how many it froze: 0 if it has none that can be. It takes 40 seconds at most, less if the context's deadline is
	// nearer; that should be ten seconds away. ErrNoAgent, ErrAgentHangs, ErrFrozen, ErrHook, ErrNotRunning.
	//
	// An error is no proof that nothing is frozen, save ErrHook, and ErrNoAgent of a guest that was never asked: a freeze
	// whose answer did not come in time takes effect later. So whoever froze thaws, until Thaw succeeds; after ErrHook too,
	// since the agent calls no hook to undo what others did before the one that failed. Commands reach the agent in order,
	// so that a thaw is never overtaken by an earlier freeze.
	//
	// What is frozen is known to the guest alone. It stays so when its agent dies, and then is thawed by the agent that is
	// started next; when libvirtd restarts; when the guest is saved, and goes on; and when the guest moves: then it is
	// thawed on the host it moved to. Nothing but Thaw, the guest's administrator or a restart of the guest ends it.
	Freeze(ctx context.Context, d Domain) (filesystems int, err error)
	// Thaw undoes Freeze and calls the hooks, and says how many file systems it thawed, 0 if none was frozen. Fewer than
	// were frozen means that they were not frozen until now. With ErrHook they are thawed, and how many is not known.
	// ErrNoAgent, ErrAgentHangs and ErrNotRunning, which is also said of a paused guest, leave them as they are: try again.
	Thaw(ctx context.Context, d Domain) (filesystems int, err error)
	// Frozen is what the agent says of itself. One that lost its memory with its /run, or VSS in Windows, may be wrong.
	Frozen(ctx context.Context, d Domain) (bool, error)

	// Define stores a definition and does not start it. It replaces the one of the same name and UUID. ErrDomainExists.
	Define(ctx context.Context, xml string) (Domain, error)
	// Undefine removes a stored definition, and leaves disks, NVRAM and the TPM's state where they are. One with a saved
	// state, snapshots or checkpoints is refused. A domain that runs goes on and is gone when it ends.
	Undefine(ctx context.Context, d Domain) error

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

// SavedBy says whether a domain is off because it was saved: virDomainState, and virDomainShutoffReason of one that is off. It
// is for the drivers.
func SavedBy(state, reason int) bool {
	const shutoff, saved = 5, 5
	return state == shutoff && reason == saved
}

// LeavingBy judges a domain's job, as libvirt tells of it: virDomainJobType, and virDomainJobOperation if it is known. It is
// for the drivers.
func LeavingBy(kind int, operation int, known bool) bool {
	const bounded, unbounded, migrationOut = 1, 2, 5
	return (kind == bounded || kind == unbounded) && (!known || operation == migrationOut)
}
