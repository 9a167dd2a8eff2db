package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/test/lab"
	"github.com/virt-cow/virt-cow/test/lab/records"
)

// rescue is a crossing whose guest is backed up by a third host: it has no guest, and sees all disks.
type rescue struct {
	*crossing
	node    *bed          // the image node
	process *lab.Process  // it
	pool    *lab.Pool     // that the disks for snapshots are in; nil: none
	lasted  time.Duration // the last cut, until the image node had the job
}

// passphrase of the archive; it is nobody's secret.
const passphrase = "a passphrase of the lab"

// lunProvider hands out disks that all hosts see, one a store.
const lunProvider = `#!/bin/sh
set -eu
doc=$(cat)
name=$(printf '%%s' "$doc" | sed -n 's/.*"store":{[^}]*"name":"\([^"]*\)".*/\1/p')
answer() { printf '{"path":"/dev/disk/by-id/%%s","size":%d}\n' "$1"; }
cd %s
case $1 in
capabilities) echo '{"kind":"provider","schema":1,"description":"disks of the lab"}' ;;
create)
	for d in snap*; do [ ! -e "$d/store-$name" ] || { answer "$d"; exit; }; done
	for d in snap*; do
		mkdir "$d/taken" 2>/dev/null || continue
		: >"$d/store-$name"
		answer "$d"
		exit
	done
	echo "no disk is left" >&2
	exit 1
	;;
resolve)
	for d in snap*; do [ ! -e "$d/store-$name" ] || { answer "$d"; exit; }; done
	echo '{"missing":true}'
	;;
delete)
	for d in snap*; do [ ! -e "$d/store-$name" ] || { rm "$d/store-$name"; rmdir "$d/taken"; }; done
	;;
*) exit 1 ;;
esac
`

// newRescue makes a crossing with an image node, and disks for that many snapshots.
func newRescue(t *testing.T, flags []string, snapshots int, volumes ...string) *rescue {
	t.Helper()
	return newRescueOf(t, rescueConfig{siteConfig: siteConfig{volumes: volumes, made: clones(flags...)}, snapshots: snapshots})
}

// rescueConfig says what a rescue is to be.
type rescueConfig struct {
	siteConfig
	snapshots int
	pool      int64  // bytes of the pool that the disks for snapshots are in; 0: each has the room that it may need
	backup    string // more of [backup] on the hosts
}

func newRescueOf(t *testing.T, rc rescueConfig) *rescue {
	t.Helper()
	rc.hosts = []string{"ha", "hb", "hc"}
	c := newCrossingOf(t, rc.siteConfig)
	r := &rescue{crossing: c, node: c.beds[2]}
	c.beds = c.beds[:2]
	luns := filepath.Join(c.Dir, "luns")
	const size = (masterMiB + 16) << 20
	newDisk := c.NewDisk
	if rc.pool > 0 {
		var err error
		r.pool, err = c.NewPool(t.Context(), "snapshots", rc.pool)
		must(t, err)
		newDisk = r.pool.NewDisk
	}
	for i := range rc.snapshots {
		name := fmt.Sprintf("snap%d", i)
		_, err := newDisk(lab.DiskConfig{Name: name, Size: size})
		must(t, err)
		must(t, os.MkdirAll(filepath.Join(luns, name), 0o755))
	}
	for _, b := range c.beds {
		dir := b.Path(filepath.Join(filepath.Dir(pluginsDir), "providers.d"))
		must(t, os.MkdirAll(dir, 0o755))
		must(t, lab.WriteProgram(filepath.Join(dir, "luns"), fmt.Appendf(nil, lunProvider, size, luns)))
		c.configure(t, b.Host, "[backup]\nnode = \"hc-ctl\"\nprovider = \"luns\"\n"+rc.backup)
		must(t, b.vc.Daemon().Stop(15))
		_, err := b.vc.StartDaemon(t.Context())
		must(t, err)
	}
	r.configureNode(t, "")
	must(t, os.WriteFile(r.node.Path("/etc/virt-cow/archive.passphrase"), []byte(passphrase+"\n"), 0o600))
	r.node.run(t, "archive", "create")
	r.startNode(t)
	return r
}

// configureNode writes the image node's configuration file, with more about it.
func (r *rescue) configureNode(t *testing.T, more string) {
	t.Helper()
	r.configure(t, r.node.Host, `[image_node]
hosts = ["ha-ctl", "hb-ctl"]
`+more+`
[archive]
uri = "/var/lib/archive"
passphrase_file = "/etc/virt-cow/archive.passphrase"
cache = "/var/cache/virt-cow"
`)
}

func (r *rescue) startNode(t *testing.T) {
	t.Helper()
	var err error
	r.process, err = r.node.Start(program, "image-node")
	must(t, err)
	eventually(t, "the image node answers", func() bool {
		_, err := r.node.vc.Run(t.Context(), "backup", "jobs")
		return err == nil
	})
}

// beganAt is what is known of the guest's writes when a backup's cut is made.
type beganAt struct {
	checkers map[string]*lab.Checker // that wrote then
	held     map[string][]uint64     // as in crossing
	logs     map[string]records.Log  // what they had flushed before
	most     map[string]int          // how many writes they had made afterwards; nil: not known yet
}

func (r *rescue) begins(t *testing.T) beganAt {
	t.Helper()
	at := beganAt{checkers: r.checkers, held: r.held, logs: map[string]records.Log{}}
	for v, k := range r.checkers {
		log, err := k.Told()
		must(t, err)
		at.logs[v] = log
	}
	return at
}

// atMost notes how far the guest has come, at most, by the cut: now it has been made.
func (r *rescue) atMost(t *testing.T, at *beganAt) {
	t.Helper()
	at.most = map[string]int{}
	var mu sync.Mutex
	var all errgroup.Group
	for v, k := range at.checkers {
		all.Go(func() error {
			acked, err := k.AckedNow(t.Context())
			mu.Lock()
			defer mu.Unlock()
			at.most[v] = acked
			return err
		})
	}
	must(t, all.Wait())
}

// jobs is what the image node knows.
func (r *rescue) jobs(t *testing.T) []api.JobStatus {
	t.Helper()
	out, err := r.node.Command(t.Context(), program, "--json", "backup", "jobs", "--all").Output()
	must(t, err)
	var list api.JobList
	must(t, json.Unmarshal(out, &list))
	return list.Jobs
}

// restored has a backup's disks verified: each is as it was at one instant, which was after what had been flushed before the
// backup began, and before its cut was known to be made, or the backup to have ended; and what nobody wrote is as it always was.
func (r *rescue) restored(t *testing.T, backup string, at beganAt) {
	t.Helper()
	if at.most == nil {
		r.atMost(t, &at)
	}
	for i, v := range r.volumes {
		k := at.checkers[v]
		out := filepath.Join(r.node.Dir, fmt.Sprintf("restored-%s-%s.raw", backup, v))
		r.node.run(t, "restore", "disk", backup, fmt.Sprintf("vd%c", 'b'+i), out)
		f, err := os.Open(out)
		must(t, err)
		defer os.Remove(out)
		defer f.Close()
		r.node.verify(t, f, at.logs[v])
		upTo, err := records.GuestWriter(k.Slots, k.Seed).Instant(f, at.held[v], func(n int) []byte { return make([]byte, n) })
		if err != nil {
			t.Fatalf("%s in backup %s: %v", v, backup, err)
		}
		var sum uint64
		for _, n := range upTo {
			sum += n
		}
		acked, known := at.most[v]
		if known && sum > uint64(acked+len(upTo)) {
			t.Errorf("%s in backup %s holds %d writes, but the guest had made %d when its cut was over", v, backup, sum, acked)
		}
		r.untouched(t, v, f, k.Slots)
		t.Logf("%s in backup %s: as it was after %d writes; then there were %d", v, backup, sum, acked)
	}
}

// untouched fails unless a disk is as all are made, but for the records in its first slots.
func (r *rescue) untouched(t *testing.T, volume string, disk *os.File, slots int) {
	t.Helper()
	master, err := os.Open(r.raw)
	must(t, err)
	defer master.Close()
	st, err := disk.Stat()
	must(t, err)
	is, was := make([]byte, records.Size), make([]byte, records.Size)
	for at := int64(0); at < st.Size(); at += records.Size {
		_, err := disk.ReadAt(is, at)
		must(t, err)
		_, err = master.ReadAt(was, at)
		must(t, err)
		if slot := int(at / records.Size); slot < slots {
			if _, err := records.Check(is, slot); err == nil {
				continue
			}
		}
		if !bytes.Equal(is, was) {
			t.Fatalf("%s: what nobody wrote has changed at %d", volume, at)
		}
	}
}

// assertNoSnapshots waits until no volume has a snapshot any more, and all disks for them are free.
func (r *rescue) assertNoSnapshots(t *testing.T) {
	t.Helper()
	for _, v := range r.volumes {
		eventually(t, v+" has no snapshot", func() bool {
			i, err := r.on().vc.StoreInfo(t.Context(), "/dev/disk/by-id/"+v)
			return err == nil && i.Stack == 0
		})
	}
	eventually(t, "the snapshots' disks are free", func() bool {
		taken, err := filepath.Glob(filepath.Join(r.Dir, "luns", "*", "taken"))
		must(t, err)
		return len(taken) == 0
	})
}

// TestBackup backs a guest up that writes to two disks, twice, with a migration between.
func TestBackup(t *testing.T) {
	r := newRescue(t, nil, 2, "v1", "v2")
	for range 2 {
		at := r.begins(t)
		r.on().run(t, "backup", "domain", "g1", "--quiesce", "off")
		job := r.jobs(t)[0]
		if job.State != api.JobDone || job.Grade != api.GradeCrash || job.Backup == "" {
			t.Fatalf("the job: %+v", job)
		}
		if out := r.node.run(t, "backup", "list"); !strings.Contains(out, job.Backup) {
			t.Errorf("the list lacks %s:\n%s", job.Backup, out)
		}
		r.node.run(t, "backup", "verify", job.Backup)
		r.restored(t, job.Backup, at)
		r.assertNoSnapshots(t)
		r.move(t, r.on(), r.other())
		r.verdict(t)
	}
	r.finish(t)
}
