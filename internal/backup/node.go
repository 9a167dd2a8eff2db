package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/virt-cow/virt-cow/internal/api"
)

// Node is an image node. Make it with Open, then Run it; the rest may be called at any time meanwhile.
type Node struct {
	config  Config
	journal *journal
	limit   *rate.Limiter // nil: none
	running sync.WaitGroup

	started time.Time

	mu      sync.Mutex
	archive api.ArchiveStatus
	jobs    map[string]*job
	queue   []*job
	copied  int             // jobs that are being copied
	life    context.Context // nil: Run was not called, or has ended
}

// keep is how many jobs that are all over are remembered.
const keep = 500

// Open reads the journal.
func Open(c Config) (*Node, error) {
	c.defaults()
	journal, err := openJournal(c.StateDir)
	if err != nil {
		return nil, err
	}
	n := &Node{config: c, journal: journal, limit: limiter(c.Rate, c.Piece), jobs: map[string]*job{}, started: time.Now()}
	all, err := journal.load(func(path string, err error) {
		c.Log.Error().Err(err).Str("file", path).Msg("damaged record of a job: left alone; its snapshots are stale now")
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b record) int { return cmp.Compare(a.Started, b.Started) })
	for _, r := range all {
		if !r.ended() {
			if r.Progress, _, err = journal.checkpoint(r.Job); err != nil {
				c.Log.Error().Err(err).Msg("no checkpoint")
			}
		}
		j := n.newJob(r)
		n.jobs[r.Job] = j
		if !r.ended() && r.State != api.JobReserved {
			n.queue = append(n.queue, j)
		}
	}
	return n, nil
}

// limiter bounds bytes a second; nil for no bound. A burst is a piece.
func limiter(bytes, piece int64) *rate.Limiter {
	if bytes <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytes), int(piece))
}

// Run works until ctx ends. What is not done then is gone on with by the next node with this state folder.
func (n *Node) Run(ctx context.Context) {
	n.mu.Lock()
	n.life = ctx
	for _, j := range n.jobs {
		if j.rec.ended() && !j.rec.settled() {
			n.running.Go(func() { n.clean(ctx, j) })
		}
	}
	n.kick()
	n.mu.Unlock()
	n.running.Go(func() { n.upkeep(ctx) })

	tick := time.NewTicker(max(n.config.Reserve/20, 10*time.Millisecond))
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
			n.expire()
		case <-ctx.Done():
		}
	}
	n.mu.Lock()
	n.life = nil
	n.mu.Unlock()
	n.running.Wait()
}

// kick starts what may be started. Called with mu.
func (n *Node) kick() {
	for n.alive() && n.copied < n.config.Jobs && len(n.queue) > 0 {
		j := n.queue[0]
		n.queue = n.queue[1:]
		if !j.rec.ended() {
			n.launch(j)
		}
	}
}

// launch starts a job. Called with mu, of a node that is alive.
func (n *Node) launch(j *job) {
	ctx, cancel := context.WithCancelCause(n.life)
	j.cancel = cancel
	n.copied++
	life := n.life
	free := sync.OnceFunc(func() {
		n.copied--
		n.kick()
	})
	back := make(chan struct{})
	// What hangs in the kernel can't be ended. Until it comes back its domain has this job, and its snapshots stay; others go on.
	context.AfterFunc(ctx, func() {
		for errors.Is(context.Cause(ctx), errCancelled) {
			select {
			case <-back:
				return
			case <-time.After(n.config.Grace):
			}
			n.mu.Lock()
			j.hangs()
			free()
			n.mu.Unlock()
		}
	})
	n.running.Go(func() {
		n.copy(ctx, j)
		close(back)
		n.mu.Lock()
		j.cancel = nil
		cancel(nil)
		free()
		over := j.rec.ended()
		n.mu.Unlock()
		if over {
			n.clean(life, j)
		}
	})
}

// expire fails the jobs whose cut was never handed over, and forgets old ones.
func (n *Node) expire() {
	defer n.prune() // also of those that came to nothing before they were begun
	n.mu.Lock()
	var late []*job
	for _, j := range n.jobs {
		if j.rec.State == api.JobReserved && time.Since(time.Unix(j.rec.Reserved, 0)).Abs() > n.mayTake(&j.rec) { // the clock may have gone back
			late = append(late, j)
		}
	}
	n.mu.Unlock()
	for _, j := range late {
		err := j.change(func(r *record) error {
			if r.State != api.JobReserved {
				return ErrState
			}
			return end(api.JobFailed, fmt.Errorf("host %s has handed over no cut within %s", r.Reserve.Host, n.mayTake(r)))(r)
		})
		if err != nil && !errors.Is(err, ErrState) {
			j.log.Error().Err(err).Msg("can't be ended")
		}
	}
}

// mayTake is how long the cut of a reserved job may take.
func (n *Node) mayTake(r *record) time.Duration {
	return n.config.Reserve + time.Duration(r.Reserve.WaitSeconds)*time.Second
}

// prune forgets the oldest jobs that are all over, but for the last that was done of each domain.
func (n *Node) prune() {
	n.mu.Lock()
	var over []*job
	last := map[string]*job{}
	for _, j := range n.jobs {
		if l := last[j.rec.Reserve.UUID]; j.rec.State == api.JobDone && (l == nil || j.rec.Ended > l.rec.Ended) {
			last[j.rec.Reserve.UUID] = j
		}
	}
	for _, j := range n.jobs {
		if j.rec.settled() && last[j.rec.Reserve.UUID] != j {
			over = append(over, j)
		}
	}
	slices.SortFunc(over, func(a, b *job) int { return cmp.Compare(b.rec.Ended, a.rec.Ended) })
	over = over[min(keep, len(over)):]
	for _, j := range over {
		delete(n.jobs, j.id)
	}
	n.mu.Unlock()
	for _, j := range over {
		if err := n.journal.remove(j.id); err != nil {
			j.log.Error().Err(err).Msg("the record of an old job can't be removed")
		}
	}
}

// Jobs lists all that are remembered, youngest first.
func (n *Node) Jobs(context.Context, struct{}) (api.JobList, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := api.JobList{Jobs: []api.JobStatus{}}
	for _, j := range n.jobs {
		l.Jobs = append(l.Jobs, j.status())
	}
	slices.SortFunc(l.Jobs, func(a, b api.JobStatus) int {
		return cmp.Or(cmp.Compare(b.Reserved, a.Reserved), cmp.Compare(a.Job, b.Job))
	})
	return l, nil
}

// longest is how long a question for a change waits.
const longest = 10 * time.Second

// Job tells of one; with Changed once it is another than that.
func (n *Node) Job(ctx context.Context, r api.JobRequest) (api.JobStatus, error) {
	timer := time.NewTimer(longest)
	defer timer.Stop()
	for late := false; ; {
		j, err := n.find(r.Job)
		if err != nil {
			return api.JobStatus{}, err
		}
		n.mu.Lock()
		s, notify := j.status(), j.notify
		n.mu.Unlock()
		if s.Changed != r.Changed || late || j.node.stopped() {
			return s, nil
		}
		select {
		case <-notify:
		case <-timer.C:
			late = true
		case <-ctx.Done():
			return s, nil
		}
	}
}

func (n *Node) stopped() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.alive()
}

// alive says whether Run goes on. Called with mu.
func (n *Node) alive() bool { return n.life != nil && n.life.Err() == nil }

func (n *Node) find(id string) (*job, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if j := n.jobs[id]; j != nil {
		return j, nil
	}
	return nil, fmt.Errorf("%w: %s", ErrNotFound, id)
}
