package backup

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// Reserve begins a job. ErrBusy if the domain has an unfinished one.
func (n *Node) Reserve(_ context.Context, r api.ReserveRequest) (api.JobStatus, error) {
	if !api.IsUUID(r.UUID) || r.Domain == "" || r.Address == "" {
		return api.JobStatus{}, fmt.Errorf("%w: domain %q, UUID %q, address %q", ErrInvalid, r.Domain, r.UUID, r.Address)
	}
	if r.WaitSeconds < 0 || r.WaitSeconds > api.MaxWait {
		return api.JobStatus{}, fmt.Errorf("%w: waitSeconds %d: want 0 to %d", ErrInvalid, r.WaitSeconds, api.MaxWait)
	}
	j := n.newJob(record{
		Version: recordVersion, Job: uuid.NewString(), State: api.JobReserved, Reserve: r, Reserved: time.Now().Unix(),
	})
	// It has its place before it is durable, so that two can't have one.
	n.mu.Lock()
	for _, other := range n.jobs {
		if other.rec.Reserve.UUID == r.UUID && !other.rec.ended() {
			err := fmt.Errorf("domain %s: %w: job %s is %s", r.Domain, ErrBusy, other.id, other.rec.State)
			n.mu.Unlock()
			return api.JobStatus{}, err
		}
	}
	n.jobs[j.id] = j
	n.mu.Unlock()
	if err := j.change(func(*record) error { return nil }); err != nil {
		n.mu.Lock()
		delete(n.jobs, j.id)
		n.mu.Unlock()
		return api.JobStatus{}, err
	}
	j.log.Info().Str("host", r.Host).Msg("job reserved")
	n.mu.Lock()
	defer n.mu.Unlock()
	return j.status(), nil
}

// Start hands over the cut, whose UUID is the job's. Done twice, as after an answer that was lost, it does nothing more.
func (n *Node) Start(_ context.Context, r api.StartRequest) (api.JobStatus, error) {
	j, err := n.find(r.Job)
	if err != nil {
		return api.JobStatus{}, err
	}
	if err := checkManifest(&r.Manifest); err != nil {
		return api.JobStatus{}, fmt.Errorf("%w: manifest: %w", ErrInvalid, err)
	}
	if r.Rate < 0 {
		return api.JobStatus{}, fmt.Errorf("%w: rate %d", ErrInvalid, r.Rate)
	}
	again := errors.New("again")
	err = j.change(func(rec *record) error {
		switch {
		case rec.Reserve.UUID != r.Manifest.UUID:
			return fmt.Errorf("%w: the job is of domain %s, the manifest of %s", ErrInvalid, rec.Reserve.UUID, r.Manifest.UUID)
		case r.Manifest.Cut != rec.Job:
			return fmt.Errorf("%w: the manifest is of cut %s, which is not this job", ErrInvalid, r.Manifest.Cut)
		case rec.Manifest != nil:
			return again
		case rec.State != api.JobReserved:
			return fmt.Errorf("%w: it is %s", ErrState, rec.State)
		}
		rec.State, rec.Started, rec.Manifest, rec.Rate = api.JobQueued, time.Now().Unix(), &r.Manifest, r.Rate
		return nil
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case errors.Is(err, again):
		return j.status(), nil
	case err != nil:
		return api.JobStatus{}, err
	}
	n.queue = append(n.queue, j)
	n.kick()
	return j.status(), nil
}

// errCancelled is why a job's context ends when it is cancelled.
var errCancelled = errors.New("cancelled")

// Cancel ends a job, soon if it is at work. One that has ended stays as it is.
func (n *Node) Cancel(_ context.Context, r api.JobRequest) (api.JobStatus, error) {
	j, err := n.find(r.Job)
	if err != nil {
		return api.JobStatus{}, err
	}
	n.mu.Lock()
	if j.cancel == nil && j.rec.State == api.JobCompleting && n.alive() { // an earlier process may have entered it: that is looked at first
		n.queue = slices.DeleteFunc(n.queue, func(q *job) bool { return q == j })
		n.launch(j)
	}
	cancel := j.cancel
	n.mu.Unlock()
	if cancel != nil {
		cancel(errCancelled)
	} else {
		err = j.change(func(r *record) error {
			r.Stored = r.State == api.JobCopying || r.State == api.JobCompleting // an earlier process has begun it
			return end(api.JobCancelled, nil)(r)
		})
		if err == nil {
			n.cleanLater(j)
		}
	}
	if errors.Is(err, ErrState) { // ended by itself meanwhile
		err = nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return j.status(), err
}

func (n *Node) cleanLater(j *job) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if life := n.life; life != nil && life.Err() == nil {
		n.running.Go(func() { n.clean(life, j) })
	}
}

var (
	targetName = regexp.MustCompile(`^[a-z][a-z0-9]{1,15}$`)
	fileName   = regexp.MustCompile(`^(nvram|tpm/[A-Za-z0-9_+@-][A-Za-z0-9._+@-]{0,127})$`) // what the archive takes, and no name of its own
)

// maxFiles bounds the small files of a backup, bytes together.
const maxFiles = 16 << 20

// checkManifest refuses what can't be: names in it become names in the archive.
func checkManifest(m *api.Manifest) error {
	switch {
	case m.Version != 1:
		return fmt.Errorf("version %d, this program knows 1", m.Version)
	case !api.IsUUID(m.Cut) || !api.IsUUID(m.UUID):
		return fmt.Errorf("cut %q, domain %q", m.Cut, m.UUID)
	case !slices.Contains([]string{api.GradeCrash, api.GradeFS, api.GradeApp, api.GradeOff}, m.Grade):
		return fmt.Errorf("grade %q", m.Grade)
	case len(m.Disks) == 0:
		return errors.New("no disks")
	}
	seen := map[string]bool{}
	for i := range m.Disks {
		d := &m.Disks[i]
		if err := checkDisk(d); err != nil {
			return err
		}
		for _, once := range []string{d.Target, "volume " + d.UUID, "snapshot " + d.Snapshot} {
			if seen[once] {
				return fmt.Errorf("disk %s: %s is there twice", d.Target, once)
			}
			seen[once] = true
		}
	}
	total := 0
	for name, data := range m.Files {
		if !fileName.MatchString(name) {
			return fmt.Errorf("file %q: the archive takes nvram, and in tpm names of letters, digits and ._-+@", name)
		}
		total += len(data)
	}
	if total > maxFiles {
		return fmt.Errorf("files of %d bytes, at most %d", total, maxFiles)
	}
	return nil
}

func checkDisk(d *api.ManifestDisk) error {
	switch {
	case !targetName.MatchString(d.Target):
		return fmt.Errorf("disk %q", d.Target)
	case cowfmt.ValidName(d.Volume) != nil:
		return fmt.Errorf("disk %s: volume %q", d.Target, d.Volume)
	case !api.IsUUID(d.UUID) || !api.IsUUID(d.Snapshot):
		return fmt.Errorf("disk %s: volume %q, snapshot %q", d.Target, d.UUID, d.Snapshot)
	case d.Size <= 0 || d.Size%blockdev.SectorSize != 0 || d.Size > cowfmt.MaxSize:
		return fmt.Errorf("disk %s: size %d", d.Target, d.Size)
	}
	return nil
}
