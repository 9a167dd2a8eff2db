package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
)

// copy brings a job to its end, by as many attempts as it takes. Where the node ends first the job stays as it is.
func (n *Node) copy(ctx context.Context, j *job) {
	pause, waited := n.config.Retry, time.Now()
	at := j.position()
	for {
		id, err := n.attempt(ctx, j)
		j.waitsFor("")
		cause := context.Cause(ctx)
		switch {
		case err == nil:
			n.done(j, id)
			return
		case errors.Is(cause, errCancelled):
			n.fail(j, api.JobCancelled, nil)
			return
		case cause != nil: // the node ends
			return
		}
		if now := j.position(); now != at {
			at, waited, pause = now, time.Now(), n.config.Retry
		}
		left := n.config.Patience - time.Since(waited)
		if errors.Is(err, ErrGivenUp) || errors.Is(err, ErrState) || left <= 0 {
			n.fail(j, api.JobFailed, n.reason(ctx, j, err))
			return
		}
		j.waitsFor(err.Error())
		select {
		case <-time.After(min(pause, left)):
		case <-ctx.Done():
		}
		pause = min(2*pause, time.Minute)
	}
}

// position changes whenever a job has come further.
func (j *job) position() string {
	j.node.mu.Lock()
	defer j.node.mu.Unlock()
	return fmt.Sprint(j.rec.State, j.rec.Progress.Pieces)
}

// done notes what the archive has.
func (n *Node) done(j *job, id string) {
	n.finally(j, func(r *record) error {
		r.Backup = id
		return end(api.JobDone, nil)(r)
	})
}

// fail ends a job that came to nothing, and has the archive forget it. Where the archive has the backup after all, as when only
// the answer was lost, the job is done.
func (n *Node) fail(j *job, state string, why error) {
	ctx, cancel := context.WithTimeout(context.Background(), forgetting)
	defer cancel()
	id := ""
	err := n.withArchive(ctx, j.waitsFor, func(a Archive) (err error) {
		if id, err = a.Entered(ctx, j.id); err != nil || id != "" {
			return err
		}
		return a.Forget(ctx, j.id)
	})
	if id != "" {
		n.done(j, id)
		return
	}
	if err != nil {
		j.log.Warn().Err(err).Msg("what was copied is still in the archive, referenced by no backup")
	}
	n.finally(j, func(r *record) error {
		r.Stored = err != nil
		return end(state, why)(r)
	})
}

// forgetting bounds what is done in the archive for a job that has failed.
const forgetting = time.Minute

// finally makes a change that must be made: without it the job would be done once more.
func (n *Node) finally(j *job, change func(*record) error) {
	for {
		err := j.change(change)
		if err == nil || errors.Is(err, ErrState) {
			break
		}
		j.waitsFor(err.Error())
		n.mu.Lock()
		life := n.life
		n.mu.Unlock()
		if life == nil {
			return
		}
		select {
		case <-time.After(n.config.Retry):
		case <-life.Done():
			return
		}
	}
	j.waitsFor("")
	if err := n.journal.dropCheckpoint(j.id); err != nil {
		j.log.Warn().Err(err).Msg("checkpoint left behind")
	}
	n.prune()
}

func (n *Node) withArchive(ctx context.Context, waits func(string), do func(Archive) error) (err error) {
	a, err := n.config.Archive(ctx, waits)
	if err != nil {
		if ctx.Err() == nil {
			n.noteArchive(func(s *api.ArchiveStatus) { s.Up, s.Error = false, err.Error() })
		}
		return fmt.Errorf("archive: %w", err)
	}
	n.noteArchive(func(s *api.ArchiveStatus) { s.Up, s.Error, s.Seen = true, "", time.Now().Unix() })
	defer func() { err = errors.Join(err, a.Close(context.WithoutCancel(ctx))) }()
	return do(a)
}

// attempt goes on from the checkpoint, and to the end unless something fails.
func (n *Node) attempt(ctx context.Context, j *job) (id string, err error) {
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	err = n.withArchive(ctx, j.waitsFor, func(a Archive) error {
		n.mu.Lock()
		state := j.rec.State
		n.mu.Unlock()
		if state == api.JobCompleting {
			// An earlier process may have ended between Finish and the record.
			if id, err = a.Entered(ctx, j.id); err != nil || id != "" {
				return err
			}
		}
		c, err := n.begin(ctx, giveUp, j, a)
		if err != nil {
			return err
		}
		defer c.close()
		if err := c.run(ctx); err != nil {
			return err
		}
		id, err = c.complete(ctx)
		return err
	})
	if why := context.Cause(ctx); err != nil && errors.Is(why, ErrGivenUp) {
		err = why
	}
	return id, err
}

// copying is one attempt at a job.
type copying struct {
	node     *Node
	job      *job
	manifest *api.Manifest
	limit    limits
	writer   Writer
	sources  []Source
	disks    []DiskWriter
	at       progress
	cursors  *cursors
}

// begin opens everything.
func (n *Node) begin(ctx context.Context, giveUp context.CancelCauseFunc, j *job, a Archive) (*copying, error) {
	n.mu.Lock()
	m, rate := j.rec.Manifest, j.rec.Rate
	n.mu.Unlock()
	c := &copying{node: n, job: j, manifest: m, limit: limits{n.limit, limiter(rate, n.config.Piece)}}
	if err := c.open(ctx, a); err != nil {
		c.close()
		return nil, err
	}
	c.cursors = n.reportCursors(ctx, giveUp, j, m, c.sources, &c.at)
	return c, nil
}

func (c *copying) open(ctx context.Context, a Archive) error {
	var vias []via
	for i := range c.manifest.Disks {
		d := &c.manifest.Disks[i]
		done := c.job.asks(d.Target)
		s, err := c.node.openDisk(ctx, c.job, d)
		done()
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.Target, err)
		}
		c.sources = append(c.sources, s)
		how, why := s.Via()
		vias = append(vias, via{Via: how, Why: why})
	}
	if err := c.job.change(func(r *record) error {
		r.Via = vias
		return nil
	}); err != nil {
		return err
	}

	if err := c.resume(ctx, a); err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	for i := range c.manifest.Disks {
		if len(c.at.Pieces) != len(c.manifest.Disks) || c.at.Piece <= 0 || c.at.Pieces[i] > c.pieces(i) {
			return fmt.Errorf("%w: the checkpoint is of other disks", ErrGivenUp)
		}
	}
	c.job.count(&c.at)
	for _, d := range c.manifest.Disks {
		w, err := c.writer.Disk(d.Target, d.Size, c.at.Piece)
		if err != nil {
			return fmt.Errorf("archive: disk %s: %w", d.Target, err)
		}
		c.disks = append(c.disks, w)
	}
	return nil
}

// resume begins the backup in the archive, or goes on with it.
func (c *copying) resume(ctx context.Context, a Archive) error {
	at, checkpoint, err := c.node.journal.checkpoint(c.job.id)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrGivenUp, err) // the owners may have let go of what is missing now
	}
	if checkpoint != nil {
		c.at = at
		c.writer, err = a.Resume(ctx, checkpoint)
		return err
	}
	// What an earlier process has put there and died before it noted it goes: ours will have the same number, and could not be told from it.
	if err := a.Forget(ctx, c.job.id); err != nil {
		return err
	}
	m := c.manifest
	c.at = progress{Pieces: make([]int64, len(m.Disks)), Piece: c.node.config.Piece}
	c.writer, err = a.Begin(ctx, Info{Job: c.job.id, Domain: m.Domain, UUID: m.UUID, Host: m.Host, Grade: m.Grade, CutAt: time.UnixMilli(m.CutAt)})
	return err
}

func (c *copying) close() {
	if c.cursors != nil {
		c.cursors.end()
	}
	if c.writer != nil {
		if err := c.writer.Close(); err != nil {
			c.job.log.Warn().Err(err).Msg("archive")
		}
	}
	for _, s := range c.sources {
		if err := s.Close(); err != nil {
			c.job.log.Warn().Err(err).Msg("disk not closed")
		}
	}
}

// checkpoint makes what was written durable, then notes it, then has the owners told.
func (c *copying) checkpoint(ctx context.Context) error {
	b, err := c.writer.Checkpoint(ctx)
	if err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	c.count()
	c.at.Seen, c.at.Read, c.at.Zero = c.job.seen.Load(), c.job.read.Load(), c.job.zero.Load()
	c.at.Owners = c.job.owners()
	c.at.Stats = Stats{Reused: c.job.reused.Load(), Written: c.job.written.Load()}
	if err := c.node.journal.saveCheckpoint(c.job.id, &c.at, b); err != nil {
		return err
	}
	c.job.step(c.at.clone())
	c.job.waitsFor("")
	c.cursors.report(&c.at)
	return nil
}

func (p progress) clone() progress {
	p.Pieces = append([]int64(nil), p.Pieces...)
	return p
}

// count takes over what the archive counts.
func (c *copying) count() {
	s := c.writer.Stats()
	c.job.reused.Store(s.Reused)
	c.job.written.Store(s.Written)
}

// complete has the owners attest, and enters the backup.
func (c *copying) complete(ctx context.Context) (string, error) {
	c.cursors.end() // a snapshot that breaks after its owner's word does no harm
	if err := c.job.change(to(api.JobCompleting)); err != nil {
		return "", err
	}
	for i, s := range c.sources {
		d := &c.manifest.Disks[i]
		if err := c.node.attest(ctx, c.job, d, s); err != nil {
			return "", fmt.Errorf("disk %s: %w", d.Target, err)
		}
	}
	files, manifest := small(c.manifest)
	for i, s := range c.sources {
		manifest.Disks[i].Via, manifest.Disks[i].Why = s.Via()
	}
	for name, data := range files {
		if err := c.writer.File(ctx, name, data); err != nil {
			return "", fmt.Errorf("archive: %s: %w", name, err)
		}
	}
	m, err := json.Marshal(manifest)
	if err != nil {
		return "", err
	}
	id, err := c.writer.Finish(ctx, m)
	if err != nil {
		return "", fmt.Errorf("archive: %w", err)
	}
	c.count()
	return id, nil
}
