package backup

import (
	"context"
	"errors"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
)

// upkeep looks at the archive every so often: whether it can be reached, and whether maintenance is due by its schedule. Only the host
// that owns the maintenance does any, and no backup has to stop for it: what is being written is young, and kopia deletes nothing young.
func (n *Node) upkeep(ctx context.Context) {
	for {
		n.lookAfter(ctx)
		select {
		case <-time.After(n.config.Upkeep):
		case <-ctx.Done():
			return
		}
	}
}

func (n *Node) lookAfter(ctx context.Context) {
	began := time.Now()
	var done string
	var failed error // of the maintenance
	reached := n.withArchive(ctx, func(string) {}, func(a Archive) error {
		done, failed = a.Maintain(ctx)
		return nil
	})
	if ctx.Err() != nil {
		return
	}
	log := n.config.Log.With().Str("part", "archive").Logger()
	var before api.ArchiveStatus
	n.noteArchive(func(s *api.ArchiveStatus) {
		before = *s
		if reached != nil {
			return
		}
		switch s.NotOurs = errors.Is(failed, ErrNotOurs); {
		case s.NotOurs:
			s.MaintenanceError = ""
		case failed != nil:
			s.MaintenanceError = failed.Error()
		default:
			s.MaintenanceError = ""
			if done != "" {
				s.Maintained = time.Now().Unix()
			}
		}
	})
	switch {
	case reached != nil:
		log.Error().Err(reached).Msg("the archive can't be reached: no backup can be made")
	case errors.Is(failed, ErrNotOurs):
		if !before.NotOurs {
			log.Info().Err(failed).Msg("no maintenance of the archive by this host")
		}
	case failed != nil:
		log.Error().Err(failed).Msg("maintenance of the archive failed: what no backup has any more still takes room")
	case done != "":
		log.Info().Str("maintenance", done).Dur("took", time.Since(began)).Msg("archive maintained")
	}
}

func (n *Node) noteArchive(change func(*api.ArchiveStatus)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change(&n.archive)
}
