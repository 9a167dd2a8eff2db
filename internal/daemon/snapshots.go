package daemon

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// storedSnapshot is a snapshot store that the inventory knows of.
type storedSnapshot struct{ snapshot, volume, name, job, store string }

// snapshotBackoff is how often snapshots are looked at: soon again while there is something to do, seldom otherwise.
var snapshotBackoff = libvirtx.Backoff{Min: 5 * time.Second, Max: 5 * time.Minute}

// lookAtSnapshots has them looked at soon.
func (d *Daemon) lookAtSnapshots() {
	select {
	case d.snapshotsDue <- struct{}{}:
	default:
	}
}

// watchSnapshots takes away what is stale: snapshots of a job that has ended, or that the image node does not know. While it does
// not answer they stay.
func (d *Daemon) watchSnapshots(ctx context.Context) {
	var wait time.Duration
	for {
		wait = snapshotBackoff.Next(wait)
		select {
		case <-ctx.Done():
			return
		case <-d.snapshotsDue:
			wait = 0
		case <-time.After(wait):
		}
		notes, stale := d.reapSnapshots(ctx)
		d.mu.Lock()
		d.notes = notes
		d.mu.Unlock()
		if stale > 0 && wait > snapshotBackoff.Max/4 {
			wait = snapshotBackoff.Max / 4
		}
	}
}

// reapSnapshots looks at all once, and returns those that are left, and how many of them should not be.
func (d *Daemon) reapSnapshots(ctx context.Context) (left []api.SnapshotNote, stale int) {
	verdicts := map[string]verdict{}
	for _, s := range d.knownSnapshots(ctx) {
		v, known := verdicts[s.note.Job]
		if !known {
			v = d.judge(ctx, s.note.Job)
			verdicts[s.note.Job] = v
		}
		s.note.Stale, s.note.Why = v.stale, v.why
		if v.stale {
			err := d.cutter.Remove(ctx, s.volume, s.note.Snapshot)
			if err == nil {
				d.log.Info().Str("volume", s.note.Volume).Str("snapshot", s.note.Snapshot).Str("job", s.note.Job).Str("why", v.why).
					Msg("stale snapshot removed")
				continue
			}
			stale++
			s.note.Why += ", but it can't be removed: " + err.Error()
		}
		left = append(left, s.note)
	}
	slices.SortFunc(left, func(a, b api.SnapshotNote) int { return strings.Compare(a.Volume+a.Snapshot, b.Volume+b.Snapshot) })
	return left, stale
}

// knownSnapshot is one that is in the stack of a volume that is served here, or whose store the inventory knows.
type knownSnapshot struct {
	volume string // UUID
	note   api.SnapshotNote
}

func (d *Daemon) knownSnapshots(ctx context.Context) []knownSnapshot {
	var all []knownSnapshot
	seen := map[string]bool{}
	d.mu.Lock()
	var served []*volume
	for _, v := range d.volumes {
		if v.engine != nil && v.incoming == nil && !v.gone {
			served = append(served, v)
		}
	}
	d.mu.Unlock()
	for _, v := range served {
		s, err := d.engineStatus(ctx, v)
		if err != nil || s.ReadOnly || s.Lost {
			continue
		}
		for _, e := range s.Stack {
			seen[e.UUID] = true
			all = append(all, knownSnapshot{s.UUID, api.SnapshotNote{
				Volume: s.Volume, Snapshot: e.UUID, Job: e.Cut, Store: e.Store, State: e.State,
			}})
		}
	}
	for _, s := range d.stores.All() {
		if !seen[s.snapshot] {
			all = append(all, knownSnapshot{s.volume, api.SnapshotNote{Volume: s.name, Snapshot: s.snapshot, Job: s.job, Store: s.store}})
		}
	}
	return all
}

// verdict is what is known of a job: whether its snapshots are stale, and why, or why that is not known.
type verdict struct {
	stale bool
	why   string
}

// judge asks the image node about a job. One whose cut this daemon is at work on is not over, whatever the node says.
func (d *Daemon) judge(ctx context.Context, job string) verdict {
	if d.cutter.Has(job) {
		return verdict{}
	}
	s, err := d.askJob(ctx, api.JobRequest{Job: job})
	switch {
	case unknownJob(err):
		return verdict{true, "the image node knows of no such job"}
	case err != nil:
		return verdict{false, "whether it is needed is not known: " + err.Error()}
	case jobEnded(s.State):
		return verdict{true, "its job has ended: " + s.State}
	}
	return verdict{}
}

// findSnapshots finds where the stores of a volume's snapshots are on this host, before its engine is started: the paths in its
// header are those of the host that made them. One that is not found here is the engine's affair: it knows what matters more.
func (d *Daemon) findSnapshots(ctx context.Context, v *volume, w libvirtx.Want) {
	h, err := d.inventory.Header(ctx, w.Store)
	if err != nil { // the engine says best what is wrong with it
		return
	}
	found := map[string]string{}
	var missing []string
	for _, e := range h.Stack {
		if e.State == api.SnapshotBroken {
			continue
		}
		path := d.snapshotPath(ctx, e)
		if path == "" {
			d.log.Warn().Str("volume", v.name).Str("snapshot", e.UUID).Str("path", e.Store).
				Msg("a snapshot's store is not at its place on this host, nor in the catalogue: `virt-cow volume scan` may find it")
			if e.State == api.SnapshotActive && e.OnError == api.BreakGuestWrite {
				missing = append(missing, e.UUID)
			}
			continue
		}
		found[e.UUID] = path
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	v.snapshots, v.missing = found, missing
}

// snapshotPath is where the store of a snapshot in a stack is on this host, "" if that is not known.
func (d *Daemon) snapshotPath(ctx context.Context, e api.SnapshotStatus) string {
	if at, err := d.inventory.Header(ctx, e.Store); err == nil && at.UUID == e.UUID {
		return e.Store
	}
	return d.stores.Path(e.UUID)
}
