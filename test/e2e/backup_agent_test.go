package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/test/lab"
)

// newQuiet makes a rescue whose guest has an agent, and a file system on its volume "files", at /mnt. Checkers write to the other ones.
func newQuiet(t *testing.T) *rescue {
	t.Helper()
	r := newRescueOf(t, rescueConfig{
		siteConfig: siteConfig{volumes: []string{"v1", "files"}, made: clones(), guest: lab.GuestConfig{Agent: true}}, snapshots: 2,
		backup: "hold = \"60s\"\nfreeze_timeout = \"20s\"\nfrozen_for = \"60s\"\n", // it is frozen for as long as the test needs
	})
	k := r.checkers["files"]
	_, err := k.Stop(t.Context())
	must(t, err)
	r.volumes = r.volumes[:1]
	delete(r.checkers, "files")
	in(t, r.guest, "mkfs.ext4 -q -F "+k.Disk+" && mount "+k.Disk+" /mnt")
	return r
}

// backsUp runs a backup that must end with this code and say all of this, and returns its job.
func (r *rescue) backsUp(t *testing.T, code int, says []string, flags ...string) *api.JobStatus {
	t.Helper()
	r.on().exits(t, code, says, append([]string{"backup", "domain", "g1"}, flags...)...)
	s, err := r.on().vc.Status(t.Context())
	must(t, err)
	return r.job(t, s.Backups[0].Job)
}

// files has the file system in a backup checked, and returns what file has in it.
func (r *rescue) files(t *testing.T, backup, file string) string {
	t.Helper()
	out := filepath.Join(r.node.Dir, "files-"+backup+".raw")
	r.node.run(t, "restore", "disk", backup, "vdc", out)
	defer os.Remove(out)
	if said, err := r.node.Run(t.Context(), "e2fsck", "-fn", out); err != nil {
		t.Errorf("the file system in the backup is not clean: %v: %s", err, said)
	}
	said, err := r.node.Command(t.Context(), "debugfs", "-R", "cat "+file, out).Output()
	must(t, err)
	return string(said)
}

// thaws waits until the guest, which was or may have been frozen, writes to its file system, and the daemon knows that it is not frozen.
func (r *rescue) thaws(t *testing.T) {
	t.Helper()
	in(t, r.guest, "echo thawed >/mnt/thawed && sync")
	eventually(t, "the daemon knows that the guest is not frozen", func() bool { return !r.maybeFrozen(t) })
	in(t, r.guest, "echo thawed >/mnt/thawed && sync")
}

func (r *rescue) maybeFrozen(t *testing.T) bool {
	t.Helper()
	s, err := r.on().vc.Status(t.Context())
	must(t, err)
	return len(s.Backups) == 1 && s.Backups[0].MaybeFrozen
}

// hook has the agent call this script with freeze and thaw.
func (r *rescue) hook(t *testing.T, script string) {
	t.Helper()
	in(t, r.guest, fmt.Sprintf("printf '#!/bin/sh\n%s\n' >%[2]s.new && chmod +x %[2]s.new && mv %[2]s.new %[2]s", script, lab.AgentHook))
}

// untilGo is the end of a hook that goes on once the test has the guest told so.
const untilGo = "while [ ! -e /run/go ]; do sleep 0.1; done"

// TestBackupAgent: a backup is of grade fs with an agent that is well. With one that hangs, or dies while the guest is frozen, it is of
// grade crash or refused, as was asked for, and the guest is thawed as soon as there is an agent.
func TestBackupAgent(t *testing.T) {
	r := newQuiet(t)

	t.Log("== it is well")
	in(t, r.guest, "echo not written out by anybody >/mnt/file")
	at := r.begins(t)
	j := r.backsUp(t, 0, nil, "--quiesce", "require")
	if j.Grade != api.GradeFS {
		t.Errorf("the job: %+v", j)
	}
	r.node.exits(t, 0, []string{"grade", "fs"}, "backup", "show", j.Backup)
	r.node.exits(t, 0, nil, "backup", "verify", j.Backup)
	r.restored(t, j.Backup, at)
	if got := r.files(t, j.Backup, "/file"); got != "not written out by anybody\n" {
		t.Errorf("the file in the backup: %q", got)
	}
	r.thaws(t)
	r.nothingLeft(t, 1)

	t.Log("== it hangs")
	in(t, r.guest, "kill -STOP $(cat /run/qemu-ga.pid)")
	at = r.begins(t)
	j = r.backsUp(t, 3, []string{"grade crash", "does not answer"}, "--quiesce", "try")
	if j.Grade != api.GradeCrash {
		t.Errorf("the job: %+v", j)
	}
	r.node.exits(t, 0, []string{"crash", "does not answer"}, "backup", "show", j.Backup)
	r.restored(t, j.Backup, at)
	in(t, r.guest, "kill -CONT $(cat /run/qemu-ga.pid)")
	r.thaws(t)
	r.nothingLeft(t, 2)

	t.Log("== it freezes too late")
	r.hook(t, "[ $1 = thaw ] || "+untilGo) // whatever the backup takes
	j = r.backsUp(t, 3, []string{"grade crash", "may not have been frozen"}, "--quiesce", "try")
	if j.Grade != api.GradeCrash || !r.maybeFrozen(t) {
		t.Errorf("the job: %+v", j)
	}
	in(t, r.guest, "rm "+lab.AgentHook+"; touch /run/go")
	r.thaws(t)
	in(t, r.guest, "rm /run/go")
	r.nothingLeft(t, 3)

	t.Log("== it dies while the guest is frozen")
	r.hook(t, "touch /run/freezing; "+untilGo)
	refused := make(chan struct{})
	go func() {
		defer close(refused)
		r.on().exits(t, 1, []string{"--quiesce=require", "could not be thawed"}, "backup", "domain", "g1", "--quiesce", "require")
	}()
	t.Cleanup(func() { <-refused }) // it says so to the test
	in(t, r.guest, "while [ ! -e /run/freezing ]; do sleep 0.1; done")
	engine := r.on().await(t, "v1", "served", attached).PID
	must(t, r.on().Kill(t.Context(), engine, syscall.SIGSTOP)) // no cut until this goes on
	in(t, r.guest, `touch /run/go; while :; do (touch /mnt/probe; touch /run/probed) & sleep 5; [ -e /run/probed ] || break; rm /run/probed; done >/dev/null 2>&1
rm `+lab.AgentHook+`; kill -KILL $(cat /run/qemu-ga.pid)`)
	must(t, r.on().Kill(t.Context(), engine, syscall.SIGCONT))
	<-refused
	r.assertNoSnapshots(t)
	if out := in(t, r.guest, "ls /run"); strings.Contains(out, "probed") || !r.maybeFrozen(t) {
		t.Errorf("the guest is not frozen any more, or not known to be: this proves nothing: %s", out)
	}
	in(t, r.guest, "start-agent")
	r.thaws(t)
	r.nothingLeft(t, 3)

	t.Log("== and is well again")
	if j = r.backsUp(t, 0, nil, "--quiesce", "require"); j.Grade != api.GradeFS {
		t.Errorf("the job: %+v", j)
	}
	r.files(t, j.Backup, "/file")
	r.nothingLeft(t, 4)
	logs, err := r.stop(t)
	must(t, err)
	r.verifyAll(t, r.on(), logs)
}
