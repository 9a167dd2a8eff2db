package archive

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/maintenance"
	"github.com/kopia/kopia/snapshot/snapshotmaintenance"
)

// Upkeep is how much of the maintenance is done.
type Upkeep string

// The kinds of maintenance.
const (
	UpkeepDue   Upkeep = "auto"  // what kopia's schedule says: quick hourly, full daily
	UpkeepQuick Upkeep = "quick" // the index, which grows with each checkpoint
	UpkeepFull  Upkeep = "full"  // the space of what nothing names any more, too
)

// Maintain does the archive's maintenance, which is one host's: of who made the archive, or took it over. ErrNotOwner on another;
// takeOver makes it this one's. Backups may be under way meanwhile, on any host. It does nothing while another process of this host does it.
func (a *Archive) Maintain(ctx context.Context, u Upkeep, takeOver bool) error {
	if takeOver {
		if err := a.own(ctx); err != nil {
			return err
		}
	}
	if a.config.Folder != "" {
		lock, err := os.OpenFile(filepath.Join(a.config.Folder, "maintenance.lock"), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return fmt.Errorf("archive %s: maintenance: %w", a.config.URI, err)
		}
		defer lock.Close()
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); errors.Is(err, syscall.EWOULDBLOCK) {
			return nil
		} else if err != nil {
			return fmt.Errorf("archive %s: maintenance: %w", a.config.URI, err)
		}
	}
	return a.write(ctx, "maintenance", func(ctx context.Context, w repo.DirectRepositoryWriter) error {
		err := snapshotmaintenance.Run(ctx, w, maintenance.Mode(u), false, maintenance.SafetyFull)
		var other maintenance.NotOwnedError
		if errors.As(err, &other) {
			return fmt.Errorf("%w: %s; take it over if that one is no more", ErrNotOwner, other.Owner)
		}
		return err
	})
}
