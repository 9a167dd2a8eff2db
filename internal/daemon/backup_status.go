package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/durable"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// busyError refuses a second backup of a domain.
type busyError struct{ domain string }

func (e *busyError) Error() string {
	return "a backup of domain " + e.domain + " is about to begin already"
}

// rememberFor is how long the last backup of a domain is remembered that had no other since.
const rememberFor = 400 * 24 * time.Hour

func (d *Daemon) backupsDir() string { return filepath.Join(d.config.Inventory.StateDir, "backups") }

// loadBackups reads what earlier daemons knew of the last backups: when the last success was must outlive them.
func (d *Daemon) loadBackups() error {
	d.backups = map[uuid.UUID]*api.BackupStatus{}
	if err := durable.MakeDirs(d.backupsDir(), 0o700); err != nil {
		return err
	}
	paths, err := filepath.Glob(filepath.Join(d.backupsDir(), "*.json"))
	if err != nil {
		return err
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		s := &api.BackupStatus{}
		if err == nil {
			err = json.Unmarshal(b, s)
		}
		id, bad := uuid.Parse(strings.TrimSuffix(filepath.Base(path), ".json"))
		if err = errors.Join(err, bad); err == nil && s.UUID != id.String() {
			err = fmt.Errorf("is of domain %q", s.UUID)
		}
		if err != nil {
			d.log.Error().Err(err).Str("file", path).Msg("what is known of a domain's last backup can't be read")
			continue
		}
		if time.Since(time.Unix(s.Begun, 0)) > rememberFor {
			_ = os.Remove(path)
			continue
		}
		d.backups[id] = s
	}
	return nil
}

// jobEnded says whether nothing more comes of a job.
func jobEnded(state string) bool {
	return slices.Contains([]string{api.JobDone, api.JobFailed, api.JobCancelled}, state)
}

// beginBackup lets one backup of a domain begin at a time; the job that follows is the image node's to refuse.
func (d *Daemon) beginBackup(x libvirtx.Domain) (end func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.beginning[x.UUID] {
		return nil, &busyError{x.Name}
	}
	if d.beginning == nil {
		d.beginning = map[uuid.UUID]bool{}
	}
	d.beginning[x.UUID] = true
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.beginning, x.UUID)
	}, nil
}

// newBackup notes the backup that is a domain's last one from now on. One that did not get a job does not take the place of one
// that is at work.
func (d *Daemon) newBackup(x libvirtx.Domain, s api.BackupStatus) {
	s.Domain, s.UUID = x.Name, x.UUID.String()
	d.mu.Lock()
	before := d.backups[x.UUID]
	if before != nil && s.Job == "" && !jobEnded(before.State) {
		d.mu.Unlock()
		return
	}
	if before != nil {
		s.LastSuccess = before.LastSuccess
	}
	d.backups[x.UUID] = &s
	d.mu.Unlock()
	d.noteBackup(x.UUID, func(*api.BackupStatus) {})
}

// noteBackup changes what is known of a domain's last backup, durably.
func (d *Daemon) noteBackup(id uuid.UUID, change func(*api.BackupStatus)) {
	d.notingBackup.Lock()
	defer d.notingBackup.Unlock()
	d.mu.Lock()
	s := d.backups[id]
	if s == nil {
		d.mu.Unlock()
		return
	}
	change(s)
	if jobEnded(s.State) && s.Ended == 0 {
		s.Ended = time.Now().Unix()
	}
	b, err := json.Marshal(s)
	d.mu.Unlock()
	if err == nil {
		err = durable.Replace(filepath.Join(d.backupsDir(), id.String()+".json"), b, 0o600)
	}
	if err != nil {
		d.log.Error().Err(err).Str("domain", id.String()).Msg("what is known of its last backup can't be written down")
	}
}

// backupStatuses are the last backups of all domains, in the order of their names.
func (d *Daemon) backupStatuses() []api.BackupStatus {
	d.mu.Lock()
	var list []api.BackupStatus
	for _, s := range d.backups {
		list = append(list, *s)
	}
	d.mu.Unlock()
	slices.SortFunc(list, func(a, b api.BackupStatus) int { return strings.Compare(a.Domain, b.Domain) })
	for i := range list {
		list[i].MaybeFrozen = d.cutter.MaybeFrozen(list[i].UUID)
	}
	return list
}

// writesEvery is how often the guest's writes are looked at during a backup.
const writesEvery = 10 * time.Second

// followJob has it noted what becomes of a job.
func (d *Daemon) followJob(x libvirtx.Domain, job string) {
	d.tasks.Go(func() {
		var wait time.Duration
		var changed uint64
		var looked time.Time
		for d.root.Err() == nil {
			began := time.Now()
			s, err := d.askJob(d.root, api.JobRequest{Job: job, Changed: changed})
			switch {
			case unknownJob(err):
				s, err = &api.JobStatus{Job: job, State: api.JobFailed, Error: "the image node does not know it any more"}, nil
			case err == nil && jobEnded(s.State) && s.Ended == 0:
				s.Ended = time.Now().Unix()
			}
			if err == nil {
				wait, changed = 0, s.Changed
				if ended := jobEnded(s.State); ended || time.Since(looked) > writesEvery {
					looked = time.Now()
					d.writesDuring(d.root, x.UUID, ended)
				}
				if d.noteJob(x.UUID, s); jobEnded(s.State) {
					d.lookAtSnapshots() // they are stale by now, if the image node could not have them removed
					return
				}
			}
			if err != nil || time.Since(began) < time.Second { // it answers at once while much changes
				wait = max(nodeBackoff.Next(wait), time.Second)
			}
			select {
			case <-d.root.Done():
			case <-time.After(wait):
			}
		}
	})
}

// noteJob notes how a job is, if it is the domain's last one; of one before, that it was a success: the next may have begun before
// that was heard here.
func (d *Daemon) noteJob(id uuid.UUID, j *api.JobStatus) {
	d.mu.Lock()
	s := d.backups[id]
	news := false // its progress need not outlive the daemon
	switch {
	case s == nil:
	case s.Job != j.Job:
		news = j.State == api.JobDone && j.Ended > s.LastSuccess
	default:
		news = s.Ended == 0 && (s.State != j.State || s.Waits != j.Waits || s.Size != j.Size)
		s.Read, s.Zero, s.Reused, s.Written = j.Read, j.Zero, j.Reused, j.Written
	}
	d.mu.Unlock()
	if !news {
		return
	}
	d.noteBackup(id, func(s *api.BackupStatus) {
		if j.State == api.JobDone {
			s.LastSuccess = max(s.LastSuccess, j.Ended)
		}
		if s.Job == j.Job {
			s.State, s.Waits, s.Error, s.Size, s.Ended = j.State, j.Waits, j.Error, j.Size, j.Ended
		}
	})
}

// goOnWithBackups takes up what an earlier daemon has begun: cuts that were made are handed over, and jobs followed.
func (d *Daemon) goOnWithBackups(ctx context.Context) {
	handing := map[string]bool{}
	for _, h := range d.cutter.Handovers() {
		var r api.StartRequest
		if err := json.Unmarshal(h.Payload, &r); err != nil {
			d.log.Error().Err(errors.Join(err, d.cutter.Drop(h.Cut))).Str("job", h.Cut).Msg("a cut that was made can't be handed over")
			continue
		}
		handing[h.Cut] = true
		d.tasks.Go(func() { _ = d.handOver(ctx, h.Domain, r) }) // it is logged
	}
	d.mu.Lock()
	all := maps.Clone(d.backups)
	d.mu.Unlock()
	for id, s := range all {
		switch {
		case jobEnded(s.State) || handing[s.Job]:
		case s.State == api.JobReserved: // its cut was not made, or was not known to be
			d.noteBackup(id, func(s *api.BackupStatus) {
				s.State, s.Waits, s.Error = api.JobFailed, "", "the daemon ended before the cut was made"
			})
			if s.Job != "" {
				d.tasks.Go(func() { d.cancelJob(ctx, s.Job) })
			}
		default:
			d.followJob(libvirtx.Domain{Name: s.Domain, UUID: id}, s.Job)
		}
	}
}
