package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/test/lab"
)

// fencing gives a host a fence command, which says from now on what setFence had it say, and returns how to set that: its exit code.
func (c *crossing) fencing(t *testing.T, b *bed) (setFence func(code int), fenced func() string) {
	t.Helper()
	code, log := filepath.Join(c.Dir, "fence.code"), filepath.Join(c.Dir, "fence.log")
	setFence = func(n int) { must(t, os.WriteFile(code, []byte(strconv.Itoa(n)), 0o644)) }
	setFence(1)
	command := filepath.Join(c.Dir, "fence")
	script := fmt.Sprintf("#!/bin/sh\necho \"$1\" >>%s\necho the power switch does not answer\nexit $(cat %s)\n", log, code)
	must(t, lab.WriteProgram(command, []byte(script)))
	must(t, b.vc.Daemon().Stop(syscall.SIGTERM))
	c.configure(t, b.Host, fmt.Sprintf("[fence]\ncommand = %q\n", command))
	_, err := b.vc.StartDaemon(t.Context())
	must(t, err)
	return setFence, func() string {
		text, err := os.ReadFile(log)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return string(text)
	}
}

// refused has a guest that was started there wait for volumes that it does not get, and say so.
func (c *crossing) refused(t *testing.T, b *bed, says ...string) {
	t.Helper()
	for _, v := range c.volumes {
		b.await(t, v, "refused, saying "+strings.Join(says, ", "), func(s *api.VolumeStatus) bool {
			for _, what := range says {
				if s == nil || s.State != api.VolumeFailed || s.PID != 0 || !strings.Contains(s.Error, what) {
					return false
				}
			}
			return true
		})
	}
}

// back has a host come back that lost its power. It must do nothing by itself.
func (c *crossing) back(t *testing.T, b *bed) {
	t.Helper()
	must(t, b.PowerOn(t.Context()))
	c.configure(t, b.Host, "") // its /etc was in memory
	_, err := b.vc.StartDaemon(t.Context())
	must(t, err)
	c.verdict(t)
}

// queued is how many bytes a host's libvirtd has not read yet of what others sent it.
func (b *bed) queued(t *testing.T) (n int64) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(filepath.Dir(b.Path("")), "net", "tcp"))
	must(t, err)
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 5 || !strings.HasSuffix(f[1], fmt.Sprintf(":%04X", 16509)) || f[3] != "01" { // established
			continue
		}
		_, waiting, _ := strings.Cut(f[4], ":")
		bytes, err := strconv.ParseInt(waiting, 16, 64)
		must(t, err)
		n += bytes
	}
	return n
}

// finishHeld lets a migration go on up to where the guest is to go on at the destination: libvirtd there has been told to see to
// that, and is stopped.
func (p *passage) finishHeld(t *testing.T) {
	t.Helper()
	must(t, p.to.Libvirtd().Signal(syscall.SIGSTOP))
	must(t, p.c.guest.HurryMigration(t.Context()))
	p.await(t, suspended)
	// A question whether it is there has a few bytes.
	eventually(t, "libvirtd of "+p.to.Name+" is told to finish", func() bool { return p.to.queued(t) > 300 })
}

// TestMigrateHostGone cuts the power of the source: while memory is copied, and when the guest runs at the destination but the
// source has not stopped writing. Nobody takes a volume over without proof of its owner's death; with that all that was flushed is
// there, and who comes back from the dead does no harm.
func TestMigrateHostGone(t *testing.T) {
	c := newCrossing(t, nil, nil, "v1")
	a, b := c.beds[0], c.beds[1]
	setFence, fenced := c.fencing(t, b)

	p := c.begin(t, true)
	p.await(t, copying)
	must(t, a.PowerCut())
	<-p.over
	eventually(t, "the guest that was to come is gone", func() bool { return dead(b.stateOf(t.Context())) })
	b.await(t, "v1", "closed", left)
	logs := c.died(t)

	c.bootOn(t, b)
	c.refused(t, b, "is open on ha", "does not answer", "the power switch does not answer", "virt-cow host fenced ha")
	if !strings.Contains(fenced(), "ha\n") {
		t.Errorf("the fence command was not run: %q", fenced())
	}
	b.run(t, "host", "fenced", "ha", "--yes")
	c.anew(t, logs)
	c.back(t, a)
	a.virsh(t, "start", "g1") // as one does who does not know
	c.refused(t, a, "hb", "g1")
	a.virsh(t, "destroy", "g1")
	c.verdict(t)
	c.move(t, b, a)
	c.verdict(t)

	was := fenced()
	p = c.begin(t, true)
	p.await(t, copying)
	must(t, a.vc.Daemon().Signal(syscall.SIGSTOP)) // so that its engine does not seal
	p.finishHeld(t)
	must(t, a.Freeze())
	must(t, b.Libvirtd().Signal(syscall.SIGCONT))
	defer func() { // what the guest does is not to be seen otherwise
		if t.Failed() {
			stats, err := b.Virsh(t.Context(), "qemu-monitor-command", "--hmp", "g1", "info blockstats")
			t.Logf("QEMU: %v %s\nthe guest: %s", err, stats, c.guest.ConsoleLog())
		}
	}()
	b.await(t, "v1", "waiting for the source", func(s *api.VolumeStatus) bool {
		return s != nil && s.Migration != nil && strings.Contains(s.Migration.Waits, "virt-cow host fenced ha")
	})
	p.forget()
	must(t, a.PowerCut())
	<-p.over
	c.guest.MovedTo(b.Host)
	if out, err := b.vc.Run(t.Context(), "status"); err == nil || !strings.Contains(out, "virt-cow host fenced ha") {
		t.Errorf("status does not say what the guest waits for: %v\n%s", err, out)
	}
	eventually(t, "the fence command is tried, and is no proof", func() bool { return fenced() != was })
	if s := b.await(t, "v1", "known", func(s *api.VolumeStatus) bool { return s != nil && s.Engine != nil && s.Engine.Owner != nil }); s.Engine.Owner.HostName != "ha" {
		t.Errorf("%s owns the volume without a proof", s.Engine.Owner.HostName)
	}
	b.run(t, "host", "fenced", "ha", "--yes")
	c.writes(t, 50)
	c.back(t, a)
	c.move(t, b, a)
	c.verdict(t)

	must(t, a.PowerCut())
	logs = c.died(t)
	setFence(0)
	c.bootOn(t, b)
	c.anew(t, logs)
	c.back(t, a)
	c.finish(t)
}

// TestMigrateOldOwner cuts a host off that is taken for dead, wrongly: its guest writes on. It stops before anything that it does
// gets into what another host has by now.
func TestMigrateOldOwner(t *testing.T) {
	c := newCrossing(t, nil, nil, "v1")
	a, b := c.beds[0], c.beds[1]
	must(t, c.Cut(t.Context(), a.Host, b.Host))
	c.writes(t, 50)
	c.bootOn(t, b)
	c.refused(t, b, "does not answer", "virt-cow host fenced ha")
	logs := c.died(t) // what it has flushed by now
	b.run(t, "host", "fenced", "ha", "--yes")
	c.anew(t, logs)

	// Until it looks (at its next commit of flags, and every few seconds) the guest may read what the other one has written: the
	// word was wrong. Its checker ends when it does; else it is paused by its next request.
	s := a.await(t, "v1", "lost, saying what to do", func(s *api.VolumeStatus) bool {
		return s != nil && strings.Contains(s.Error, "virsh destroy g1") && s.Engine != nil && s.Engine.Lost
	})
	if s.Engine.Error == "" {
		t.Errorf("the engine that lost its volume has no error: %+v", s.Engine)
	}
	must(t, c.Heal(t.Context(), a.Host, b.Host))
	for i := range 6 { // it stays so, once what was under way has ended
		time.Sleep(time.Second)
		now := a.await(t, "v1", "lost", func(s *api.VolumeStatus) bool { return s != nil && s.Engine != nil && s.Engine.Lost })
		if i == 0 {
			s = now
		}
		if now.Engine.IO.Writes != s.Engine.IO.Writes || now.Engine.IO.Commits != s.Engine.IO.Commits {
			t.Fatalf("the guest that lost its volume writes: %+v, then %+v", s.Engine.IO, now.Engine.IO)
		}
	}
	a.virsh(t, "destroy", "g1")
	c.verdict(t)
	c.finish(t)
}

// TestMigrateReplyLost: the destination has the guest run, and the source never hears of it, and has its own go on. That one must
// not, with disks to which the other has written; it waits, and the status says what to do. Then the guest dies that did go on.
func TestMigrateReplyLost(t *testing.T) {
	c := newCrossing(t, nil, nil, "v1", "v2")
	a, b := c.beds[0], c.beds[1]
	p := c.begin(t, true)
	p.await(t, copying)
	p.finishHeld(t)
	link := c.Link(lab.Mgmt, a.Host, b.Host)
	must(t, link.Cut(t.Context()))
	must(t, b.Libvirtd().Signal(syscall.SIGCONT))
	for _, v := range c.volumes {
		b.await(t, v, "owned there", settled)
	}
	if err := p.wait(t); err == nil {
		t.Fatal("the migration succeeded though its end was lost")
	}
	must(t, link.Heal(t.Context()))
	c.guest.MovedTo(b.Host)
	c.writes(t, 50)
	eventually(t, "the source's guest waits", func() bool { return a.stateOf(t.Context()) == "paused" })
	qemuTo.kill(t, p)
	eventually(t, "the guest is dead", func() bool { return dead(b.stateOf(t.Context())) })
	logs := c.died(t)
	c.endsHere(t, a)
	c.bootOn(t, a)
	c.anew(t, logs)
	c.verdict(t)
	c.finish(t)
}
