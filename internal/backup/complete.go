package backup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/reader"
)

// asking bounds a question to a host.
const asking = 15 * time.Second

// attest makes sure that all that was read of a disk was as of the cut, now that nothing more is to be read. An error that is not
// ErrGivenUp may be asked for again.
func (n *Node) attest(ctx context.Context, j *job, d *api.ManifestDisk, s Source) error {
	done := j.asks(d.Target)
	now, err := s.Look(ctx, d.Size)
	done()
	if err != nil {
		return err
	}
	return n.word(ctx, j, d, now)
}

// word makes sure of it by what the volume's owner says.
func (n *Node) word(ctx context.Context, j *job, d *api.ManifestDisk, now Standing) error {
	if !now.Owned { // closed cleanly, and unbroken by then
		return nil
	}
	if now.Address == "" {
		return fmt.Errorf("host %s has volume %s open and must say that the snapshot is unbroken, but the volume's header has no address of it: "+
			"set address in [migration] there", now.Name, d.Volume)
	}
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	var answer api.PeerAttestAnswer
	if err := n.config.Peers.Call(ctx, now.Address, api.PathPeerAttest, j.snapshot(d), &answer); err != nil {
		return fmt.Errorf("the word of host %s, which has volume %s open: %w", now.Name, d.Volume, err)
	}
	j.fills(d, &answer)
	switch {
	case !answer.Open:
		return fmt.Errorf("host %s owns volume %s, but has it not open now: %s", now.Name, d.Volume, orElse(answer.Why, "no engine serves it"))
	case answer.Epoch != now.Epoch:
		return fmt.Errorf("volume %s goes from one host to another (epoch %d, host %s says %d)", d.Volume, now.Epoch, now.Name, answer.Epoch)
	case !answer.Unbroken:
		return fmt.Errorf("%w: host %s says that the snapshot is broken: %s", ErrGivenUp, now.Name, orElse(answer.Why, "it does not say why"))
	}
	return nil
}

// reason adds to an error why a snapshot is broken: its owner knows, the volume's header does not say.
func (n *Node) reason(ctx context.Context, j *job, err error) error {
	n.mu.Lock()
	m := j.rec.Manifest
	n.mu.Unlock()
	for i := 0; errors.Is(err, reader.ErrBroken) && i < len(m.Disks); i++ {
		d := &m.Disks[i]
		now, failed := n.standing(ctx, j, d)
		if failed != nil || now.Address == "" {
			continue
		}
		asking, cancel := context.WithTimeout(ctx, asking)
		var answer api.PeerAttestAnswer
		failed = n.config.Peers.Call(asking, now.Address, api.PathPeerAttest, j.snapshot(d), &answer)
		cancel()
		if failed == nil && answer.Open && !answer.Unbroken && answer.Why != "" {
			return fmt.Errorf("%w; host %s says of disk %s: %s", err, now.Name, d.Target, answer.Why)
		}
	}
	return err
}

func orElse(text, other string) string {
	if text == "" {
		return other
	}
	return text
}

func (j *job) snapshot(d *api.ManifestDisk) api.PeerSnapshot {
	j.node.mu.Lock()
	defer j.node.mu.Unlock()
	return api.PeerSnapshot{Volume: d.UUID, Snapshot: d.Snapshot, Cut: j.rec.Manifest.Cut, Job: j.id}
}

// small are the files of a backup beside its disks and its manifest, which keeps their names.
func small(m *api.Manifest) (files map[string][]byte, manifest api.Manifest) {
	manifest, files = *m, map[string][]byte{"domain.xml": []byte(m.XML), "inactive.xml": []byte(m.InactiveXML)}
	maps.Copy(files, m.Files)
	manifest.Files, manifest.Disks = map[string][]byte{}, slices.Clone(m.Disks)
	for name := range m.Files {
		manifest.Files[name] = nil
	}
	return files, manifest
}

// cursors tells the owners up to where their snapshots are in the archive, and asks how full they are. It is a favour: that it fails
// hurts nobody here. What it is told of a broken snapshot ends the attempt: nothing more need be copied.
type cursors struct {
	node    *Node
	job     *job
	disks   []api.ManifestDisk
	sources []Source
	giveUp  context.CancelCauseFunc // the attempt
	cancel  context.CancelFunc
	running sync.WaitGroup
	wake    chan struct{}

	mu   sync.Mutex
	at   []int64 // bytes
	told []int64
}

// reportCursors begins with what is durable already: looks are from there on.
func (n *Node) reportCursors(ctx context.Context, giveUp context.CancelCauseFunc, j *job, m *api.Manifest, sources []Source, p *progress) *cursors {
	c := &cursors{
		node: n, job: j, disks: m.Disks, sources: sources, giveUp: giveUp, wake: make(chan struct{}, 1),
		at: make([]int64, len(m.Disks)), told: make([]int64, len(m.Disks)),
	}
	for i := range c.at {
		c.at[i] = p.done(i, c.disks[i].Size)
	}
	ctx, c.cancel = context.WithCancel(ctx)
	c.running.Go(func() {
		look := time.NewTicker(n.config.Look)
		defer look.Stop()
		for {
			select {
			case <-c.wake:
				c.tell(ctx)
			case <-look.C:
				c.look(ctx)
			case <-ctx.Done():
				return
			}
		}
	})
	return c
}

// report notes what is durable; only the last is told.
func (c *cursors) report(p *progress) {
	c.mu.Lock()
	for i := range c.at {
		c.at[i] = p.done(i, c.disks[i].Size)
	}
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *cursors) tell(ctx context.Context) {
	for i := range c.disks {
		c.mu.Lock()
		at := c.at[i]
		c.mu.Unlock()
		if at <= c.told[i] || ctx.Err() != nil {
			continue
		}
		if err := c.tellOne(ctx, i, at); err != nil {
			c.job.log.Debug().Err(err).Str("disk", c.disks[i].Target).Msg("the owner could not be told what it need not keep")
			continue
		}
		c.told[i] = at
	}
}

func (c *cursors) tellOne(ctx context.Context, i int, at int64) error {
	d := &c.disks[i]
	now, err := c.sources[i].Look(ctx, at)
	if err != nil {
		return err
	}
	if !now.Owned || now.Address == "" {
		return errors.New("nobody to tell")
	}
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	s := c.job.snapshot(d)
	s.Cursor = at
	return c.node.config.Peers.Call(ctx, now.Address, api.PathPeerCursor, s, nil)
}

// look asks the owners how full the snapshots are, for people to see, and whether all are unbroken.
func (c *cursors) look(ctx context.Context) {
	for i := range c.disks {
		d := &c.disks[i]
		c.mu.Lock()
		at := c.at[i]
		c.mu.Unlock()
		now, err := c.sources[i].Look(ctx, at)
		if err == nil {
			err = c.node.word(ctx, c.job, d, now)
		}
		switch {
		case errors.Is(err, ErrGivenUp):
			c.giveUp(fmt.Errorf("disk %s: %w", d.Target, err))
			return
		case err != nil:
			c.job.log.Debug().Err(err).Str("disk", d.Target).Msg("how full its snapshot is could not be asked")
		}
	}
}

// fills notes how full a snapshot is by its owner's word.
func (j *job) fills(d *api.ManifestDisk, a *api.PeerAttestAnswer) {
	if !a.Open || !a.Unbroken {
		return
	}
	j.node.mu.Lock()
	defer j.node.mu.Unlock()
	if j.saved == nil {
		j.saved = map[string]int64{}
	}
	j.saved[d.Snapshot] = a.Saved
}

func (c *cursors) end() {
	c.cancel()
	c.running.Wait()
}

// clean has the owners remove the snapshots of a job that has ended, and the archive forget what it has of one that came to nothing: nobody
// else would, so that is never given up.
func (n *Node) clean(ctx context.Context, j *job) {
	for pause := n.config.Retry; ; pause = min(2*pause, 10*time.Minute) {
		n.mu.Lock()
		r := j.rec
		n.mu.Unlock()
		if r.settled() {
			return
		}
		err := n.cleanOnce(ctx, j, &r)
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if !r.LeftOver && time.Since(time.Unix(r.Ended, 0)) > n.config.Remove {
			j.log.Error().Err(err).Msg("what a job that has ended has left could not be removed: snapshots their owner removes when it finds them")
			err = j.change(func(r *record) error {
				r.LeftOver = true
				return nil
			})
			if err == nil {
				continue
			}
		}
		j.log.Warn().Err(err).Msg("something is still to be removed")
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

func (n *Node) cleanOnce(ctx context.Context, j *job, r *record) error {
	removed := map[string]bool{}
	for _, id := range r.Removed {
		removed[id] = true
	}
	var failed error
	for i := 0; !r.LeftOver && !r.removed() && i < len(r.Manifest.Disks); i++ {
		d := &r.Manifest.Disks[i]
		if removed[d.Snapshot] {
			continue
		}
		if err := n.askRemove(ctx, j, d, r.Reserve.Address); err != nil {
			failed = errors.Join(failed, fmt.Errorf("disk %s, volume %s: %w", d.Target, d.Volume, err))
			continue
		}
		err := j.change(func(r *record) error {
			r.Removed = append(r.Removed[:len(r.Removed):len(r.Removed)], d.Snapshot)
			return nil
		})
		if err != nil {
			return err
		}
	}
	if r.Stored {
		failed = errors.Join(failed, n.forget(ctx, j))
	}
	return failed
}

// forget has the archive forget what a job has copied that came to nothing.
func (n *Node) forget(ctx context.Context, j *job) error {
	ctx, cancel := context.WithTimeout(ctx, forgetting)
	defer cancel()
	if err := n.withArchive(ctx, j.waitsFor, func(a Archive) error { return a.Forget(ctx, j.id) }); err != nil {
		return err
	}
	if err := n.journal.dropCheckpoint(j.id); err != nil {
		return err
	}
	return j.change(func(r *record) error {
		r.Stored = false
		return nil
	})
}

// askRemove asks who has the volume, or, where nobody has or that can't be seen, the host that made the snapshot.
func (n *Node) askRemove(ctx context.Context, j *job, d *api.ManifestDisk, maker string) error {
	ctx, cancel := context.WithTimeout(ctx, 4*asking)
	defer cancel()
	address := maker
	if now, err := n.standing(ctx, j, d); err == nil && now.Owned && now.Address != "" {
		address = now.Address
	}
	return n.config.Peers.Call(ctx, address, api.PathPeerSnapshotRemove, j.snapshot(d), nil)
}
