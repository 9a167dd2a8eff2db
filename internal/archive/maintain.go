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
	"github.com/kopia/kopia/snapshot/snapshotgc"
)

// Upkeep is how much of the maintenance is done.
type Upkeep string

// The kinds of maintenance.
const (
	UpkeepNone  Upkeep = ""      // nothing was done: none was due, or another process of this host is at it
	UpkeepDue   Upkeep = "auto"  // what kopia's schedule says: quick hourly, full daily
	UpkeepQuick Upkeep = "quick" // the index, which grows with each checkpoint
	UpkeepFull  Upkeep = "full"  // the space of what nothing names any more, too
)

// Maintain does the archive's maintenance, which is one host's: of who made the archive, or took it over. ErrNotOwner on another;
// takeOver makes it this one's. Backups may be under way meanwhile, on any host. It does nothing while another process of this host does it.
// It returns what was done: UpkeepNone, UpkeepQuick or UpkeepFull.
func (a *Archive) Maintain(ctx context.Context, u Upkeep, takeOver bool) (done Upkeep, err error) {
	if takeOver {
		if err := a.own(ctx); err != nil {
			return UpkeepNone, err
		}
	}
	if a.config.Folder != "" {
		lock, err := os.OpenFile(filepath.Join(a.config.Folder, "maintenance.lock"), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return UpkeepNone, fmt.Errorf("archive %s: maintenance: %w", a.config.URI, err)
		}
		defer lock.Close()
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); errors.Is(err, syscall.EWOULDBLOCK) {
			return UpkeepNone, nil
		} else if err != nil {
			return UpkeepNone, fmt.Errorf("archive %s: maintenance: %w", a.config.URI, err)
		}
	}
	err = a.write(ctx, "maintenance", func(ctx context.Context, w repo.DirectRepositoryWriter) error {
		err := maintenance.RunExclusive(ctx, w, maintenance.Mode(u), false, func(ctx context.Context, p maintenance.RunParameters) error {
			done = Upkeep(p.Mode)
			if p.Mode == maintenance.ModeFull {
				if err := snapshotgc.Run(ctx, w, true, maintenance.SafetyFull, p.MaintenanceStartTime); err != nil {
					return err
				}
			}
			return maintenance.Run(ctx, p, maintenance.SafetyFull)
		})
		var other maintenance.NotOwnedError
		if errors.As(err, &other) {
			return fmt.Errorf("%w: %s; take it over if that one is no more", ErrNotOwner, other.Owner)
		}
		return err
	})
	return done, err
}
