package backup

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
)

// job is one backup.
type job struct {
	id   string
	node *Node
	log  zerolog.Logger

	writing sync.Mutex // held while the record is changed

	// Under Node.mu.
	rec     record
	waits   string
	changed uint64
	notify  chan struct{} // closed at the next change
	cancel  context.CancelCauseFunc
	asked   map[string]int   // disks that have not answered yet, by target
	saved   map[string]int64 // bytes that a snapshot's store holds, by its UUID

	// Of this attempt; what the record and the checkpoint have is what was durable.
	seen, read, zero, reused, written atomic.Int64
}

func (n *Node) newJob(r record) *job {
	j := &job{
		id: r.Job, node: n, rec: r, notify: make(chan struct{}),
		log: n.config.Log.With().Str("job", r.Job).Str("domain", r.Reserve.Domain).Logger(),
		// Another number than any that an earlier process gave.
		changed: uint64(time.Now().UnixMicro()),
	}
	j.count(&r.Progress)
	return j
}

// count sets the counters to what was durable.
func (j *job) count(p *progress) {
	j.seen.Store(p.Seen)
	j.read.Store(p.Read)
	j.zero.Store(p.Zero)
	j.reused.Store(p.Reused)
	j.written.Store(p.Written)
}

// change changes the record, durably, and then tells of it. change may refuse. After an error nothing has changed for anybody
// here; a record that could not be synced may be found after a restart all the same.
func (j *job) change(change func(r *record) error) error {
	j.writing.Lock()
	defer j.writing.Unlock()
	j.node.mu.Lock()
	r := j.rec
	j.node.mu.Unlock()
	if err := change(&r); err != nil {
		return err
	}
	if err := j.node.journal.save(&r); err != nil {
		return err
	}
	j.node.mu.Lock()
	defer j.node.mu.Unlock()
	if r.State != j.rec.State {
		e := j.log.Info()
		if r.State == api.JobFailed {
			e = j.log.Error().Str("error", r.Error)
		}
		e.Str("state", r.State).Msg("job")
	}
	j.rec = r
	j.touch()
	return nil
}

// touch tells who waits. Called with mu.
func (j *job) touch() {
	j.changed++
	close(j.notify)
	j.notify = make(chan struct{})
}

// tell is touch without mu.
func (j *job) tell() {
	j.node.mu.Lock()
	defer j.node.mu.Unlock()
	j.touch()
}

// waitsFor says what the job waits for, "" for nothing.
func (j *job) waitsFor(what string) {
	j.node.mu.Lock()
	defer j.node.mu.Unlock()
	j.wait(what)
}

// wait is waitsFor with mu.
func (j *job) wait(what string) {
	if j.waits != what {
		j.waits = what
		j.touch()
		if what != "" {
			j.log.Warn().Str("waits", what).Msg("job waits")
		}
	}
}

// asks notes that a disk is asked for something, until done is called.
func (j *job) asks(disk string) (done func()) {
	add := func(n int) {
		j.node.mu.Lock()
		defer j.node.mu.Unlock()
		if j.asked == nil {
			j.asked = map[string]int{}
		}
		if j.asked[disk] += n; j.asked[disk] == 0 {
			delete(j.asked, disk)
		}
	}
	add(1)
	return func() { add(-1) }
}

// hangs says what does not answer a job that is cancelled, unless that was said already. Called with mu.
func (j *job) hangs() {
	const cancelled = "it is cancelled, and ends once what it asked for comes back: "
	if j.rec.ended() || j.waits != "" && !strings.HasPrefix(j.waits, cancelled) {
		return
	}
	what := "the archive does not answer"
	if disks := slices.Sorted(maps.Keys(j.asked)); len(disks) > 0 {
		what = "disk " + strings.Join(disks, ", ") + " does not answer"
	}
	j.wait(cancelled + what)
}

// step notes what is durable now.
func (j *job) step(p progress) {
	j.node.mu.Lock()
	defer j.node.mu.Unlock()
	j.rec.Progress = p
	j.touch()
}

// to is a change that brings an unfinished job into a state.
func to(state string) func(*record) error {
	return func(r *record) error {
		if r.ended() {
			return fmt.Errorf("%w: it is %s", ErrState, r.State)
		}
		r.State = state
		return nil
	}
}

// end is a change that ends a job.
func end(state string, why error) func(*record) error {
	return func(r *record) error {
		if err := to(state)(r); err != nil {
			return err
		}
		r.Ended = time.Now().Unix()
		if why != nil {
			r.Error = why.Error()
		}
		if r.Manifest != nil { // in the archive, or of no use to anybody
			m := *r.Manifest
			m.Files, m.XML, m.InactiveXML = nil, "", ""
			r.Manifest = &m
		}
		return nil
	}
}

// status is what is told of a job. Called with mu.
func (j *job) status() api.JobStatus {
	r := &j.rec
	s := api.JobStatus{
		Job: j.id, Changed: j.changed, Domain: r.Reserve.Domain, UUID: r.Reserve.UUID, State: r.State, Error: r.Error, Waits: j.waits,
		Backup: r.Backup, Reserved: r.Reserved, Started: r.Started, Ended: r.Ended,
		Seen: j.seen.Load(), Read: j.read.Load(), Zero: j.zero.Load(), Reused: j.reused.Load(), Written: j.written.Load(),
	}
	if r.Manifest == nil {
		return s
	}
	s.Grade, s.GradeWhy, s.Held = r.Manifest.Grade, r.Manifest.GradeWhy, r.Manifest.HeldMicros
	for i, d := range r.Manifest.Disks {
		disk := api.JobDisk{Target: d.Target, Volume: d.Volume, Size: d.Size, Done: r.Progress.done(i, d.Size)}
		if i < len(r.Via) {
			disk.Via, disk.Why = r.Via[i].Via, r.Via[i].Why
		}
		if saved, known := j.saved[d.Snapshot]; known {
			saved = min(saved, d.Size)
			disk.Saved = &saved
		}
		s.Disks = append(s.Disks, disk)
		s.Size += disk.Size
		s.Done += disk.Done
	}
	return s
}

// done is how many bytes of a disk are in the archive.
func (p *progress) done(disk int, size int64) int64 {
	if disk >= len(p.Pieces) {
		return 0
	}
	return min(p.Pieces[disk]*p.Piece, size)
}
