// Package inventory does what is done to volumes: it makes, adopts, finds and deletes them, and keeps the catalogue. The
// stores of their snapshots it makes, finds and deletes in the same way; what is in them, and whether a volume lists them,
// is the engines' business.
//
// It never opens a store itself: it runs the program (`virt-cow store …`), so that a dead LUN hangs a process and
// not the daemon. Each thing that changes the world is recorded as an intent before it is begun. What a crash
// interrupts is brought to an end by Recover: a volume that was being made is undone, one that was being deleted is
// deleted. Undoing removes only what is provably the volume's own: a store whose header has its UUID, and a pool's
// or a provider's volume that was not there before.
//
// Locks, from the outside in: ops (a scan excludes everything else), the names in holds, the catalogue's own. None
// is kept over a call of Config's functions but ops and holds, so these may call Lookup and List, nothing else here.
package inventory

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/semaphore"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/catalogue"
)

var (
	// ErrNotFound says that there is no such volume.
	ErrNotFound = catalogue.ErrNotFound
	// ErrExists says that a name, a UUID or a place is taken.
	ErrExists = catalogue.ErrExists
	// ErrInvalid says that what was asked for makes no sense.
	ErrInvalid = errors.New("invalid request")
	// ErrInUse says that a volume is used, or being worked on.
	ErrInUse = errors.New("in use")
	// ErrVetoed says that a plugin refused.
	ErrVetoed = errors.New("refused by a plugin")
	// ErrNotReady says that a volume is being made or deleted, or that its store is missing.
	ErrNotReady = errors.New("not ready")
)

// Pools are libvirt's storage pools; a libvirtx.Conn has them. What is not there is libvirtx.ErrNoVolume.
type Pools interface {
	CreateVolume(ctx context.Context, pool, name string, size int64) (path string, err error)
	FindVolume(ctx context.Context, pool, name string) (path string, size int64, err error)
	DeleteVolume(ctx context.Context, pool, name string) error
}

// Provider makes places for stores with a site's own storage's means, as a plugin.Provider does. What is not there
// is plugin.ErrNotFound to Resolve, and no error to Delete.
type Provider interface {
	Create(ctx context.Context, name string, size int64) (path string, err error)
	Delete(ctx context.Context, name, path string) error
	Resolve(ctx context.Context, name string) (path string, err error)
}

// Config says where things are and whom to ask. Functions may be nil.
type Config struct {
	StateDir string // of the catalogue
	StoreDir string // where stores are made that are given no place
	RunDir   string // on tmpfs
	Program  string // path of virt-cow

	ScanFolders []string
	ScanDevices []string // globs

	Provider func(name string) (Provider, error)
	Pools    func() (Pools, error) // an error while libvirt can't be reached

	// InUse says who uses a volume: a domain, or, with the domain "", an engine that serves it on request. Delete
	// asks before and after it has recorded that the volume is being deleted, and Lookup then refuses the volume: so
	// whoever takes a volume into use first notes that, and calls Lookup afterwards.
	InUse func(volume string) (domain string, used bool)
	// Veto asks the plugins before an event, plugin.EventDelete; an error is their refusal.
	Veto func(ctx context.Context, event string, v api.VolumeInfo) error
	// GuestDisks are paths of files and devices that guests have as raw disks. What is on them is the guests' doing,
	// however much it looks like a store.
	GuestDisks func(ctx context.Context) ([]string, error)

	Log zerolog.Logger
}

// Inventory is all volumes of a host. Its methods may be called at the same time.
type Inventory struct {
	config  Config
	log     zerolog.Logger
	cat     *catalogue.Catalogue
	program program
	devices devices
	ops     *semaphore.Weighted
	holds   holds
	looks   looks
}

// everything excludes all operations from ops.
const everything = 1 << 20

// Open opens the catalogue. What a crash interrupted is left to Recover, which a disk that does not answer may hold up.
// Close it.
func Open(config Config) (*Inventory, error) {
	for name, path := range map[string]string{
		"StateDir": config.StateDir, "StoreDir": config.StoreDir, "RunDir": config.RunDir, "Program": config.Program,
	} {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("%w: %s %q is no absolute path", ErrInvalid, name, path)
		}
	}
	cat, err := catalogue.Open(config.StateDir)
	if err != nil {
		return nil, err
	}
	inv := &Inventory{
		config: config, log: config.Log, cat: cat, program: program{path: config.Program, runDir: config.RunDir},
		devices: devices{root: "/dev"}, ops: semaphore.NewWeighted(everything), holds: holds{names: map[string]int{}},
	}
	for _, d := range append(cat.Damaged(), cat.Snapshots().Damaged()...) {
		inv.log.Error().Err(d.Err).Str("record", d.Name).Msg("a record of the catalogue can't be read: `virt-cow volume scan` writes it again from the store's header")
	}
	return inv, nil
}

// Close gives the catalogue back. Nothing may be going on.
func (inv *Inventory) Close() error { return inv.cat.Close() }

// of is the catalogue that an entry is in.
func (inv *Inventory) of(e catalogue.Entry) *catalogue.Catalogue {
	if e.Snapshot() {
		return inv.cat.Snapshots()
	}
	return inv.cat
}

// byUUID finds a volume or a snapshot.
func (inv *Inventory) byUUID(id string) (catalogue.Entry, bool) {
	if e, ok := inv.cat.ByUUID(id); ok {
		return e, true
	}
	return inv.cat.Snapshots().ByUUID(id)
}

// all are the volumes and the snapshots.
func (inv *Inventory) all() []catalogue.Entry {
	return append(inv.cat.All(), inv.cat.Snapshots().All()...)
}

// patience is how long an operation waits for others to end.
const patience = time.Minute

func (inv *Inventory) acquire(ctx context.Context, n int64, why string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := inv.ops.Acquire(ctx, n); err != nil {
		return fmt.Errorf("catalogue: %w: %s: %w: try again later", ErrInUse, why, err)
	}
	return nil
}

// enter waits until no scan runs and takes the names. leave gives all back.
func (inv *Inventory) enter(ctx context.Context, exclusive string, shared ...string) (leave func(), err error) {
	if err := inv.acquire(ctx, 1, "a scan is running"); err != nil {
		return nil, err
	}
	release, err := inv.holds.take(exclusive, shared...)
	if err != nil {
		inv.ops.Release(1)
		return nil, err
	}
	return func() {
		release()
		inv.ops.Release(1)
	}, nil
}
