package inventory

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/catalogue"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/plugin"
)

// storeSuffix ends the names of stores that are given no place.
const storeSuffix = ".vcow"

// intend chooses where the store of a new volume goes. Nothing is made yet.
func (inv *Inventory) intend(ctx context.Context, r api.CreateRequest, e *catalogue.Entry) error {
	switch {
	case r.LUN != "":
		pools, err := inv.pools()
		if err != nil {
			return err
		}
		path, _, err := pools.FindVolume(ctx, r.Pool, r.LUN)
		if errors.Is(err, libvirtx.ErrNoVolume) {
			return fmt.Errorf("pool %s: %w: it has no LUN %s: `virsh vol-list %s` lists them", r.Pool, ErrInvalid, r.LUN, r.Pool)
		}
		if err != nil {
			return fmt.Errorf("pool %s: %w", r.Pool, err)
		}
		e.Pool, e.PoolVolume, e.Store = r.Pool, r.LUN, path
		return inv.usable(path)
	case r.Pool != "":
		// Part of the UUID in its name: what has this name is this volume's.
		e.Pool, e.PoolVolume, e.Made = r.Pool, ownName(*e), true
		return inv.absent(ctx, *e)
	case r.Provider != "":
		e.Provider, e.Made = r.Provider, true
		return inv.absent(ctx, *e)
	case r.Store != "":
		return inv.intendPath(r.Store, e)
	}
	return inv.intendPath(inv.defaultStore(e.Name), e)
}

func (inv *Inventory) defaultStore(name string) string {
	return filepath.Join(inv.config.StoreDir, name+storeSuffix)
}

// ownName is a name for a store that no other has: part of the UUID is in it.
func ownName(e catalogue.Entry) string {
	name := e.Name
	if e.Snapshot() {
		name = e.Volume + "-snap"
	}
	return name + "-" + e.UUID[:8] + storeSuffix
}

// intendPath: a new file, or a block device.
func (inv *Inventory) intendPath(path string, e *catalogue.Entry) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%w: store %s: not an absolute path", ErrInvalid, path)
	}
	e.Store = filepath.Clean(path)
	if _, err := os.Lstat(e.Store); err == nil {
		if _, block := blockDevice(e.Store); !block {
			return fmt.Errorf("%s: the path %w, by a file: if that is a store, `virt-cow volume adopt %s` takes it", e.Store, ErrExists, e.Store)
		}
	}
	return inv.usable(e.Store)
}

// usable refuses a place under an unstable name, and one that a volume has or needs: no force is for that.
func (inv *Inventory) usable(path string) error {
	if err := inv.devices.stable(path); err != nil {
		return err
	}
	at, ok := thingAt(path)
	if !ok {
		return nil
	}
	for _, e := range inv.all() {
		for what, used := range map[string]string{
			"store": e.Store, "raw disk": e.Origin, "master": strings.TrimPrefix(strings.TrimPrefix(e.Master, "raw:"), "store:"),
		} {
			if there, ok := thingAt(used); ok && there == at && e.State != catalogue.Missing {
				return fmt.Errorf("%s: the place %w: it is the %s of %s", path, ErrExists, what, e.Title())
			}
		}
	}
	return nil
}

// absent refuses a pool's or provider's volume that is there already: it would not be ours to delete.
func (inv *Inventory) absent(ctx context.Context, e catalogue.Entry) error {
	path, err := inv.findMade(ctx, e)
	if err == nil && path != "" {
		err = fmt.Errorf("%s has a volume of this name already, at %s, so the name %w", placeName(e), path, ErrExists)
	}
	return err
}

func placeName(e catalogue.Entry) string {
	if e.Pool != "" {
		return "pool " + e.Pool
	}
	return "provider " + e.Provider
}

// findMade finds the pool's or provider's volume of an entry: "" if there is none.
func (inv *Inventory) findMade(ctx context.Context, e catalogue.Entry) (path string, err error) {
	if e.Pool != "" {
		pools, err := inv.pools()
		if err != nil {
			return "", err
		}
		path, _, err = pools.FindVolume(ctx, e.Pool, e.PoolVolume)
		if errors.Is(err, libvirtx.ErrNoVolume) {
			return "", nil
		}
		if err != nil {
			err = fmt.Errorf("pool %s: %w", e.Pool, err)
		}
		return path, err
	}
	p, err := inv.provider(e.Provider)
	if err != nil {
		return "", err
	}
	path, err = p.Resolve(ctx, e.Name)
	if errors.Is(err, plugin.ErrNotFound) {
		return "", nil
	}
	return path, err
}

// make makes the pool's or provider's volume of an entry that says so, and returns its path.
func (inv *Inventory) make(ctx context.Context, e catalogue.Entry, room int64) (path string, err error) {
	if e.Pool != "" {
		pools, err := inv.pools()
		if err != nil {
			return "", err
		}
		if path, err = pools.CreateVolume(ctx, e.Pool, e.PoolVolume, room); err != nil {
			return "", fmt.Errorf("pool %s: %w", e.Pool, err)
		}
	} else {
		p, err := inv.provider(e.Provider)
		if err != nil {
			return "", err
		}
		if path, err = p.Create(ctx, e.Name, room); err != nil {
			return "", err
		}
	}
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("%s made a volume at %q: not an absolute path", placeName(e), path)
	}
	return filepath.Clean(path), nil
}

// unmake deletes what make made.
func (inv *Inventory) unmake(ctx context.Context, e catalogue.Entry) error {
	path, err := inv.findMade(ctx, e)
	if err != nil || path == "" {
		return err
	}
	if e.Pool == "" {
		p, err := inv.provider(e.Provider)
		if err != nil {
			return err
		}
		return p.Delete(ctx, e.Name, path)
	}
	pools, err := inv.pools()
	if err != nil {
		return err
	}
	if err := pools.DeleteVolume(ctx, e.Pool, e.PoolVolume); err != nil && !errors.Is(err, libvirtx.ErrNoVolume) {
		return fmt.Errorf("pool %s: %w", e.Pool, err)
	}
	return nil
}

func (inv *Inventory) pools() (Pools, error) {
	if inv.config.Pools == nil {
		return nil, fmt.Errorf("%w: this daemon has no libvirt storage pools", ErrInvalid)
	}
	return inv.config.Pools()
}

func (inv *Inventory) provider(name string) (Provider, error) {
	if inv.config.Provider == nil {
		return nil, fmt.Errorf("%w: this daemon has no provider plugins", ErrInvalid)
	}
	return inv.config.Provider(name)
}
