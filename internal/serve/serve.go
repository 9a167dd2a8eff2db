// Package serve is one engine process: it opens a store, its master and its volume, serves the volume
// over NBD on one unix socket and its control API on another, and closes all of it in order.
//
// What it takes, in this order: the lock on the store's device, the lock on the store's UUID (the same
// store by another path), the lock on a raw origin, the master, the store's ownership, the sockets. It gives back in
// reverse.
package serve

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/engine"
	"github.com/virt-cow/virt-cow/internal/master"
	"github.com/virt-cow/virt-cow/internal/store"
)

// Config says what to serve and how.
type Config struct {
	Store      string // path
	Name       string // the volume must have this name, if not ""
	UUID       string // and this UUID, if not ""
	Socket     string // NBD
	Control    string // control API; "": beside Socket
	Group      string // who besides root may use Socket, name or number; "": this process's
	Client     *api.Peer
	RunDir     string // of caches and locks, on tmpfs
	HostUUID   string // "": the machine's own
	Version    string // of the program
	LockWait   time.Duration
	Hydrate    bool
	Rate       int64 // of hydration, bytes a second; 0: no limit
	ReadOnly   bool
	AcceptLoss bool
	CacheOff   bool

	Address      string // where this host's daemon answers others
	Incoming     string // UUID of a grant to open the volume by, unless this host is the owner by now; "": as the owner
	Epoch        uint32 // that a guest has the volume since; another means that it went on elsewhere. 0: any
	Reservations bool   // SCSI persistent reservations keep other hosts from the volume's LUNs

	Snapshots map[string]string // paths of snapshot stores on this host, by UUID, where the header's are not right here

	Dead *api.DeadOwner // proof that the owner which the header may name is dead
}

// opened is a volume with all that it stands on.
type opened struct {
	file   *blockdev.File
	lock   *os.File       // on the store's UUID
	origin *blockdev.File // of a state store
	disk   *os.File       // lock on its WWID: it may have several paths
	volume *engine.Volume
	leave  bool // the volume as it is: another host has it open
}

func open(ctx context.Context, c Config, log zerolog.Logger) (o *opened, err error) {
	o = new(opened)
	defer func() {
		if err != nil {
			err = errors.Join(err, o.close())
		}
	}()
	owner, err := Host(c.HostUUID)
	if err != nil {
		return o, err
	}
	owner.Address = c.Address
	var incoming uuid.UUID
	if c.Incoming != "" {
		if incoming, err = uuid.Parse(c.Incoming); err != nil {
			return o, fmt.Errorf("grant %q: %w", c.Incoming, err)
		}
	}
	dead, err := deadOwner(c.Dead)
	if err != nil {
		return o, err
	}
	lock := blockdev.LockExclusive
	if c.ReadOnly {
		lock = blockdev.LockShared
	}
	// A predecessor that was killed keeps its lock until its last write has landed: wait for that.
	waiting, cancel := context.WithTimeout(ctx, c.LockWait)
	defer cancel()
	o.file, err = blockdev.OpenFile(waiting, c.Store, blockdev.FileOptions{Direct: true, ReadOnly: c.ReadOnly, Lock: lock})
	if err != nil {
		return o, err
	}
	if !o.file.Direct() {
		log.Warn().Str("store", c.Store).Msg("its file system has no O_DIRECT; using the page cache")
	}
	st, err := store.Open(engine.NewLatch(o.file))
	if errors.Is(err, cowfmt.ErrNotStore) {
		return o, fmt.Errorf("%s: %w: make one with `virt-cow store create`", c.Store, cowfmt.ErrNotStore)
	}
	if err != nil {
		return o, err
	}
	for i, problem := range st.Problems() {
		if problem != nil {
			log.Warn().Err(problem).Int("copy", i).Str("store", c.Store).Msg("a header copy is damaged; the other one is used and mends it")
		}
	}
	h := st.Header()
	if c.Name != "" && h.Name != c.Name {
		return o, fmt.Errorf("%s: holds volume %s, not %s", c.Store, h.Name, c.Name)
	}
	if err := isVolume(h, c.UUID); err != nil {
		return o, fmt.Errorf("%s: %w", c.Store, err)
	}
	if o.lock, err = lockUUID(waiting, c.RunDir, h, c.ReadOnly); err != nil {
		return o, err
	}
	if !c.ReadOnly {
		if err := engine.RemoveOutlived(api.CachePath(c.RunDir, h.UUID.String()), h, owner.Host); err != nil {
			log.Warn().Err(err).Msg("what an engine left, before another host took the store, can't be removed")
		}
	}
	// Said before the master is opened, which may take its time; the engine asks again.
	if err := st.Elsewhere(owner.Host); err != nil && incoming == uuid.Nil && dead == nil {
		return o, err
	}
	var origin blockdev.Device
	if h.Role == cowfmt.RoleState {
		if o.origin, err = openOrigin(waiting, h, c.ReadOnly); err != nil {
			return o, err
		}
		if o.disk, err = lockDisk(waiting, c.RunDir, h, c.ReadOnly); err != nil {
			return o, err
		}
		origin = engine.NewLatch(o.origin)
	}
	if c.Reservations && !c.ReadOnly {
		if err := keepOut([]*blockdev.File{o.file, o.origin}, h, owner, c.Dead, log); err != nil {
			return o, err
		}
	}
	var base blockdev.Device
	if h.Master != nil && !h.CutLoose {
		if base, err = master.Open(ctx, *h.Master, h.MasterIdentity, log); err != nil {
			return o, err
		}
	}
	opener := &stackOpener{config: c, owner: owner, log: log}
	if opener.paths, err = stackPaths(c.Snapshots); err != nil {
		return o, err
	}
	options := engine.Options{
		Store: st, Master: base, Origin: origin, ReadOnly: c.ReadOnly, Owner: owner, AcceptLoss: c.AcceptLoss, Log: log,
		Claiming:  store.Claiming{Shared: o.file.Shared()},
		CachePath: api.CachePath(c.RunDir, h.UUID.String()),
		Incoming:  incoming, Dead: dead, Epoch: c.Epoch,
		OpenSnapshot: opener.open,
	}
	if c.CacheOff {
		options.CacheMode = cowfmt.CacheOff
	}
	o.volume, err = engine.Open(ctx, options)
	if err != nil && base != nil {
		err = errors.Join(err, base.Close())
	}
	return o, err
}

// openOrigin opens the raw disk of a state store. It never looks at what is on it: that is the guest's.
func openOrigin(ctx context.Context, h *cowfmt.Header, readOnly bool) (*blockdev.File, error) {
	if h.Origin.Kind != cowfmt.LocatorRaw {
		return nil, fmt.Errorf("volume %s: this program can't serve %v disks", h.Name, h.Origin.Kind)
	}
	f, err := master.OpenOrigin(ctx, h.Origin.Address, readOnly)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", h.Name, err)
	}
	if err := master.CheckOrigin(f, h.OriginIdentity); err != nil {
		return nil, errors.Join(fmt.Errorf("volume %s: %w", h.Name, err), f.Close())
	}
	return f, nil
}

// isVolume refuses another volume than the one with this UUID, if that is not "".
func isVolume(h *cowfmt.Header, id string) error {
	if id == "" {
		return nil
	}
	want, err := uuid.Parse(id)
	if err != nil {
		return fmt.Errorf("UUID %q: %w", id, err)
	}
	if h.UUID != want {
		return fmt.Errorf("volume %s there has UUID %s, not %s: another volume of that name", h.Name, h.UUID, want)
	}
	return nil
}

// lockUUID holds the store's UUID on this host: two paths may lead to one store.
func lockUUID(ctx context.Context, runDir string, h *cowfmt.Header, shared bool) (*os.File, error) {
	for _, dir := range []string{"lock", "cache"} {
		if err := os.MkdirAll(filepath.Join(runDir, dir), 0o700); err != nil {
			return nil, fmt.Errorf("run folder: %w; choose another with --run-dir or VIRT_COW_RUN_DIR", err)
		}
	}
	f, err := lockFile(ctx, lockPath(runDir, h), shared)
	return f, lockedAs(h, err)
}

// lockDisk holds the WWID of a raw disk, if it has one, on this host.
func lockDisk(ctx context.Context, runDir string, h *cowfmt.Header, shared bool) (*os.File, error) {
	if h.OriginIdentity == nil {
		return nil, nil
	}
	name := fmt.Sprintf("disk-%x", sha256.Sum256([]byte(h.OriginIdentity.WWID)))
	f, err := lockFile(ctx, filepath.Join(runDir, "lock", name), shared)
	if errors.Is(err, blockdev.ErrLocked) {
		err = fmt.Errorf("volume %s: its raw disk %s (%s): %w by another volume of this host", h.Name, h.Origin.Address, h.OriginIdentity.WWID, blockdev.ErrLocked)
	}
	return f, err
}

func lockFile(ctx context.Context, path string, shared bool) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("run folder: %w; choose another with --run-dir or VIRT_COW_RUN_DIR", err)
	}
	mode := blockdev.LockExclusive
	if shared {
		mode = blockdev.LockShared
	}
	if err := blockdev.Flock(ctx, f, mode); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// NotServed returns ErrLocked while an engine of this host has the store open, under whatever path.
func NotServed(runDir string, h *cowfmt.Header) error {
	f, err := os.Open(lockPath(runDir, h))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	once, cancel := context.WithCancel(context.Background())
	cancel()
	return lockedAs(h, blockdev.Flock(once, f, blockdev.LockExclusive))
}

func lockPath(runDir string, h *cowfmt.Header) string {
	return filepath.Join(runDir, "lock", h.UUID.String())
}

// lockedAs says of which volume a lock was not to be had; the lock's own path helps nobody.
func lockedAs(h *cowfmt.Header, err error) error {
	if errors.Is(err, blockdev.ErrLocked) {
		return fmt.Errorf("volume %s (store %s): %w by another process of this host, under another path", h.Name, h.UUID, blockdev.ErrLocked)
	}
	return err
}

func (o *opened) close() error {
	var errs []error
	switch {
	case o.volume == nil:
	case o.leave:
		errs = append(errs, o.volume.Abandon())
	default:
		errs = append(errs, o.volume.Close())
	}
	if o.disk != nil {
		errs = append(errs, o.disk.Close())
	}
	if o.origin != nil {
		errs = append(errs, o.origin.Close())
	}
	if o.lock != nil {
		errs = append(errs, o.lock.Close())
	}
	if o.file != nil {
		errs = append(errs, o.file.Close())
	}
	return errors.Join(errs...)
}
