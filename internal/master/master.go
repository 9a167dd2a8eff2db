// Package master opens what a clone is made of: raw files and block devices, other stores, NBD exports.
// A master is only ever read, must stay as it is, and is known again by its identity, never by its path. So is the
// raw disk of a state store, which is written to (origin.go).
package master

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/engine"
	"github.com/virt-cow/virt-cow/internal/nbd"
	"github.com/virt-cow/virt-cow/internal/store"
)

var (
	// ErrFormat says that a path holds an image of a format that would have to be guessed.
	ErrFormat = errors.New("not a raw image")
	// ErrWrong says that what was found is not the master that the clone was made of.
	ErrWrong = errors.New("wrong master")
)

// maxDepth bounds clones of clones of clones.
const maxDepth = 8

// lockWait is how long an open waits for somebody who holds the master for writing.
const lockWait = 2 * time.Second

// ParseLocator reads a master as people write it: nbd:// and nbd+unix:// URIs, store:PATH, raw:PATH, or a
// plain PATH, which is raw unless it looks like something else. Paths become absolute.
func ParseLocator(arg string) (cowfmt.Locator, error) {
	kind, address := cowfmt.LocatorRaw, arg
	switch scheme, rest, _ := strings.Cut(arg, ":"); scheme {
	case "nbd", "nbd+unix", "nbds", "nbds+unix":
		return cowfmt.Locator{Kind: cowfmt.LocatorNBD, Address: arg}, nil
	case "store":
		kind, address = cowfmt.LocatorStore, rest
	case "raw":
		address = rest
	default:
		if strings.HasPrefix(rest, "//") {
			return cowfmt.Locator{}, fmt.Errorf("master %s: virt-cow can't read %s:// masters; nbdkit or qemu-nbd can export them over NBD", arg, scheme)
		}
		if err := sniff(arg); err != nil {
			return cowfmt.Locator{}, err
		}
	}
	path, err := filepath.Abs(address)
	if err != nil {
		return cowfmt.Locator{}, err
	}
	return cowfmt.Locator{Kind: kind, Address: path}, nil
}

// Open opens a master for reading. With want it must be that one: ErrWrong otherwise.
func Open(ctx context.Context, l cowfmt.Locator, want *cowfmt.Identity, log zerolog.Logger) (blockdev.Device, error) {
	return open(ctx, l, want, log, 0)
}

func open(ctx context.Context, l cowfmt.Locator, want *cowfmt.Identity, log zerolog.Logger, depth int) (blockdev.Device, error) {
	if depth >= maxDepth {
		return nil, fmt.Errorf("master %s: more than %d clones deep", l.Address, maxDepth)
	}
	var (
		dev blockdev.Device
		err error
	)
	switch l.Kind {
	case cowfmt.LocatorRaw:
		dev, err = openRaw(ctx, l.Address)
	case cowfmt.LocatorStore:
		dev, err = openStore(ctx, l.Address, log, depth)
	case cowfmt.LocatorNBD:
		var opts nbd.Options
		if want != nil && want.Kind == cowfmt.IdentitySamples {
			opts.Reconnected = again(l.Address, want)
		}
		dev, err = nbd.Dial(ctx, l.Address, opts)
	default:
		err = fmt.Errorf("this program can't read %v masters", l.Kind)
	}
	if err != nil {
		return nil, fmt.Errorf("master: %w", err)
	}
	if want != nil {
		if err := check(dev, l.Address, want); err != nil {
			return nil, errors.Join(err, dev.Close())
		}
	}
	return dev, nil
}

// openRaw opens a file or block device through the page cache, which all clones of it on this host share.
// Whoever opens a block device first drops what the cache had: another host may have written there since.
// A file's cache is its file system's business, local or shared.
func openRaw(ctx context.Context, path string) (*blockdev.File, error) {
	f, err := blockdev.OpenFile(ctx, path, blockdev.FileOptions{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	alone, cancel := context.WithCancel(ctx)
	cancel() // one try
	if f.IsBlockDevice() && f.Lock(alone, blockdev.LockExclusive) == nil {
		if err := f.DropCache(); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	waiting, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	if err := f.Lock(waiting, blockdev.LockShared); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: it is open for writing", err), f.Close())
	}
	return f, nil
}

// volumeDevice is a store opened as a master, with the file under it.
type volumeDevice struct {
	*engine.Volume
	under *blockdev.File
}

func (v *volumeDevice) Close() error {
	return errors.Join(v.Volume.Close(), v.under.Close())
}

func openStore(ctx context.Context, path string, log zerolog.Logger, depth int) (blockdev.Device, error) {
	waiting, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	f, err := blockdev.OpenFile(waiting, path, blockdev.FileOptions{ReadOnly: true, Direct: true, Lock: blockdev.LockShared})
	if err != nil {
		return nil, err
	}
	dev, err := openVolume(ctx, f, log, depth)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return dev, nil
}

func openVolume(ctx context.Context, f *blockdev.File, log zerolog.Logger, depth int) (blockdev.Device, error) {
	st, err := store.Open(f)
	if err != nil {
		return nil, err
	}
	h := st.Header()
	if h.Role == cowfmt.RoleState {
		return nil, fmt.Errorf("%s: is the state store of a raw disk: say raw:%s for that disk", f.Info().Name, h.Origin.Address)
	}
	if h.Owner != nil {
		return nil, fmt.Errorf("%s: is open for writing, or was not closed: serve and close it first", f.Info().Name)
	}
	var under blockdev.Device
	if h.Master != nil && !h.CutLoose {
		if under, err = open(ctx, *h.Master, h.MasterIdentity, log, depth+1); err != nil {
			return nil, err
		}
	}
	v, err := engine.Open(ctx, engine.Options{Store: st, Master: under, ReadOnly: true, Log: log})
	if err != nil {
		if under != nil {
			err = errors.Join(err, under.Close())
		}
		return nil, err
	}
	return &volumeDevice{Volume: v, under: f}, nil
}
