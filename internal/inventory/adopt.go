package inventory

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/catalogue"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// AdoptNamed is Adopt of a store that only a domain's metadata names: no operator has said that there is one. What looks
// like a store on a guest's raw disk is that guest's doing, and its header may name any disk of the host as its own.
func (inv *Inventory) AdoptNamed(ctx context.Context, store, name string) (api.VolumeInfo, error) {
	if inv.config.GuestDisks != nil {
		guests, err := inv.config.GuestDisks(ctx)
		if err != nil {
			return api.VolumeInfo{}, fmt.Errorf("which disks guests have: %w", err)
		}
		for _, disk := range guests {
			if inv.looks.sameThing(disk, store) {
				return api.VolumeInfo{}, rawDiskError(store)
			}
		}
	}
	return inv.Adopt(ctx, api.AdoptRequest{Store: store, Name: name})
}

func rawDiskError(path string) error {
	return fmt.Errorf("%w: %s is a guest's raw disk: what looks like a store there is not taken for one", ErrInvalid, path)
}

// Adopt takes a store that exists into the catalogue, or makes a state store for a raw disk. The disk itself is not
// touched.
func (inv *Inventory) Adopt(ctx context.Context, r api.AdoptRequest) (api.VolumeInfo, error) {
	if r.Name != "" || r.Raw != "" {
		if err := cowfmt.ValidName(r.Name); err != nil {
			return api.VolumeInfo{}, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	switch {
	case r.Raw != "":
		return inv.adoptRaw(ctx, r)
	case r.Check || r.ForceRaw:
		return api.VolumeInfo{}, fmt.Errorf("%w: check and forceRaw are about a raw disk, and none is named", ErrInvalid)
	}
	if !filepath.IsAbs(r.Store) {
		return api.VolumeInfo{}, fmt.Errorf("%w: store %q: not an absolute path", ErrInvalid, r.Store)
	}
	path := filepath.Clean(r.Store)
	if err := inv.devices.stable(path); err != nil {
		return api.VolumeInfo{}, err
	}
	if _, block := blockDevice(path); !block { // a link to a device is its stable name, one to a file is not the file
		file, err := filepath.EvalSymlinks(path)
		if err != nil {
			return api.VolumeInfo{}, fmt.Errorf("%w: store %s: %w", ErrInvalid, path, errors.Unwrap(err))
		}
		path = file
	}
	for _, e := range inv.cat.All() {
		if e.Origin != "" && inv.looks.sameThing(e.Origin, path) {
			return api.VolumeInfo{}, fmt.Errorf("%w, of volume %s", rawDiskError(path), e.Name)
		}
	}
	there, err := inv.look(ctx, path)
	switch {
	case err != nil:
		return api.VolumeInfo{}, err
	case there == nil:
		return api.VolumeInfo{}, fmt.Errorf("%w: there is no virt-cow store at %s; a raw disk is adopted with --raw", ErrInvalid, path)
	case !there.volume():
		return api.VolumeInfo{}, fmt.Errorf("%w: %s is the store of a %s, not of a volume", ErrInvalid, path, there.Role)
	case r.Name != "" && r.Name != there.Name:
		return api.VolumeInfo{}, fmt.Errorf("%w: %s is the store of volume %s, not of %s", ErrInvalid, path, there.Name, r.Name)
	}
	leave, err := inv.enter(ctx, there.Name)
	if err != nil {
		return api.VolumeInfo{}, err
	}
	defer leave()
	e := there.into(catalogue.Entry{State: catalogue.Ready, Store: path})
	if other, ok := inv.ByStore(path); ok {
		return api.VolumeInfo{}, fmt.Errorf("%s: the store %w: it is in the catalogue as volume %s", path, ErrExists, other.Name)
	}
	if err := inv.nameFree(e.Name); err != nil {
		return api.VolumeInfo{}, err
	}
	return info(e), inv.cat.Add(e)
}

func (inv *Inventory) adoptRaw(ctx context.Context, r api.AdoptRequest) (api.VolumeInfo, error) {
	if !filepath.IsAbs(r.Raw) {
		return api.VolumeInfo{}, fmt.Errorf("%w: raw disk %s: not an absolute path", ErrInvalid, r.Raw)
	}
	raw := filepath.Clean(r.Raw)
	if err := inv.devices.stable(raw); err != nil {
		return api.VolumeInfo{}, err
	}
	leave, err := inv.enter(ctx, r.Name)
	if err != nil {
		return api.VolumeInfo{}, err
	}
	defer leave()
	if err := inv.nameFree(r.Name); err != nil {
		return api.VolumeInfo{}, err
	}
	for _, e := range inv.cat.All() {
		if e.Origin != "" && sameThing(e.Origin, raw) {
			return api.VolumeInfo{}, fmt.Errorf("%s: the disk %w: it is the origin of volume %s", raw, ErrExists, e.Name)
		}
	}
	if e, ok := inv.ByStore(raw); ok {
		return api.VolumeInfo{}, fmt.Errorf("%w: %s is the store of volume %s, not a raw disk", ErrInvalid, raw, e.Name)
	}
	e := catalogue.Entry{Name: r.Name, UUID: uuid.NewString(), State: catalogue.Creating, Origin: raw}
	store := r.Store
	if store == "" {
		store = inv.defaultStore(r.Name)
	}
	if err := inv.intendPath(store, &e); err != nil {
		return api.VolumeInfo{}, err
	}
	if r.Check {
		return info(e), inv.usable(raw)
	}
	what := []string{"--raw", raw, "--name", e.Name}
	if r.ForceRaw {
		what = append(what, "--force-raw")
	}
	return infoOf(inv.create(ctx, e, 0, what))
}
