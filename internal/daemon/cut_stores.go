package daemon

import (
	"path/filepath"

	"github.com/virt-cow/virt-cow/internal/cut"
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
	d.snapshotsDue = make(chan struct{}, 1)
	d.cutter, err = cut.Open(cut.Config{
		Dir: filepath.Join(d.config.Inventory.StateDir, "cuts"), Engines: cutEngines{d}, Stores: d.stores, Guests: cutGuests{d}, Log: d.log,
	})
	return err
}
