package e2e

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
)

// blow is what befalls a backup: something is killed, or the guest goes.
type blow struct {
	name string
	// strike does it. What it returns has all well again, as a supervisor or an operator would, or waits until it is.
	strike func(t *testing.T, r *rescue) (back func())
	ends   bool // the guest
}

var (
	daemonDies = blow{name: "daemon", strike: func(t *testing.T, r *rescue) func() {
		b := r.on()
		must(t, b.vc.Daemon().Stop(syscall.SIGKILL))
		return func() {
			_, err := b.vc.StartDaemon(t.Context())
			must(t, err)
		}
	}}
	enginesDie = blow{name: "engines", strike: func(t *testing.T, r *rescue) func() {
		b := r.on()
		old, err := b.processes(program, "serve")
		must(t, err)
		for _, pid := range old {
			must(t, b.Kill(t.Context(), pid, syscall.SIGKILL))
		}
		return func() {
			for _, v := range r.volumes {
				b.await(t, v, "served by a new engine", func(s *api.VolumeStatus) bool { return attached(s) && !slices.Contains(old, s.PID) })
			}
		}
	}}
	nodeDies = blow{name: "image node", strike: func(t *testing.T, r *rescue) func() {
		must(t, r.process.Stop(syscall.SIGKILL))
		return func() { r.startNode(t) }
	}}
	libvirtdDies = blow{name: "libvirtd", strike: func(t *testing.T, r *rescue) func() {
		b := r.on()
		must(t, b.Libvirtd().Stop(syscall.SIGKILL))
		return func() { must(t, b.StartLibvirtd(t.Context())) }
	}}
	guestMoves = blow{name: "move", strike: func(t *testing.T, r *rescue) func() {
		r.move(t, r.on(), r.other())
		return func() {}
	}}
	guestDestroyed = blow{name: "destroy", ends: true, strike: func(t *testing.T, r *rescue) func() {
		must(t, r.guest.Destroy(t.Context()))
		return func() {}
	}}
	guestShutDown = blow{name: "shutdown", ends: true, strike: func(t *testing.T, r *rescue) func() {
		r.died(t) // nothing was wrong before: a kernel that shuts down fails what is under way
		must(t, r.guest.PowerOff(t.Context()))
		return func() {}
	}}
	guestStartsAnew = blow{name: "restart", ends: true, strike: func(t *testing.T, r *rescue) func() {
		must(t, r.guest.Destroy(t.Context()))
		return func() { r.bootOn(t, r.on()) }
	}}
)

// ended has the disks of a guest verified that has ended.
func (r *rescue) ended(t *testing.T) {
	t.Helper()
	for v, log := range r.begins(t).logs {
		r.on().await(t, v, "closed", left)
		r.on().verifyOutside(t, "/dev/disk/by-id/"+v, log)
	}
}

// again starts a guest that has ended.
func (r *rescue) again(t *testing.T) {
	t.Helper()
	logs := r.begins(t).logs
	if dead(r.on().stateOf(t.Context())) {
		r.bootOn(t, r.on())
	}
	r.anew(t, logs)
}

// cutUnder begins a backup, strikes at a random moment of its cut, and has verified whatever comes of it: a backup, or nothing at all.
func (r *rescue) cutUnder(t *testing.T, b blow, random *rand.Rand) {
	t.Helper()
	after := time.Duration(random.Int64N(int64(r.lasted)))
	made := r.on()
	at := r.begins(t)
	had := r.jobs(t)
	over := make(chan error, 1)
	go func() {
		_, err := made.daemon().Backup(t.Context(), api.BackupRequest{Domain: "g1", Quiesce: api.QuiesceOff})
		over <- err
	}()
	time.Sleep(after)
	b.strike(t, r)()
	t.Logf("%s, struck %s after a backup was asked for, which takes %s: %v", b.name, after, r.lasted, <-over)
	if at.most = map[string]int{}; !b.ends {
		r.atMost(t, &at)
	}
	all := r.jobs(t)
	if len(all) == len(had) {
		t.Log("there is no job")
		r.assertNoSnapshots(t)
		return
	}
	job := all[0].Job
	var s *api.JobStatus
	eventually(t, "the job has ended", func() bool { s = r.job(t, job); return s.Ended != 0 })
	if s.State == api.JobDone {
		r.succeeds(t, job, at)
	} else {
		t.Logf("the job is %s: %s", s.State, s.Error)
		r.assertNoSnapshots(t)
	}
	state := s.State
	if state == api.JobCancelled { // by the daemon, for which the backup has failed
		state = api.JobFailed
	}
	made.told(t, job, state)
}

// TestBackupKilled: all who have to do with a backup are killed, one after the other, while it is copied, and the guest ends. Each
// time it is as if nothing had happened, for the guest that lives on too. Killed during the cut, the daemon leaves nothing behind.
func TestBackupKilled(t *testing.T) {
	r := newKinds(t, 8<<20, linear, small, half)
	made := r.on()

	t.Log("== daemon, engines and image node are killed while it is copied")
	r.limit(t, slow, syscall.SIGTERM)
	job, at := r.cut(t)
	seen := r.copied(t, job, 0)
	for _, b := range []blow{daemonDies, enginesDie} {
		b.strike(t, r)()
		r.writes(t, 50)
	}
	r.copied(t, job, seen)
	// Its engine copies nothing below the cursor any more, and readers are refused there: a node that began anew would fail.
	eventually(t, "the first disk is in the archive", func() bool {
		s, err := r.on().vc.Volume(t.Context(), linear)
		return err == nil && attached(s) && len(s.Engine.Stack) == 1 && s.Engine.Stack[0].Cursor == s.Engine.Size
	})
	r.copied(t, job, 0)
	r.limit(t, slow, syscall.SIGKILL) // so that it is not over before this looks
	if s := r.job(t, job); s.Disks[0].Done != s.Disks[0].Size || s.Done == s.Size {
		t.Errorf("the image node did not go on where it was: %+v", s)
	}
	r.limit(t, "", syscall.SIGTERM)
	r.succeeds(t, job, at)
	made.told(t, job, api.JobDone)
	r.verdict(t)

	t.Log("== the daemon is killed during the cut")
	s, random := seeded(t)
	t.Logf("once more: -run '^TestBackupKilled$' -e2e.seed=%d", s)
	r.cutUnder(t, daemonDies, random)
	r.verdict(t)

	for _, b := range []blow{guestDestroyed, guestShutDown} {
		t.Logf("== %s while it is copied", b.name)
		r.limit(t, slow, syscall.SIGTERM)
		job, at = r.cut(t)
		seen = r.copied(t, job, 0)
		b.strike(t, r)
		r.copied(t, job, seen-1)
		r.limit(t, "", syscall.SIGTERM)
		r.succeeds(t, job, at)
		made.told(t, job, api.JobDone)
		r.ended(t)
		if b.name == guestDestroyed.name {
			r.again(t)
			r.verdict(t)
		}
	}
}

// seeded is where random moments come from.
func seeded(t *testing.T) (uint64, *rand.Rand) {
	t.Helper()
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	return s, rand.New(rand.NewPCG(s, 0))
}

// moment is one of a backup after its cut.
type moment struct {
	name  string
	seen  func(*api.JobStatus) bool
	lasts time.Duration // about
}

// ofDisk is when a disk is copied, or, on a machine that is busy, was.
func ofDisk(i int) moment {
	return moment{fmt.Sprint("disk ", i+1), func(s *api.JobStatus) bool {
		return s.State != api.JobQueued && (i == 0 || s.Disks[i-1].Done == s.Disks[i-1].Size)
	}, 3 * time.Second}
}

var moments = []moment{
	ofDisk(0), ofDisk(1), ofDisk(2),
	{"completing", func(s *api.JobStatus) bool { return s.State == api.JobCompleting || s.Done == s.Size }, 200 * time.Millisecond},
	{"done", func(s *api.JobStatus) bool { return s.Ended != 0 }, 500 * time.Millisecond},
}

// TestBackupKilledSoak strikes with each blow in each moment of a backup.
func TestBackupKilledSoak(t *testing.T) {
	if !*soak {
		t.Skip("takes long: -e2e.soak")
	}
	for _, b := range []blow{daemonDies, enginesDie, nodeDies, libvirtdDies, guestMoves, guestDestroyed, guestShutDown, guestStartsAnew} {
		t.Run(b.name, func(t *testing.T) {
			s, random := seeded(t)
			t.Logf("once more: -run 'TestBackupKilledSoak/%s' -e2e.soak -e2e.seed=%d", b.name, s)
			order := []string{linear, half, small}
			random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
			r := newKinds(t, masterMiB<<20, order...)
			r.limit(t, "6M", syscall.SIGTERM)
			for _, m := range moments {
				t.Logf("== %s, %s, the disks are %v", b.name, m.name, order)
				r.underBlow(t, b, m, time.Duration(random.Int64N(int64(m.lasts))))
			}
			for range 4 {
				t.Logf("== %s, during the cut, the disks are %v", b.name, order)
				r.cutUnder(t, b, random)
				r.wellAfter(t, b)
			}
			r.finish(t)
		})
	}
}

// underBlow has one backup under one blow.
func (r *rescue) underBlow(t *testing.T, b blow, m moment, after time.Duration) {
	t.Helper()
	made := r.on()
	job, at := r.cut(t)
	eventually(t, m.name, func() bool { return m.seen(r.job(t, job)) })
	time.Sleep(after)
	s := r.job(t, job)
	t.Logf("%s, struck %s after %s had begun, at %d of %d MiB", b.name, after, m.name, s.Seen>>20, s.Size>>20)
	b.strike(t, r)()
	r.succeeds(t, job, at)
	made.told(t, job, api.JobDone)
	r.wellAfter(t, b)
}

// wellAfter has all verified, with a guest that runs.
func (r *rescue) wellAfter(t *testing.T, b blow) {
	t.Helper()
	if b.ends {
		r.again(t)
	}
	r.verdict(t)
}
