// Package catalogue is the daemon's memory of volumes over restarts: a folder with one JSON file a volume. It is a
// cache of the stores' headers and a journal of what is being done to them: a record says "creating" before the
// first step of making a volume is taken, and "deleting" before the first step of removing one. The snapshots of volumes
// have records of the same kind in another folder, under their UUIDs.
//
// A record is written to a new file, which is fsynced, renamed over the old one, and the folder fsynced. So after
// a crash each record is the old one or the new one, whole. A damaged record is never dropped or overwritten by
// accident: it keeps its name taken, and is listed with what is wrong with it.
package catalogue

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/durable"
)

var (
	// ErrNotFound says that the catalogue has no such volume.
	ErrNotFound = errors.New("no such volume in the catalogue")
	// ErrChanged says that a record is not what it was any more.
	ErrChanged = errors.New("changed meanwhile")
	// ErrExists says that a name, UUID or store is another volume's.
	ErrExists = errors.New("is taken")
	// ErrDamaged says that a record can't be read.
	ErrDamaged = errors.New("damaged record")
	// ErrBusy says that another process has the catalogue open.
	ErrBusy = errors.New("another daemon has it open")
)

const (
	volumesDir   = "volumes"
	snapshotsDir = "snapshots"
	lockName     = "lock"
	suffix       = ".json"
	newSuffix    = durable.NewSuffix // of a record that is being written
)

// Damage is a record that can't be read.
type Damage struct {
	Name string // of the volume, as the file's name has it
	File string // path
	Err  error  // wraps ErrDamaged
}

// Catalogue is an open catalogue. Its methods may be called at the same time. Entries are copies.
type Catalogue struct {
	dir  string // of the records
	what string // "volume" or "snapshot": what they are of
	fs   files
	lock *os.File

	snapshots *Catalogue // of the volumes

	writing sync.Mutex // one record is written at a time

	mu      sync.RWMutex // never kept over I/O
	byName  map[string]Entry
	byUUID  map[string]string // to the name
	byStore map[string]string // to the name
	damaged map[string]Damage
}

// Open opens the catalogue in a state folder, which is made where it is missing. One process at a time has it:
// ErrBusy otherwise. Close it.
func Open(stateDir string) (*Catalogue, error) {
	var disk disk
	for _, dir := range []string{volumesDir, snapshotsDir} {
		if err := disk.makeDirs(filepath.Join(stateDir, dir)); err != nil {
			return nil, fmt.Errorf("state folder: %w", err)
		}
	}
	path := filepath.Join(stateDir, lockName)
	lock, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	if err := flock(lock); err != nil {
		return nil, errors.Join(fmt.Errorf("state folder %s: %w", stateDir, err), lock.Close())
	}
	c, err := load(disk, filepath.Join(stateDir, volumesDir), "volume")
	if err == nil {
		c.snapshots, err = load(disk, filepath.Join(stateDir, snapshotsDir), "snapshot")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("state folder: %w", err), lock.Close())
	}
	c.lock = lock
	return c, nil
}

// Snapshots is the catalogue of the volumes' snapshots. Don't close it.
func (c *Catalogue) Snapshots() *Catalogue { return c.snapshots }

// lockWait is for a predecessor that was killed: the kernel may still be busy ending it.
const lockWait = 2 * time.Second

func flock(f *os.File) error {
	for end := time.Now().Add(lockWait); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case !errors.Is(err, unix.EWOULDBLOCK):
			return err
		case time.Now().After(end):
			return ErrBusy
		}
	}
}

// load reads all records.
func load(fs files, dir, what string) (*Catalogue, error) {
	c := &Catalogue{
		dir: dir, what: what, fs: fs, byName: map[string]Entry{}, byUUID: map[string]string{}, byStore: map[string]string{},
		damaged: map[string]Damage{},
	}
	names, err := fs.list(dir)
	if err != nil {
		return nil, err
	}
	slices.Sort(names) // of two records that contradict each other always the same one is refused
	for _, file := range names {
		path := filepath.Join(dir, file)
		if strings.HasSuffix(file, newSuffix) { // was being written at a crash
			if err := fs.remove(path); err != nil {
				return nil, err
			}
			continue
		}
		name, ok := strings.CutSuffix(file, suffix)
		if !ok {
			continue // an editor's copy, say: not ours
		}
		if err := c.read(name, path); err != nil {
			c.damaged[name] = Damage{Name: name, File: path, Err: fmt.Errorf("%w %s: %w", ErrDamaged, path, err)}
		}
	}
	return c, nil
}

func (c *Catalogue) read(name, path string) error {
	b, err := c.fs.read(path)
	if err != nil {
		return err
	}
	e, err := decode(b)
	if err != nil {
		return err
	}
	if e.Name != name {
		return fmt.Errorf("it is of %s %q", c.what, e.Name)
	}
	if err := c.holds(e); err != nil {
		return err
	}
	if err := c.free(e); err != nil {
		return err
	}
	c.index(e)
	return nil
}

// holds returns an error for a record that belongs into the other folder.
func (c *Catalogue) holds(e Entry) error {
	if e.Snapshot() != (c.what == "snapshot") {
		return fmt.Errorf("%s among the %ss", e.Title(), c.what)
	}
	return nil
}

// free returns ErrExists if the entry's UUID is another volume's. Called with mu, or alone.
func (c *Catalogue) free(e Entry) error {
	if other, ok := c.byUUID[e.UUID]; ok && other != e.Name {
		return fmt.Errorf("UUID %s %w by %s %s", e.UUID, ErrExists, c.what, other)
	}
	return nil
}

func (c *Catalogue) index(e Entry) {
	c.unindex(e.Name)
	c.byName[e.Name], c.byUUID[e.UUID] = e, e.Name
	if e.Store != "" {
		c.byStore[e.Store] = e.Name
	}
}

// unindex: two entries have one store for a moment when a scan finds that stores changed places.
func (c *Catalogue) unindex(name string) {
	old, ok := c.byName[name]
	if !ok {
		return
	}
	delete(c.byUUID, old.UUID)
	delete(c.byName, name)
	if c.byStore[old.Store] == name {
		delete(c.byStore, old.Store)
	}
}

// Close lets another process open the catalogue.
func (c *Catalogue) Close() error { return c.lock.Close() }
