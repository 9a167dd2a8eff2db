package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/store"
)

// ErrNotSeen says that this host does not see a disk.
var ErrNotSeen = errors.New("not seen from here")

// Places is where disks may be. Whatever another host says, nothing else is opened, and nothing for writing.
type Places struct {
	Folders []string // their files
	Devices []string // globs of names that stay the same over a reboot
	// Scan looks for stores, among these paths and the files of these folders.
	Scan func(ctx context.Context, paths []string) ([]Found, error)
}

// Found is a store that was found. Paths are all names of it, the best first.
type Found struct {
	UUID  string
	Paths []string
}

// finder finds disks by what they are. A path that another host gives is a hint.
type finder struct {
	places Places
	wwid   func(path string) string

	mu    sync.Mutex
	known map[string]string // store's UUID: where it was last
}

func newFinder(p Places) *finder {
	return &finder{places: p, wwid: blockdev.WWIDOf, known: map[string]string{}}
}

// allowed says whether a path is in the places.
func (f *finder) allowed(path string) bool {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return false
	}
	for _, folder := range f.places.Folders {
		if strings.HasPrefix(path, filepath.Clean(folder)+"/") {
			return true
		}
	}
	return slices.ContainsFunc(f.places.Devices, func(glob string) bool {
		is, err := filepath.Match(glob, path)
		return is && err == nil
	})
}

func openShared(ctx context.Context, path string) (*blockdev.File, error) {
	return blockdev.OpenFile(ctx, path, blockdev.FileOptions{ReadOnly: true, Direct: true})
}

// store opens the store with a UUID: at the place that was told, or where it was last, or wherever a scan finds it. Where the place is
// another LUN here the scan decides: a name may be another device's on this host, and a guest may have written a false store to that.
func (f *finder) store(ctx context.Context, p api.Place) (*blockdev.File, error) {
	if !api.IsUUID(p.UUID) {
		return nil, fmt.Errorf("%w: %q is no store's UUID", ErrGivenUp, p.UUID)
	}
	f.mu.Lock()
	last := f.known[p.UUID]
	f.mu.Unlock()
	var tried error
	for _, path := range []string{p.Address, last} {
		if path == "" || !f.allowed(path) {
			continue
		}
		if is := f.wwid(path); path != last && p.WWID != "" && is != p.WWID {
			tried = fmt.Errorf("%s: is LUN %q here, store %s is on %s", path, is, p.UUID, p.WWID)
			continue
		}
		dev, err := f.openStore(ctx, path, p.UUID)
		if err == nil {
			return dev, nil
		}
		tried = err
	}
	path, err := f.scan(ctx, p.UUID)
	if err != nil {
		return nil, errors.Join(err, tried)
	}
	return f.openStore(ctx, path, p.UUID)
}

func (f *finder) openStore(ctx context.Context, path, id string) (*blockdev.File, error) {
	dev, err := openShared(ctx, path)
	if err != nil {
		return nil, err
	}
	choice, err := store.Peek(dev)
	if err == nil && choice.Header.UUID.String() != id {
		err = fmt.Errorf("%s: is store %v, not %s", path, choice.Header.UUID, id)
	}
	if err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	return dev, nil
}

// scan looks everywhere. A store that is there twice is refused: a guest may have written a false one to its disk.
func (f *finder) scan(ctx context.Context, id string) (string, error) {
	paths, err := f.everywhere()
	if err != nil {
		return "", err
	}
	all, err := f.places.Scan(ctx, paths)
	if err != nil {
		return "", fmt.Errorf("look for store %s: %w", id, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	hits := map[string][]string{}
	for _, s := range all {
		if len(s.Paths) > 0 {
			hits[s.UUID] = append(hits[s.UUID], s.Paths[0])
		}
	}
	for uuid, paths := range hits {
		delete(f.known, uuid)
		if len(paths) == 1 { // of several none is remembered, or the next look would take it for the right one
			f.known[uuid] = paths[0]
		}
	}
	switch hits := hits[id]; len(hits) {
	case 0:
		return "", fmt.Errorf("store %s: %w: add where it is to folders or devices in [image_node] of the configuration", id, ErrNotSeen)
	case 1:
		return hits[0], nil
	default:
		return "", fmt.Errorf("store %s is there more than once, one of them is false: %s", id, strings.Join(hits, ", "))
	}
}

func (f *finder) everywhere() ([]string, error) {
	paths := slices.Clone(f.places.Folders)
	for _, glob := range f.places.Devices {
		found, err := filepath.Glob(glob)
		if err != nil {
			return nil, fmt.Errorf("devices %q: %w", glob, err)
		}
		paths = append(paths, found...)
	}
	return paths, nil
}

// raw opens a raw disk. One without a WWID can only be known by its path, and must have the right size.
func (f *finder) raw(ctx context.Context, p api.Place) (*blockdev.File, error) {
	path, err := f.rawPath(p)
	if err != nil {
		return nil, err
	}
	dev, err := openShared(ctx, path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("raw disk %s: %w: there is nothing", path, ErrNotSeen)
	}
	if err != nil {
		return nil, err
	}
	if size := dev.Info().Size; p.Size > 0 && size < p.Size {
		return nil, errors.Join(fmt.Errorf("raw disk %s: %w: it has %d bytes here, the right one has %d", path, ErrNotSeen, size, p.Size), dev.Close())
	}
	return dev, nil
}

func (f *finder) rawPath(p api.Place) (string, error) {
	if p.WWID == "" {
		switch {
		case !f.allowed(p.Address):
			return "", fmt.Errorf("raw disk %s: %w: it has no WWID, and this path is not in folders or devices in [image_node] of the configuration", p.Address, ErrNotSeen)
		case f.wwid(p.Address) != "":
			return "", fmt.Errorf("raw disk %s: %w: here this path is the LUN %s, and the disk has no WWID", p.Address, ErrNotSeen, f.wwid(p.Address))
		}
		return p.Address, nil
	}
	paths, err := f.everywhere()
	if err != nil {
		return "", err
	}
	if f.allowed(p.Address) {
		paths = slices.Insert(paths, 0, p.Address)
	}
	for _, path := range paths {
		if f.wwid(path) == p.WWID {
			return path, nil
		}
	}
	return "", fmt.Errorf("LUN %s (%s): %w: add where it is to devices in [image_node] of the configuration", p.WWID, p.Address, ErrNotSeen)
}
