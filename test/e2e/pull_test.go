package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/virt-cow/virt-cow/internal/api"
)

// sees has the image node, which ends and starts again, look for disks at these places only, globs, and read so many bytes a second.
func (r *rescue) sees(t *testing.T, globs, rate string) {
	t.Helper()
	must(t, r.process.Stop(syscall.SIGTERM))
	r.configureNode(t, fmt.Sprintf("devices = [%s]\nrate = %q\n", globs, rate))
	r.startNode(t)
}

// TestPull backs a guest up of whose three disks the image node sees one: a clone, and a raw disk whose stores it sees, are pulled from
// the host. The guest moves meanwhile, and the daemon that exports is killed.
func TestPull(t *testing.T) {
	const some = `"/dev/disk/by-id/snap*", "/dev/disk/by-id/` + half + `", "/dev/disk/by-id/` + linear + `", "/dev/disk/by-id/master"`
	r := newRescueOf(t, rescueConfig{siteConfig: siteConfig{volumes: []string{small, half, linear}, made: kinds(16 << 20)}, snapshots: 3})
	r.sees(t, some, slow)
	job, at := r.cut(t)
	from, to := r.on(), r.other()
	seen := r.copied(t, job, 0)
	vias := func(s *api.JobStatus) {
		t.Helper()
		for i, pulled := range []bool{true, false, true} {
			d := s.Disks[i]
			if pulled != (d.Via == "nbd") || pulled != strings.Contains(d.Why, "not seen from here") || pulled != strings.Contains(d.Why, "host "+from.Name) {
				t.Errorf("%+v", d)
			}
		}
	}
	vias(r.job(t, job))

	t.Log("== the guest moves")
	r.move(t, from, to)
	r.writes(t, 20)
	seen = r.copied(t, job, seen)

	t.Log("== the daemon that exports is killed")
	must(t, from.vc.Daemon().Stop(syscall.SIGKILL))
	_, err := from.vc.StartDaemon(t.Context())
	must(t, err)
	r.copied(t, job, seen)

	t.Log("== the image node starts again")
	r.sees(t, some, "")
	var s *api.JobStatus
	eventually(t, "the job has ended", func() bool { s = r.job(t, job); return s.Ended != 0 })
	if s.State != api.JobDone {
		t.Fatalf("the job: %+v", s)
	}
	out := r.node.run(t, "backup", "show", s.Backup)
	if n := strings.Count(out, "read over the network"); n != 2 {
		t.Errorf("it is not said how it was read:\n%s", out)
	}
	var shown struct{ Manifest api.Manifest }
	raw, err := r.node.Command(t.Context(), program, "--json", "backup", "show", s.Backup).Output()
	must(t, err)
	must(t, json.Unmarshal(raw, &shown))
	for i, via := range []string{"nbd", "lun", "nbd"} {
		if d := shown.Manifest.Disks[i]; d.Via != via {
			t.Errorf("%+v", d)
		}
	}
	r.restored(t, s.Backup, at)
	r.assertNoSnapshots(t)
	r.finish(t)
}
