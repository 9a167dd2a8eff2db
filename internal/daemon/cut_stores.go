package daemon

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/virt-cow/virt-cow/internal/cut"
	"github.com/virt-cow/virt-cow/internal/inventory"
)

// snapshotStores are the snapshot stores that this host knows of.
type snapshotStores interface {
	cut.Stores
	All() []storedSnapshot
	Path(snapshot string) string // "" of one that is not known
}

// openCuts reads what an earlier daemon has left of backups.
func (d *Daemon) openCuts() (err error) {
	if err := d.loadBackups(); err != nil {
		return err
	}
	if d.stores == nil {
		d.stores = inventoryStores{d.inventory}
	}
	d.snapshotsDue = make(chan struct{}, 1)
	d.cutter, err = cut.Open(cut.Config{
		Dir: filepath.Join(d.config.Inventory.StateDir, "cuts"), Engines: cutEngines{d}, Stores: d.stores, Guests: cutGuests{d}, Log: d.log,
	})
	return err
}

// inventoryStores are the inventory's.
type inventoryStores struct{ inv *inventory.Inventory }

// Make implements cut.Stores.
func (i inventoryStores) Make(ctx context.Context, s cut.Snapshot) (string, error) {
	made, err := i.inv.MakeSnapshot(ctx, inventory.SnapshotRequest{
		Volume: s.Name, UUID: s.Snapshot, Cut: s.Cut, Job: s.Cut, ChunkSize: s.ChunkSize, Folder: s.Folder, Pool: s.Pool, Provider: s.Provider,
	})
	return made.Store, err
}

// Delete implements cut.Stores.
func (i inventoryStores) Delete(ctx context.Context, snapshot string) error {
	err := i.inv.DeleteSnapshot(ctx, snapshot)
	if errors.Is(err, inventory.ErrNotFound) {
		return nil
	}
	return err
}

// All implements snapshotStores.
func (i inventoryStores) All() []storedSnapshot {
	var all []storedSnapshot
	for _, s := range i.inv.Snapshots() {
		if s.VolumeUUID != "" { // else its record can't be read
			all = append(all, storedSnapshot{snapshot: s.UUID, volume: s.VolumeUUID, name: s.Volume, job: s.Cut, store: s.Store})
		}
	}
	return all
}

// Path implements snapshotStores.
func (i inventoryStores) Path(snapshot string) string {
	for _, s := range i.inv.Snapshots() {
		if s.UUID == snapshot {
			return s.Store
		}
	}
	return ""
}
