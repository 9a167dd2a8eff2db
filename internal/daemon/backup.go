package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cut"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/peer"
)

// BackupConfig is how backups are begun. Without a node there are none.
type BackupConfig struct {
	Node     string      // HOST:PORT of the image node
	Hosts    []peer.Host // that may ask for all else
	Folder   string      // where snapshot stores are made, unless a request says otherwise; "" for the inventory's
	Pool     string      // instead
	Provider string      // instead

	Hold, FreezeTimeout, FrozenFor time.Duration // see cut.Request

	Pull PullConfig
}

var errNoBackups = bad("no backups here: [backup] node in the configuration names no image node, or [migration] listen is empty")

// Bounds of a backup's beginning.
const (
	migrationPatience = 10 * time.Minute // for a migration to end, unless the request says otherwise
	handPatience      = time.Hour        // for an image node to take a cut that was made
	answerPatience    = 2 * time.Minute  // for that, of who asked for the backup
	cancelPatience    = 10 * time.Minute // for an image node to be told that a cut failed: else it finds out by itself
	cancelAnswer      = 5 * time.Second  // for that, of who asked for the backup
)

// backup is one that is being begun.
type backup struct {
	request api.BackupRequest
	plan    *backupPlan
	job     string
}

// Backup has a domain, or a volume, backed up: it makes the cut, and returns once the image node has the job.
func (d *Daemon) Backup(ctx context.Context, r api.BackupRequest) (*api.JobStatus, error) {
	if d.config.Backup.Node == "" || d.config.Peers == nil {
		return nil, errNoBackups
	}
	if err := checkBackup(r); err != nil {
		return nil, err
	}
	plan, err := d.planBackup(ctx, r)
	if err != nil {
		return nil, err
	}
	type outcome struct {
		s   *api.JobStatus
		err error
	}
	done := make(chan outcome, 1)
	d.tasks.Go(func() { // the daemon does not end before what it has begun is finished, or noted
		s, err := d.backUp(d.root, &backup{request: r, plan: plan})
		done <- outcome{s, err}
	})
	o := <-done
	return o.s, o.err
}

// checkBackup finds what makes no sense in a request.
func checkBackup(r api.BackupRequest) error {
	places := 0
	for _, p := range []string{r.Folder, r.Pool, r.Provider} {
		if p != "" {
			places++
		}
	}
	switch {
	case (r.Domain == "") == (r.Volume == ""):
		return bad("backup: give a domain or a volume")
	case !slices.Contains([]string{"", api.QuiesceRequire, api.QuiesceTry, api.QuiesceOff}, r.Quiesce):
		return bad("backup: quiesce %q: want require, try or off", r.Quiesce)
	case !slices.Contains([]string{"", api.BreakSnapshot, api.BreakGuestWrite}, r.OnError):
		return bad("backup: onError %q: want %s or %s", r.OnError, api.BreakSnapshot, api.BreakGuestWrite)
	case r.Rate < 0 || r.ChunkSize < 0 || r.WaitSeconds < 0:
		return bad("backup: rate %d, chunkSize %d, waitSeconds %d: none may be less than 0", r.Rate, r.ChunkSize, r.WaitSeconds)
	case r.WaitSeconds > api.MaxWait:
		return bad("backup: waitSeconds %d: at most %d, a day", r.WaitSeconds, api.MaxWait)
	case places > 1:
		return bad("backup: folder %q, pool %q, provider %q: snapshot stores are made in one of them", r.Folder, r.Pool, r.Provider)
	}
	return nil
}

// backUp reserves a job, makes the cut and hands it over.
func (d *Daemon) backUp(ctx context.Context, b *backup) (*api.JobStatus, error) {
	p := b.plan
	end, err := d.beginBackup(p.domain)
	if err != nil {
		return nil, err
	}
	defer end()
	now := time.Now().Unix()
	job, err := d.reserve(ctx, p, b.request.WaitSeconds)
	if err != nil {
		d.newBackup(p.domain, api.BackupStatus{State: api.JobFailed, Error: err.Error(), Begun: now})
		return nil, err
	}
	b.job = job.Job
	log := d.log.With().Str("job", b.job).Str("domain", p.domain.Name).Logger()
	d.newBackup(p.domain, api.BackupStatus{Job: b.job, State: api.JobReserved, Begun: now})
	d.writesBefore(ctx, p.domain.UUID, p.volumes())
	began := time.Now()
	r, err := d.cutter.Make(ctx, d.cutRequest(b))
	var manifest *api.Manifest
	if err == nil {
		log.Info().Str("grade", r.Grade).Str("why", r.Why).Dur("held", r.Held).Dur("took", time.Since(began)).Int("volumes", len(r.Snapshots)).Msg("cut made")
		manifest, err = d.manifest(ctx, b, r)
		var payload []byte
		if err == nil {
			payload, err = json.Marshal(api.StartRequest{Job: b.job, Manifest: *manifest, Rate: b.request.Rate})
		}
		if err == nil {
			err = d.cutter.Hand(b.job, payload)
		}
		if err != nil {
			err = errors.Join(err, d.cutter.Drop(b.job))
		}
	}
	if err != nil {
		log.Error().Err(err).Msg("no backup: the cut was not made, or not kept")
		d.noteBackup(p.domain.UUID, func(s *api.BackupStatus) { s.State, s.Waits, s.Error = api.JobFailed, "", err.Error() })
		told := make(chan struct{})
		d.tasks.Go(func() {
			defer close(told)
			d.cancelJob(d.root, b.job)
		})
		select { // who asks again at once is not to find this job in the way
		case <-told:
		case <-time.After(cancelAnswer):
		}
		return nil, fmt.Errorf("backup of %s: %w", p.domain.Name, err)
	}
	d.noteBackup(p.domain.UUID, func(s *api.BackupStatus) {
		s.Grade, s.GradeWhy, s.HeldMicros, s.Waits = manifest.Grade, manifest.GradeWhy, manifest.HeldMicros, ""
	})
	taken := make(chan error, 1)
	d.tasks.Go(func() {
		taken <- d.handOver(d.root, p.domain, api.StartRequest{Job: b.job, Manifest: *manifest, Rate: b.request.Rate})
	})
	select {
	case err := <-taken:
		if err != nil {
			return nil, fmt.Errorf("backup of %s: %w", p.domain.Name, err)
		}
	case <-time.After(answerPatience): // it is tried on
	case <-ctx.Done():
	}
	return d.jobNow(ctx, job), nil
}

// jobNow is what the image node says of a job, or, if it says nothing, what was known before.
func (d *Daemon) jobNow(ctx context.Context, before *api.JobStatus) *api.JobStatus {
	s, err := d.askJob(ctx, api.JobRequest{Job: before.Job})
	if err != nil {
		before.Waits = "the image node's answer: " + err.Error()
		return before
	}
	return s
}

// cutRequest is the cut of a backup.
func (d *Daemon) cutRequest(b *backup) cut.Request {
	c, r := d.config.Backup, b.request
	place := cut.Snapshot{Folder: r.Folder, Pool: r.Pool, Provider: r.Provider}
	if place == (cut.Snapshot{}) {
		place = cut.Snapshot{Folder: c.Folder, Pool: c.Pool, Provider: c.Provider}
	}
	patience := time.Duration(r.WaitSeconds) * time.Second
	out := cut.Request{
		Cut: b.job, Domain: b.plan.domain, Quiesce: cmp.Or(r.Quiesce, api.QuiesceTry), Hooks: r.Hooks, OnError: cmp.Or(r.OnError, api.BreakSnapshot),
		Hold: c.Hold, FreezeTimeout: c.FreezeTimeout, FrozenFor: c.FrozenFor, Patience: cmp.Or(patience, migrationPatience),
		Waits: func(what string) {
			if what != "" {
				d.log.Info().Str("job", b.job).Str("domain", b.plan.domain.Name).Str("for", what).Msg("the cut waits")
			}
			d.noteBackup(b.plan.domain.UUID, func(s *api.BackupStatus) { s.Waits = what })
		},
	}
	for _, disk := range b.plan.disks {
		v := place
		v.Volume, v.Name, v.ChunkSize = disk.uuid, disk.volume, r.ChunkSize
		out.Volumes = append(out.Volumes, v)
	}
	return out
}

// reserve has the image node make a job, whose cut may wait for so many seconds.
func (d *Daemon) reserve(ctx context.Context, p *backupPlan, wait int64) (*api.JobStatus, error) {
	r := api.ReserveRequest{
		Domain: p.domain.Name, UUID: p.domain.UUID.String(), Host: d.config.Peers.Self().HostName, Address: d.config.Peers.Address(),
		WaitSeconds: wait,
	}
	r.Volumes = p.volumes()
	var s api.JobStatus
	if err := d.askNode(ctx, api.PathNodeReserve, r, &s); err != nil {
		return nil, fmt.Errorf("backup of %s: %w", p.domain.Name, err)
	}
	if !api.IsUUID(s.Job) {
		return nil, fmt.Errorf("backup of %s: the image node calls its job %q, which is no UUID", p.domain.Name, s.Job)
	}
	return &s, nil
}

// nodeTimeout bounds a question to the image node, which may wait ten seconds before it answers.
const nodeTimeout = 30 * time.Second

// askNode asks the image node.
func (d *Daemon) askNode(ctx context.Context, path string, in, out any) error {
	if d.config.Backup.Node == "" || d.config.Peers == nil {
		return errNoBackups
	}
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	if err := d.config.Peers.Call(ctx, d.config.Backup.Node, path, in, out); err != nil {
		return fmt.Errorf("image node: %w", err)
	}
	return nil
}

func (d *Daemon) askJob(ctx context.Context, r api.JobRequest) (*api.JobStatus, error) {
	var s api.JobStatus
	return &s, d.askNode(ctx, api.PathNodeJob, r, &s)
}

// answered says whether the image node has refused something, rather than not answered.
func answered(err error) bool {
	var remote *api.RemoteError
	return errors.As(err, &remote) && remote.Code < 500 && !remote.Older
}

// unknownJob says that the image node knows of no such job.
func unknownJob(err error) bool {
	var remote *api.RemoteError
	return errors.As(err, &remote) && remote.Code == 404 && !remote.Older
}

var nodeBackoff = libvirtx.Backoff{Min: 500 * time.Millisecond, Max: 30 * time.Second}

// again asks until there is an answer, for some time.
func again(ctx context.Context, patience time.Duration, ask func() error) error {
	var wait time.Duration
	for deadline := time.Now().Add(patience); ; {
		err := ask()
		if err == nil || answered(err) || time.Now().After(deadline) {
			return err
		}
		wait = nodeBackoff.Next(wait)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

// handOver has the image node take a cut that was made. One that it refuses is undone; one that it did not take while this daemon
// lived is the next one's to hand over.
func (d *Daemon) handOver(ctx context.Context, x libvirtx.Domain, r api.StartRequest) error {
	err := again(ctx, handPatience, func() error { return d.askNode(ctx, api.PathNodeStart, r, nil) })
	switch {
	case err == nil:
		// Before the cut's record goes: the next daemon takes what is reserved without one for a job whose cut was not made.
		d.noteBackup(x.UUID, func(s *api.BackupStatus) {
			if s.Job == r.Job && s.State == api.JobReserved {
				s.State = api.JobQueued
			}
		})
		if err := d.cutter.Done(r.Job); err != nil {
			d.log.Error().Err(err).Str("job", r.Job).Msg("a cut that was handed over")
		}
		d.followJob(x, r.Job)
		return nil
	case ctx.Err() != nil:
		return err
	}
	d.log.Error().Err(err).Str("job", r.Job).Str("domain", x.Name).Msg("no backup: the image node did not take the cut")
	d.noteBackup(x.UUID, func(s *api.BackupStatus) { s.State, s.Error = api.JobFailed, err.Error() })
	d.tasks.Go(func() { d.cancelJob(ctx, r.Job) })
	return errors.Join(err, d.cutter.Drop(r.Job))
}

// cancelJob has the image node know that nothing comes of a job.
func (d *Daemon) cancelJob(ctx context.Context, job string) {
	err := again(ctx, cancelPatience, func() error { return d.askNode(ctx, api.PathNodeCancel, api.JobRequest{Job: job}, nil) })
	if err != nil && !unknownJob(err) {
		d.log.Warn().Err(err).Str("job", job).Msg("the image node does not know yet that nothing comes of its job")
	}
}

// BackupJobs, BackupJob and CancelBackup are the image node's.
func (d *Daemon) BackupJobs(ctx context.Context, _ struct{}) (*api.JobList, error) {
	var l api.JobList
	return &l, d.askNode(ctx, api.PathNodeJobs, struct{}{}, &l)
}

// BackupJob tells of a job.
func (d *Daemon) BackupJob(ctx context.Context, r api.JobRequest) (*api.JobStatus, error) {
	return d.askJob(ctx, r)
}

// CancelBackup cancels a job.
func (d *Daemon) CancelBackup(ctx context.Context, r api.JobRequest) (*api.JobStatus, error) {
	var s api.JobStatus
	return &s, d.askNode(ctx, api.PathNodeCancel, r, &s)
}
