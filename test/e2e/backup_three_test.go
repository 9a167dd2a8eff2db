package e2e

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/test/lab"
)

// The volumes of a guest that has a disk of each kind.
const (
	linear = "linear" // a raw disk
	half   = "half"   // a clone that is being hydrated
	small  = "small"  // a clone with small chunks
)

// kinds makes them: the raw disk as large as that, with what the master has there.
func kinds(raw int64) maker {
	return func(t *testing.T, s *site, volume string) {
		t.Helper()
		switch volume {
		case linear:
			d, err := s.NewDisk(lab.DiskConfig{Name: "raw", File: s.beginning(t, raw)})
			must(t, err)
			s.beds[0].run(t, "store", "create", "--raw", d.Path, "--name", volume, s.disks[volume].Path)
		case half:
			s.newStore(t, volume, volume, "--chunk", "64K")
		case small:
			s.newStore(t, volume, volume, "--chunk", "4K")
		}
	}
}

// beginning makes a file with so much of the master.
func (s *site) beginning(t *testing.T, size int64) string {
	t.Helper()
	master, err := os.Open(s.raw)
	must(t, err)
	defer master.Close()
	f, err := os.Create(filepath.Join(s.Dir, "raw.disk"))
	must(t, err)
	_, err = io.Copy(f, io.NewSectionReader(master, 0, size))
	must(t, err)
	must(t, f.Close())
	return f.Name()
}

// slow is how fast a backup is copied during which something is to happen: it would take some minutes.
const slow = "512K"

// newKinds makes a rescue whose guest has disks of all kinds, one of them half hydrated. They are backed up in this order.
func newKinds(t *testing.T, raw int64, order ...string) *rescue {
	t.Helper()
	r := newRescueOf(t, rescueConfig{siteConfig: siteConfig{volumes: order, made: kinds(raw), slots: 2048}, snapshots: len(order)})
	r.on().run(t, "hydrate", "start", half, "--rate", "4M")
	r.on().await(t, half, "half hydrated", func(s *api.VolumeStatus) bool {
		return s != nil && s.Engine != nil && s.Engine.Hydration.Done >= s.Engine.Hydration.Total/2
	})
	r.on().run(t, "hydrate", "rate", half, "16K")
	return r
}

// limit has the image node, which ends with this signal and starts again, read so many bytes a second; "" for no limit.
func (r *rescue) limit(t *testing.T, rate string, end syscall.Signal) {
	t.Helper()
	must(t, r.process.Stop(end))
	more := ""
	if rate != "" {
		more = `rate = "` + rate + `"`
	}
	r.configureNode(t, more)
	r.startNode(t)
}

// cut begins a backup, and returns once its cut is made and the image node has the job.
func (r *rescue) cut(t *testing.T) (job string, at beganAt) {
	t.Helper()
	at = r.begins(t)
	began := time.Now()
	s, err := r.on().daemon().Backup(t.Context(), api.BackupRequest{Domain: "g1", Quiesce: api.QuiesceOff})
	must(t, err)
	r.lasted = time.Since(began)
	r.atMost(t, &at)
	return s.Job, at
}

// job is how one is.
func (r *rescue) job(t *testing.T, id string) *api.JobStatus {
	t.Helper()
	s, err := api.NewNode(r.node.Path("/run/virt-cow")).BackupJob(t.Context(), api.JobRequest{Job: id})
	must(t, err)
	return s
}

// copied waits until more of a job has been read than that, and returns how much. It must be copied still.
func (r *rescue) copied(t *testing.T, job string, than int64) int64 {
	t.Helper()
	var s *api.JobStatus
	eventually(t, "something is copied", func() bool { s = r.job(t, job); return s.Seen > than || s.Ended != 0 })
	r.assertCopied(t, s)
	return s.Seen
}

// assertCopied fails unless a job is being copied, with something still to be read.
func (r *rescue) assertCopied(t *testing.T, s *api.JobStatus) {
	t.Helper()
	if s.State != api.JobCopying || s.Seen >= s.Size {
		t.Fatalf("the job is not being copied: %+v", s)
	}
	t.Logf("being copied: %d of %d MiB", s.Seen>>20, s.Size>>20)
}

// succeeds waits until a job is done, and has everything verified that must be so then.
func (r *rescue) succeeds(t *testing.T, job string, at beganAt) {
	t.Helper()
	began := time.Now()
	var s *api.JobStatus
	eventually(t, "the job has ended", func() bool { s = r.job(t, job); return s.Ended != 0 })
	if s.State != api.JobDone || s.Grade != api.GradeCrash || s.Backup == "" || s.Size == 0 || s.Done != s.Size || s.Seen != s.Size {
		t.Fatalf("the job: %+v", s)
	}
	for i, d := range s.Disks {
		if d.Volume != r.volumes[i] || d.Done != d.Size || d.Via != "lun" {
			t.Errorf("disk %d of the job: %+v", i, d)
		}
	}
	if out := r.node.run(t, "backup", "list", "g1"); !strings.Contains(out, s.Backup) {
		t.Errorf("the list lacks %s:\n%s", s.Backup, out)
	}
	t.Logf("done after %s", time.Since(began).Round(time.Second))
	r.node.run(t, "backup", "verify", s.Backup)
	r.restored(t, s.Backup, at)
	r.assertNoSnapshots(t)
}

// told waits until a host's daemon says this of the guest's last backup, in its metrics too.
func (b *bed) told(t *testing.T, job, state string) {
	t.Helper()
	var last string
	eventually(t, b.Name+" says that the backup is "+state, func() bool {
		s, err := b.vc.Status(t.Context())
		if err != nil || len(s.Backups) != 1 || s.Backups[0].Job != job || s.Backups[0].State != state || len(s.Snapshots) > 0 {
			return false
		}
		last, err = b.Run(t.Context(), "curl", "-sS", "--unix-socket", "/run/virt-cow/daemon.sock", "http://virt-cow/metrics")
		return err == nil
	})
	for _, says := range []string{
		`virt_cow_backup_state{domain="g1",state="` + state + `"} 1`, "virt_cow_snapshots 0", "virt_cow_snapshots_stale 0",
	} {
		if !strings.Contains(last, says+"\n") {
			t.Errorf("metrics of %s do not say %s", b.Name, says)
		}
	}
	if never := strings.Contains(last, `virt_cow_backup_last_success_time_seconds{domain="g1"} 0`+"\n"); never && state == api.JobDone {
		t.Errorf("metrics of %s know of no success", b.Name)
	}
}

// TestBackupKinds backs a guest up that has a disk of each kind: while nothing else happens, and while it moves to the other host and
// back.
func TestBackupKinds(t *testing.T) {
	r := newKinds(t, masterMiB<<20, half, small, linear)
	made := r.on()

	t.Log("== nothing else happens")
	job, at := r.cut(t)
	r.succeeds(t, job, at)
	made.told(t, job, api.JobDone)

	t.Log("== it moves there and back")
	r.limit(t, slow, syscall.SIGTERM)
	job, at = r.cut(t)
	seen := r.copied(t, job, 0)
	for range 2 {
		r.move(t, r.on(), r.other())
		r.writes(t, 50)
		r.awaitSettled(t, r.on(), r.volumes...)
		seen = r.copied(t, job, seen) // so it went on meanwhile, and goes on
	}
	if h := r.on().await(t, half, "served", lab.Attached).Engine.Hydration; h.Done == h.Total {
		t.Error("it is hydrated: this was to last longer")
	}
	r.limit(t, "", syscall.SIGTERM)
	r.succeeds(t, job, at)
	made.told(t, job, api.JobDone)
	r.finish(t)
}
