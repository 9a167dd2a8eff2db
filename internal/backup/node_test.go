package backup

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
)

func TestBackup(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manifest(r.reserve(), 9, 4)
	r.disks[m.Disks[0].UUID].standing = Standing{Owned: true, Epoch: 7, Address: "hv2:16589", Name: "hv2"}
	r.begin(&m)
	s := r.await(m.Cut, state(api.JobDone))
	r.holds(s, &m)
	size := m.Disks[0].Size + m.Disks[1].Size
	if s.Size != size || s.Done != size || s.Zero != 4*piece || s.Read != size-2*piece || s.Grade != api.GradeFS || s.Ended == 0 || s.Disks[0].Via != "lun" {
		t.Errorf("%+v", s)
	}
	for name, want := range map[string]string{"domain.xml": m.XML, "inactive.xml": m.InactiveXML, "nvram": "n", "tpm-state": "t"} {
		if b, err := os.ReadFile(filepath.Join(r.shelf.dir, s.Backup, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	r.stop()
	r.start()
	if after := r.await(m.Cut, state(api.JobDone)); after.Disks[1].Via != "lun" {
		t.Errorf("after a restart: %+v", after)
	}
	var kept api.Manifest
	b, _ := os.ReadFile(filepath.Join(r.shelf.dir, s.Backup, "manifest"))
	if err := json.Unmarshal(b, &kept); err != nil || len(kept.Files) != 2 || kept.Files["nvram"] != nil || kept.XML != m.XML {
		t.Errorf("%v %s", err, b)
	}
	r.awaitRemoved(&m)
	// Of a volume that has an owner it is asked, else who made the cut.
	if r.removed[m.Disks[0].Snapshot] != "hv2:16589" || r.removed[m.Disks[1].Snapshot] != "hv1:16589" {
		t.Error(r.removed)
	}
	if told := r.cursors[m.Disks[0].Snapshot]; !slices.IsSorted(told) {
		t.Error(told)
	}
	if told := r.cursors[m.Disks[1].Snapshot]; told != nil {
		t.Error("told to nobody", told)
	}
}

// The owner need keep nothing only of what a checkpoint has made durable.
func TestCursorIsDurable(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var durable atomic.Int64
	var staged atomic.Int64
	r.shelf.fails(func(op string) error {
		switch op {
		case "write":
			staged.Add(piece)
		case "checkpoint":
			durable.Store(staged.Load())
		}
		return nil
	})
	m := r.manifest(r.reserve(), 40)
	told := make(chan int64, 100)
	r.answer = func(_, path string, s api.PeerSnapshot) (any, error) {
		if path == api.PathPeerCursor {
			if s.Cursor > durable.Load() {
				t.Errorf("told %d, durable are %d", s.Cursor, durable.Load())
			}
			told <- s.Cursor
		}
		return nil, nil
	}
	d := r.disks[m.Disks[0].UUID]
	d.standing = Standing{Owned: true, Epoch: 7, Address: "hv1"}
	d.onRead = func(off int64) error {
		if off == 20*piece { // not before something was told
			select {
			case <-told:
			case <-time.After(wait):
				t.Error("nothing told")
			}
		}
		return nil
	}
	r.begin(&m)
	r.await(m.Cut, state(api.JobDone))
}

func TestBusy(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	job := r.reserve()
	again := api.ReserveRequest{Domain: "web", UUID: domain, Host: "hv2", Address: "hv2:16589"}
	if _, err := r.node.Reserve(t.Context(), again); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), job) {
		t.Error(err)
	}
	// Also after a restart, and at the same time only one of many.
	r.stop()
	r.start()
	if _, err := r.node.Reserve(t.Context(), again); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	if s, err := r.node.Cancel(t.Context(), api.JobRequest{Job: job}); err != nil || s.State != api.JobCancelled {
		t.Errorf("%+v %v", s, err)
	}
	var won atomic.Int32
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			switch _, err := r.node.Reserve(t.Context(), again); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, ErrBusy):
				t.Error(err)
			}
		})
	}
	all.Wait()
	if won.Load() != 1 {
		t.Error(won.Load())
	}
}

func TestStartIsIdempotent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manifest(r.reserve(), 4)
	for range 2 {
		r.begin(&m)
	}
	r.await(m.Cut, state(api.JobDone))
	r.begin(&m)
	if s := r.await(m.Cut, state(api.JobDone)); s.State != api.JobDone {
		t.Error(s.State)
	}
	for off, n := range r.disks[m.Disks[0].UUID].reads {
		if n != 1 {
			t.Errorf("%d read %d times", off, n)
		}
	}
}

func TestStartRefuses(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	job := r.reserve()
	for what, spoil := range map[string]func(*api.Manifest){
		"version":  func(m *api.Manifest) { m.Version = 2 },
		"cut":      func(m *api.Manifest) { m.Cut = domain },
		"domain":   func(m *api.Manifest) { m.UUID = job },
		"grade":    func(m *api.Manifest) { m.Grade = "good" },
		"no disks": func(m *api.Manifest) { m.Disks = nil },
		"target":   func(m *api.Manifest) { m.Disks[0].Target = "../vda" },
		"twice":    func(m *api.Manifest) { m.Disks[1].Target = m.Disks[0].Target },
		"snapshot": func(m *api.Manifest) { m.Disks[1].Snapshot = m.Disks[0].Snapshot },
		"volume":   func(m *api.Manifest) { m.Disks[0].Volume = "a/b" },
		"UUID":     func(m *api.Manifest) { m.Disks[0].UUID = "x" },
		"size":     func(m *api.Manifest) { m.Disks[0].Size = 511 },
		"negative": func(m *api.Manifest) { m.Disks[0].Size = -512 },
		"file":     func(m *api.Manifest) { m.Files = map[string][]byte{"tpm/../../x": nil} },
		"blank":    func(m *api.Manifest) { m.Files = map[string][]byte{"tpm/a b": nil} },
		"taken":    func(m *api.Manifest) { m.Files = map[string][]byte{"domain.xml": nil} },
		"hidden":   func(m *api.Manifest) { m.Files = map[string][]byte{"..": nil} },
		"large":    func(m *api.Manifest) { m.Files = map[string][]byte{"nvram": make([]byte, maxFiles+1)} },
	} {
		m := r.manifest(job, 1, 1)
		spoil(&m)
		if _, err := r.node.Start(t.Context(), api.StartRequest{Job: job, Manifest: m}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := r.node.Start(t.Context(), api.StartRequest{Job: domain}); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if s, _ := r.node.Job(t.Context(), api.JobRequest{Job: job}); s.State != api.JobReserved {
		t.Error(s.State)
	}
}

func TestReservationExpires(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.stop()
	r.config.Reserve = time.Millisecond
	r.start()
	// One whose cut may wait for longer is kept for so long.
	patient := api.ReserveRequest{Domain: "patient", UUID: "5b0f2b5e-0001-4d5c-9d0a-000000000002", Host: "hv1", Address: "hv1", WaitSeconds: api.MaxWait + 1}
	if _, err := r.node.Reserve(t.Context(), patient); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	patient.WaitSeconds--
	kept, err := r.node.Reserve(t.Context(), patient)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if s, err := r.node.Job(t.Context(), api.JobRequest{Job: kept.Job}); err != nil || s.State != api.JobReserved {
			t.Errorf("%+v %v", s, err)
		}
	}()
	job := r.reserved().Job // it may have failed by now
	if s := r.await(job, state(api.JobFailed)); !strings.Contains(s.Error, "host hv1 has handed over no cut") {
		t.Error(s.Error)
	}
	m := r.manifest(job, 1)
	if _, err := r.node.Start(t.Context(), api.StartRequest{Job: job, Manifest: m}); !errors.Is(err, ErrState) {
		t.Error(err)
	}
	r.reserved()
}

// A reservation that was made by a clock that was wrong does not keep its domain from being backed up until that time has come.
func TestReservationOfTheFuture(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	job := r.reserve()
	r.stop()
	j := r.node.jobs[job]
	j.rec.Reserved += 365 * 86400
	r.node.expire()
	if j.rec.State != api.JobFailed {
		t.Error(j.rec.State)
	}
}

// Jobs that never get a cut are not kept for ever, either.
func TestForgottenReservations(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.stop()
	for range keep + 3 {
		id := uuid.NewString()
		r.node.jobs[id] = r.node.newJob(record{Job: id, State: api.JobCancelled, Reserve: api.ReserveRequest{UUID: domain}})
	}
	r.node.expire()
	if n := len(r.node.jobs); n != keep {
		t.Errorf("%d jobs are kept", n)
	}
}

// A job that is cancelled in the middle leaves nothing in the archive, and its snapshots go.
func TestCancel(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manifest(r.reserve(), 12)
	d := r.disks[m.Disks[0].UUID]
	hold := make(chan struct{})
	d.onRead = func(off int64) error {
		if off >= 6*piece {
			<-hold
		}
		return nil
	}
	r.begin(&m)
	r.await(m.Cut, func(s api.JobStatus) bool { return s.Done > 0 })
	if _, err := r.node.Cancel(t.Context(), api.JobRequest{Job: m.Cut}); err != nil {
		t.Fatal(err)
	}
	close(hold)
	r.await(m.Cut, state(api.JobCancelled))
	r.awaitRemoved(&m)
	if left, _ := os.ReadDir(r.shelf.dir); len(left) != 0 {
		t.Error(left)
	}
	if s, err := r.node.Cancel(t.Context(), api.JobRequest{Job: m.Cut}); err != nil || s.State != api.JobCancelled {
		t.Errorf("%+v %v", s, err)
	}
	r.reserve()
}

// One job at a time: the second waits in the queue, from where it can be cancelled, and the third goes on.
func TestQueue(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.stop()
	r.config.Jobs = 1
	r.start()
	var all []api.Manifest
	hold := make(chan struct{})
	for i := range 3 {
		s, err := r.node.Reserve(t.Context(), api.ReserveRequest{
			Domain: fmt.Sprint("web", i), UUID: fmt.Sprintf("5b0f2b5e-0001-4d5c-9d0a-00000000001%d", i), Host: "hv1", Address: "hv1",
		})
		if err != nil {
			t.Fatal(err)
		}
		m := r.manifest(s.Job, 3)
		m.UUID = s.UUID
		r.disks[m.Disks[0].UUID].onRead = func(int64) error {
			<-hold
			return nil
		}
		r.begin(&m)
		all = append(all, m)
	}
	r.await(all[0].Cut, state(api.JobCopying))
	r.await(all[1].Cut, state(api.JobQueued))
	if s, err := r.node.Cancel(t.Context(), api.JobRequest{Job: all[1].Cut}); err != nil || s.State != api.JobCancelled {
		t.Errorf("%+v %v", s, err)
	}
	r.await(all[2].Cut, state(api.JobQueued))
	close(hold)
	for _, i := range []int{0, 2} {
		r.await(all[i].Cut, state(api.JobDone))
	}
	if n := len(r.disks[all[1].Disks[0].UUID].reads); n != 0 {
		t.Error("read though cancelled")
	}
	list, err := r.node.Jobs(t.Context(), struct{}{})
	if err != nil || len(list.Jobs) != 3 {
		t.Errorf("%+v %v", list, err)
	}
}

// A job that is cancelled while a disk or the archive hangs says which, and holds up no other domain's; it ends once that comes back.
func TestCancelHung(t *testing.T) {
	t.Parallel()
	for _, hung := range []string{"disk vda", "the archive"} {
		r := newRig(t)
		r.stop()
		r.config.Jobs, r.config.Grace = 1, time.Millisecond
		r.start()
		m := r.manifest(r.reserve(), 3)
		begun, hold := make(chan struct{}), make(chan struct{})
		var once sync.Once
		first := func() error {
			once.Do(func() {
				close(begun)
				<-hold
			})
			return nil
		}
		if hung == "the archive" {
			r.shelf.fails(func(op string) error {
				if op == "write" {
					return first()
				}
				return nil
			})
		} else {
			r.disks[m.Disks[0].UUID].onRead = func(int64) error { return first() }
		}
		r.begin(&m)
		<-begun
		if _, err := r.node.Cancel(t.Context(), api.JobRequest{Job: m.Cut}); err != nil {
			t.Fatal(err)
		}
		r.await(m.Cut, func(s api.JobStatus) bool { return strings.Contains(s.Waits, hung+" does not answer") && s.Ended == 0 })
		s, err := r.node.Reserve(t.Context(), api.ReserveRequest{Domain: "db", UUID: uuid.NewString(), Host: "hv1", Address: "hv1"})
		if err != nil {
			t.Fatal(err)
		}
		other := r.manifest(s.Job, 1)
		other.UUID = s.UUID
		r.begin(&other)
		if hung != "the archive" { // which all need
			r.await(other.Cut, state(api.JobDone))
		}
		close(hold)
		r.await(m.Cut, state(api.JobCancelled))
		r.await(other.Cut, state(api.JobDone))
		r.awaitRemoved(&m)
	}
}

// What a node that ends has copied is not read again by the next.
func TestRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.stop()
	r.config.Checkpoint = time.Hour // only the one at its end
	r.start()
	m := r.manifest(r.reserve(), 12, 3)
	d := r.disks[m.Disks[0].UUID]
	reached, hold := make(chan struct{}, 100), make(chan struct{})
	d.onRead = func(off int64) error {
		if off >= 6*piece {
			reached <- struct{}{}
			<-hold
		}
		return nil
	}
	r.begin(&m)
	<-reached
	go func() {
		for !r.node.stopped() {
			time.Sleep(time.Millisecond)
		}
		close(hold)
	}()
	r.stop()
	if r.node.jobs[m.Cut].rec.Progress.Pieces[0] < 7 {
		t.Error(r.node.jobs[m.Cut].rec.Progress)
	}
	r.start()
	s := r.await(m.Cut, state(api.JobDone))
	r.holds(s, &m)
	for off, n := range d.reads {
		if n != 1 {
			t.Errorf("%d read %d times", off, n)
		}
	}
	if size := m.Disks[0].Size + m.Disks[1].Size; s.Read != size-2*piece+512 || s.Done != size || s.Zero != 4*piece-512 {
		t.Errorf("%+v", s)
	}
}

// Each operation of the archive fails once, alone; the job gets there all the same, and all bytes are right.
func TestArchiveFailsOnce(t *testing.T) {
	t.Parallel()
	total := 0
	for n := 1; n == 1 || n <= total+1; n++ {
		r := newRig(t)
		r.stop()
		r.config.Checkpoint = time.Millisecond // several pieces are under way together
		var count atomic.Int64
		r.shelf.fails(func(op string) error {
			if count.Add(1) == int64(n) {
				return fmt.Errorf("%s: %w", op, errAway)
			}
			return nil
		})
		r.start()
		m := r.manifest(r.reserve(), 7, 2)
		r.begin(&m)
		s := r.await(m.Cut, state(api.JobDone))
		r.holds(s, &m)
		r.awaitRemoved(&m)
		if entered, _ := filepath.Glob(filepath.Join(r.shelf.dir, "*")); len(entered) != 1 {
			t.Errorf("operation %d: %v", n, entered)
		}
		if total == 0 {
			total = int(count.Load())
		}
		r.stop()
	}
}

// An archive that does not come back fails the job, after Patience; the snapshots do not wait for it.
func TestPatienceEnds(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.stop()
	r.config.Patience = 20 * time.Millisecond
	r.start()
	r.shelf.fails(func(string) error { return errAway })
	m := r.manifest(r.reserve(), 7)
	r.begin(&m)
	if s := r.await(m.Cut, state(api.JobFailed)); !strings.Contains(s.Error, errAway.Error()) {
		t.Error(s.Error)
	}
	r.awaitRemoved(&m)
}

// What an archive that is away can't forget it forgets when it is back, also after nobody asks the owners any more.
func TestForgottenLater(t *testing.T) {
	t.Parallel()
	for _, remove := range []time.Duration{time.Hour, time.Nanosecond} {
		r := newRig(t)
		r.stop()
		r.config.Patience, r.config.Remove = 20*time.Millisecond, remove
		var away atomic.Bool
		r.shelf.fails(func(string) error {
			if away.Load() {
				return errAway
			}
			return nil
		})
		r.start()
		m := r.manifest(r.reserve(), 7)
		r.disks[m.Disks[0].UUID].onRead = func(off int64) error {
			if off >= 5*piece {
				away.Store(true)
			}
			return nil
		}
		r.begin(&m)
		r.await(m.Cut, state(api.JobFailed))
		r.awaitRemoved(&m)
		r.await(m.Cut, func(api.JobStatus) bool {
			r.node.mu.Lock()
			defer r.node.mu.Unlock()
			return remove == time.Hour || r.node.jobs[m.Cut].rec.LeftOver
		})
		if left, _ := os.ReadDir(r.shelf.dir); len(left) == 0 {
			t.Fatal("nothing was left")
		}
		away.Store(false)
		r.awaitForgotten()
	}
}

// A job that an earlier process has begun is cancelled while it waits for its turn: its checkpoint goes, too.
func TestCancelBegun(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manifest(r.reserve(), 7)
	d := r.disks[m.Disks[0].UUID]
	d.onRead = func(off int64) error {
		if off >= 5*piece {
			return errAway
		}
		return nil
	}
	r.begin(&m)
	r.await(m.Cut, func(s api.JobStatus) bool { return s.Done > 0 })
	r.stop()
	node, err := Open(r.config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := node.Cancel(t.Context(), api.JobRequest{Job: m.Cut}); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.awaitRemoved(&m)
	r.awaitForgotten()
}

// So does one whose checkpoint was never noted.
func TestCancelBegunUnnoted(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manifest(r.reserve(), 7)
	r.disks[m.Disks[0].UUID].onRead = func(off int64) error {
		if off >= 5*piece {
			return errAway
		}
		return nil
	}
	r.begin(&m)
	r.await(m.Cut, func(s api.JobStatus) bool { return s.Waits != "" })
	r.stop()
	if err := r.node.journal.dropCheckpoint(m.Cut); err != nil {
		t.Fatal(err)
	}
	r.config.Jobs = -1 // none has its turn
	r.start()
	if s, err := r.node.Cancel(t.Context(), api.JobRequest{Job: m.Cut}); err != nil || s.State != api.JobCancelled {
		t.Fatalf("%+v %v", s, err)
	}
	r.awaitRemoved(&m)
	r.awaitForgotten()
}

// One that is cancelled while it waits for its turn is done where an earlier process has entered it.
func TestCancelEntered(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manifest(r.reserve(), 3)
	r.shelf.fails(func(op string) error {
		if op == "finished" || op == "entered" {
			return errAway
		}
		return nil
	})
	r.begin(&m)
	r.await(m.Cut, func(s api.JobStatus) bool { return s.State == api.JobCompleting && s.Waits != "" })
	r.stop()
	r.shelf.fails(func(string) error { return nil })
	r.config.Jobs = -1 // none has its turn
	r.start()
	if _, err := r.node.Cancel(t.Context(), api.JobRequest{Job: m.Cut}); err != nil {
		t.Fatal(err)
	}
	s := r.await(m.Cut, func(s api.JobStatus) bool { return s.Ended != 0 })
	if s.State != api.JobDone {
		t.Fatalf("%+v", s)
	}
	r.holds(s, &m)
	r.awaitRemoved(&m)
}

func TestWaitsIsTold(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var away atomic.Bool
	away.Store(true)
	r.shelf.fails(func(string) error {
		if away.Load() {
			return errAway
		}
		return nil
	})
	m := r.manifest(r.reserve(), 3)
	r.begin(&m)
	r.await(m.Cut, func(s api.JobStatus) bool { return strings.Contains(s.Waits, "archive: away") })
	away.Store(false)
	if s := r.await(m.Cut, state(api.JobDone)); s.Waits != "" {
		t.Error(s.Waits)
	}
}

// A process that ends between the archive's Finish and its own record enters no second backup.
func TestEnteredOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manifest(r.reserve(), 3)
	var finishes atomic.Int64
	r.shelf.fails(func(op string) error {
		switch op {
		case "finish":
			finishes.Add(1)
		case "finished":
			return errAway // the answer is lost
		}
		return nil
	})
	r.begin(&m)
	r.holds(r.await(m.Cut, state(api.JobDone)), &m)
	if finishes.Load() != 1 {
		t.Error(finishes.Load())
	}
}

func TestBandwidth(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manifest(r.reserve(), 20)
	r.disks[m.Disks[0].UUID].onRead = nil
	begin := time.Now()
	// 17 pieces are read but for those that are known to be holes; the first is free, as a burst.
	if _, err := r.node.Start(t.Context(), api.StartRequest{Job: m.Cut, Manifest: m, Rate: 40 * piece}); err != nil {
		t.Fatal(err)
	}
	r.await(m.Cut, state(api.JobDone))
	if took := time.Since(begin); took < 17*time.Second/40 {
		t.Errorf("19 pieces in %s at 40 a second", took)
	}
}

// The node's limit is one for all jobs together.
func TestBandwidthOfAll(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.stop()
	r.config.Rate, r.config.Jobs = 40*piece, 2
	r.start()
	begin := time.Now()
	var jobs []string
	for i := range 2 {
		s, err := r.node.Reserve(t.Context(), api.ReserveRequest{
			Domain: fmt.Sprint("web", i), UUID: fmt.Sprintf("5b0f2b5e-0001-4d5c-9d0a-00000000001%d", i), Host: "hv1", Address: "hv1",
		})
		if err != nil {
			t.Fatal(err)
		}
		m := r.manifest(s.Job, 20)
		m.UUID = s.UUID
		r.begin(&m)
		jobs = append(jobs, s.Job)
	}
	for _, job := range jobs {
		r.await(job, state(api.JobDone))
	}
	// 19 pieces of each are read; the first of all is free, as a burst.
	if took := time.Since(begin); took < 37*time.Second/40 {
		t.Errorf("38 pieces in %s at 40 a second", took)
	}
}
