package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/test/lab"
)

// exits runs a command of virt-cow that must end with this code and say all of this, and returns what it said.
func (b *bed) exits(t *testing.T, code int, says []string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	out, err := b.Command(ctx, program, args...).CombinedOutput()
	got := 0
	var ended *exec.ExitError
	switch {
	case errors.As(err, &ended):
		got = ended.ExitCode()
	case err != nil:
		t.Fatal(err)
	}
	t.Logf("%s: exit code %d: %s", strings.Join(args, " "), got, out)
	if got != code {
		t.Errorf("exit code %d, want %d", got, code)
	}
	for _, text := range says {
		if !strings.Contains(string(out), text) {
			t.Errorf("it does not say %q", text)
		}
	}
	return string(out)
}

// starts begins a backup, and returns once the image node has the job; it is copied so fast, 0 for as fast as it goes.
func (r *rescue) starts(t *testing.T, rate int64) (job string) {
	t.Helper()
	s, err := r.on().daemon().Backup(t.Context(), api.BackupRequest{Domain: "g1", Quiesce: api.QuiesceOff, Rate: rate})
	must(t, err)
	return s.Job
}

// startsStopped begins a backup and stops the image node while it copies. The guest is paused: it would soon have had all saved that it
// writes to.
func (r *rescue) startsStopped(t *testing.T) string {
	t.Helper()
	r.on().virsh(t, "suspend", "g1")
	job := r.starts(t, 1<<20)
	eventually(t, "it is copied", func() bool { return r.job(t, job).State == api.JobCopying })
	must(t, r.process.Signal(syscall.SIGSTOP))
	return job
}

// breaks has the guest go on, and waits until a snapshot of it is broken, durably.
func (r *rescue) breaks(t *testing.T) {
	t.Helper()
	r.on().virsh(t, "resume", "g1")
	eventually(t, "a snapshot is broken", func() bool {
		for _, v := range r.volumes {
			s, err := r.on().vc.Volume(t.Context(), v)
			must(t, err)
			if s != nil && s.Engine != nil && len(s.Engine.Stack) == 1 && s.Engine.Stack[0].State == api.SnapshotBroken {
				return true
			}
		}
		return false
	})
}

// nothingLeft is what must have come about after any backup: the guest writes and misses nothing, no snapshot, no disk for one and no
// job is left, the archive has so many backups, and no host complains.
func (r *rescue) nothingLeft(t *testing.T, backups int) {
	t.Helper()
	r.assertNoSnapshots(t)
	r.tidy(t, backups)
}

// tidy is nothingLeft without the snapshots.
func (r *rescue) tidy(t *testing.T, backups int) {
	t.Helper()
	r.writes(t, 20)
	eventually(t, "no job is at work", func() bool {
		for _, j := range r.jobs(t) {
			if j.Ended == 0 {
				return false
			}
		}
		return true
	})
	var list []struct{ ID string }
	out, err := r.node.Command(t.Context(), program, "--json", "backup", "list").Output()
	must(t, err)
	must(t, json.Unmarshal(out, &list))
	if len(list) != backups {
		t.Errorf("the archive has %d backups, want %d: %s", len(list), backups, out)
	}
	r.assertNothingLeft(t, r.on())
}

// good has a job succeed, of which nothing must be left then.
func (r *rescue) good(t *testing.T, job string, at beganAt, backups int) {
	t.Helper()
	r.on().exits(t, 0, nil, "backup", "watch", job)
	r.succeeds(t, job, at)
	r.tidy(t, backups)
}

// shelfAt is where the archive is on the image node, and shelfAway where it is mounted meanwhile.
const shelfAt, shelfAway = "/var/lib/archive", "/var/lib/away"

// smallArchive puts the archive on a small file system of its own.
func (r *rescue) smallArchive(t *testing.T) {
	t.Helper()
	r.node.sh(t, "mkdir "+shelfAway+" && mount -t tmpfs -o size=256m archive "+shelfAway+" && cp -a "+shelfAt+"/. "+shelfAway+
		" && rm -r "+shelfAt+" && mkdir "+shelfAt+" && mount --move "+shelfAway+" "+shelfAt)
}

// trouble is what a backup may meet; the function it returns ends it.
type trouble struct {
	name  string
	begin func(t *testing.T, r *rescue) (end func())
}

var (
	storesFull = trouble{"stores full", func(t *testing.T, r *rescue) func() {
		must(t, r.pool.Leave(0))
		return func() { must(t, r.pool.Leave(48<<20)) }
	}}
	archiveFull = trouble{"archive full", func(t *testing.T, r *rescue) func() {
		r.node.sh(t, "dd if=/dev/zero of="+shelfAt+"/ballast bs=4k 2>/dev/null || [ -s "+shelfAt+"/ballast ]")
		return func() { r.node.sh(t, "rm "+shelfAt+"/ballast") }
	}}
	archiveGone = trouble{"archive gone", func(t *testing.T, r *rescue) func() {
		r.node.sh(t, "mount --move "+shelfAt+" "+shelfAway)
		return func() { r.node.sh(t, "mount --move "+shelfAway+" "+shelfAt) }
	}}
)

// TestBackupTrouble: a guest's backup meets a snapshot store that has no room, a device that fails, an archive that is full, and gone;
// a migration, and another backup. The guest notices nothing of it, and nothing is left.
func TestBackupTrouble(t *testing.T) {
	r := newRescueOf(t, rescueConfig{siteConfig: siteConfig{volumes: []string{"v1", "v2"}, made: clones()}, snapshots: 6, pool: 64 << 20})
	on := r.on()

	// These two first: a disk of the pool keeps the room that it was once given.
	t.Log("== no room to make the snapshots' stores")
	must(t, r.pool.Leave(0))
	on.exits(t, 1, []string{"no space left", "v1"}, "backup", "domain", "g1", "--quiesce", "off")
	r.nothingLeft(t, 0)

	t.Log("== the snapshots' stores are full while it is copied")
	must(t, r.pool.Leave(48<<20))
	job := r.startsStopped(t)
	must(t, r.pool.Leave(128<<10))
	r.breaks(t)
	must(t, r.process.Signal(syscall.SIGCONT))
	on.exits(t, 1, []string{"broken", "no space left", "disk vd"}, "backup", "watch", job)
	r.nothingLeft(t, 0)
	must(t, r.pool.Leave(48<<20))

	t.Log("== what is refused")
	r.refused(t)

	t.Log("== the archive is full; a second backup is refused meanwhile")
	r.node.exits(t, 0, nil, "archive", "check")
	r.smallArchive(t)
	makeRoom := archiveFull.begin(t, r)
	at := r.begins(t)
	job = r.starts(t, 0)
	eventually(t, "it waits for room", func() bool { return strings.Contains(r.job(t, job).Waits, "no space left") })
	t.Log(r.job(t, job).Waits)
	on.exits(t, 4, []string{"g1", job}, "backup", "domain", "g1", "--quiesce", "off")
	makeRoom()
	r.good(t, job, at, 1)

	t.Log("== the archive is unmounted, and comes back")
	at = r.begins(t)
	job = r.starts(t, 4<<20)
	eventually(t, "it is copied", func() bool { return r.job(t, job).State == api.JobCopying })
	mount := archiveGone.begin(t, r)
	eventually(t, "it waits for the archive", func() bool { return strings.Contains(r.job(t, job).Waits, shelfAt) })
	t.Log(r.job(t, job).Waits)
	mount()
	r.good(t, job, at, 2)

	t.Log("== the guest migrates: the cut waits")
	p := r.begin(t, true)
	p.await(t, copying)
	on.exits(t, 1, []string{"migrat", "1s"}, "backup", "domain", "g1", "--quiesce", "off", "--wait", "1s")
	at = r.begins(t)
	done := make(chan string, 1)
	go func() {
		out, err := on.vc.Run(t.Context(), "backup", "domain", "g1", "--quiesce", "off")
		if err != nil {
			out = err.Error()
		}
		done <- out
	}()
	eventually(t, "the cut waits", func() bool {
		s, err := on.vc.Status(t.Context())
		must(t, err)
		return len(s.Backups) == 1 && strings.Contains(s.Backups[0].Waits, "a migration to end")
	})
	must(t, r.guest.AbortJob(t.Context()))
	<-p.over
	t.Log(<-done)
	s, err := on.vc.Status(t.Context())
	must(t, err)
	r.good(t, s.Backups[0].Job, at, 3)

	t.Log("== the device of the snapshots' stores fails, and is replaced")
	job = r.startsStopped(t)
	must(t, r.pool.Fail())
	r.breaks(t)
	must(t, r.process.Signal(syscall.SIGCONT))
	on.exits(t, 1, []string{"broken", "input/output error", "disk vd"}, "backup", "watch", job)
	r.replaceLUNs(t)
	r.tidy(t, 3)
	at = r.begins(t)
	r.good(t, r.starts(t, 0), at, 4)
	r.finish(t)
}

// sh runs a shell's command on the host.
func (b *bed) sh(t *testing.T, command string) {
	t.Helper()
	_, err := b.Run(t.Context(), "sh", "-c", command)
	must(t, err)
}

// replaceLUNs puts new disks in the places of those that were for snapshots.
func (r *rescue) replaceLUNs(t *testing.T) {
	t.Helper()
	for _, name := range []string{"snap0", "snap1", "snap2", "snap3", "snap4", "snap5"} {
		d, err := r.NewDisk(lab.DiskConfig{Name: "new-" + name, Size: (masterMiB + 16) << 20})
		must(t, err)
		for _, h := range r.Hosts {
			must(t, d.AttachAs(h, name))
		}
	}
}

// TestBackupTroubleSoak has each trouble begin in each moment of a backup, and end after a while: the backup is good, or has failed and
// has left nothing.
func TestBackupTroubleSoak(t *testing.T) {
	if !*soak {
		t.Skip("takes long: -e2e.soak")
	}
	for _, b := range []trouble{storesFull, archiveFull, archiveGone} {
		t.Run(b.name, func(t *testing.T) {
			s, random := seeded(t)
			t.Logf("once more: -run 'TestBackupTroubleSoak/%s' -e2e.soak -e2e.seed=%d", b.name, s)
			r := newRescueOf(t, rescueConfig{siteConfig: siteConfig{volumes: []string{"v1", "v2"}, made: clones()}, snapshots: 2, pool: 64 << 20})
			r.smallArchive(t)
			for range 8 { // two of its cut, on the whole
				r.troubled(t, b, time.Duration(random.Int64N(int64(12*time.Second))), time.Duration(random.Int64N(int64(8*time.Second))))
			}
			r.finish(t)
		})
	}
}

// troubled has one backup, of some 12 s, under one trouble.
func (r *rescue) troubled(t *testing.T, b trouble, after, lasts time.Duration) {
	t.Helper()
	t.Logf("== %s, %s after a backup was asked for, for %s", b.name, after, lasts)
	had, at := len(r.jobs(t)), r.begins(t)
	over := make(chan error, 1)
	go func() {
		_, err := r.on().daemon().Backup(t.Context(), api.BackupRequest{Domain: "g1", Quiesce: api.QuiesceOff, Rate: 10 << 20})
		over <- err
	}()
	time.Sleep(after)
	end := b.begin(t, r)
	time.Sleep(lasts)
	end()
	t.Logf("asked for: %v", <-over)
	all := r.jobs(t)
	if len(all) == had {
		r.assertNoSnapshots(t)
		return
	}
	var s *api.JobStatus
	eventually(t, "the job has ended", func() bool { s = r.job(t, all[0].Job); return s.Ended != 0 })
	t.Logf("the job is %s: %s", s.State, s.Error)
	if s.State == api.JobDone {
		r.succeeds(t, s.Job, at)
	}
	r.assertNoSnapshots(t)
	r.verdict(t)
}
