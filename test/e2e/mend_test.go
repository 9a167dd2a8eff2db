package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/test/lab"
)

// TestMendedByItself: of the volumes a guest should have, those that can't be had are told in the log and in status,
// the others are attached; each is attached as soon as what was wrong with it is mended. Asked for by attach, each is
// refused, and nothing is half done.
func TestMendedByItself(t *testing.T) {
	b := newBed(t, lab.GuestConfig{
		Ports: 4, Devices: `<disk type='file' device='disk'><readonly/><source file='/etc/passwd'/><target dev='vdb' bus='virtio'/></disk>`,
	})
	stores := map[string]string{}
	for _, name := range []string{"good", "missing", "elsewhere", "taken"} {
		stores[name] = b.clone(t, name)
	}
	must(t, os.Rename(stores["missing"], stores["missing"]+".away"))
	back := b.openElsewhere(t, stores["elsewhere"])
	must(t, b.guest.Boot(t.Context()))

	b.refused(t, 2, stores["missing"]+": no such file", "attach", "g1", "--store", stores["missing"])
	b.refused(t, 1, "is open on", "attach", "g1", "--store", stores["elsewhere"])
	b.refused(t, 4, "another disk at vdb", "attach", "g1", "--store", stores["taken"], "--target", "vdb")
	if got := b.wants(t, "g1"); got != "" {
		t.Errorf("refused, and yet g1 wants %s", got)
	}
	b.hasDisks(t, "vdb")

	var wants []libvirtx.Want
	for name, target := range map[string]string{"good": "vda", "missing": "vdc", "elsewhere": "vdd", "taken": "vdb"} {
		wants = append(wants, libvirtx.Want{Volume: name, Store: stores[name], Target: target, Hydrate: "no"})
	}
	b.want(t, "g1", wants...)
	b.await(t, "good", "attached", attached)
	for name, says := range map[string]string{"missing": "no such file", "elsewhere": "is open on", "taken": "another disk at vdb"} {
		b.await(t, name, "failed", failed(says))
		eventually(t, name+" in the log", func() bool { return logged(b.log.String(), `"error"`, name, says) })
		b.refused(t, 3, says, "status")
	}
	b.hasDisks(t, "vda vdb")

	must(t, os.Rename(stores["missing"]+".away", stores["missing"]))
	b.await(t, "missing", "attached", attached)
	back()
	b.await(t, "elsewhere", "attached", attached)
	b.virsh(t, "detach-disk", "g1", "vdb")
	b.await(t, "taken", "attached", attached)
	b.hasDisks(t, "vda vdb vdc vdd")
	b.isWell(t)

	// Now all slots are in use, or soon.
	last := ""
	for i := 0; last == ""; i++ {
		if i == 4 {
			t.Fatal("there is always another slot: this test proves nothing")
		}
		name := "more" + itoa(int64(i))
		w := libvirtx.Want{Volume: name, Store: b.clone(t, name), Target: "vdm" + string(rune('a'+i)), Hydrate: "no"}
		if _, err := b.vc.Run(t.Context(), "attach", "g1", "--store", w.Store, "--target", w.Target, "--no-hydrate"); err != nil {
			b.refused(t, 1, libvirtx.ErrNoSlot.Error(), "attach", "g1", "--store", w.Store)
			last = name
		}
		wants = append(wants, w)
	}
	b.want(t, "g1", wants...)
	b.await(t, last, "failed", failed(libvirtx.ErrNoSlot.Error()))
	b.refused(t, 3, libvirtx.ErrNoSlot.Error(), "status")
	b.run(t, "detach", "g1", "good")
	b.await(t, last, "attached", attached)
	must(t, b.guest.Destroy(t.Context()))
	for _, w := range wants[1:] {
		b.await(t, w.Volume, "no longer served", closed)
		b.assertClosed(t, w.Store)
	}
}

// hasDisks compares the targets of a domain's disks.
func (b *bed) hasDisks(t *testing.T, targets string) {
	t.Helper()
	disks, err := libvirtx.Disks(b.virsh(t, "dumpxml", b.guest.Name))
	must(t, err)
	has := map[string]bool{}
	for _, d := range disks {
		has[d.Target] = true
	}
	for _, target := range strings.Fields(targets) {
		if !has[target] {
			t.Errorf("no disk at %s", target)
		}
		delete(has, target)
	}
	if len(has) > 0 {
		t.Errorf("disks besides %s: %v", targets, has)
	}
}

// logged says whether a line has all of this in it.
func logged(log string, parts ...string) bool {
lines:
	for line := range strings.Lines(log) {
		for _, p := range parts {
			if !strings.Contains(line, p) {
				continue lines
			}
		}
		return true
	}
	return false
}

// TestPausedGuest: a guest that an I/O error on one of our disks has paused goes on once the volume is served again,
// even if another one it should have can't be had, or if the disk is just being detached. One that another disk has
// paused stays paused.
func TestPausedGuest(t *testing.T) {
	b := newBed(t, lab0)
	must(t, b.guest.Boot(t.Context()))
	store := b.clone(t, "c1")
	b.run(t, "attach", "g1", "--store", store, "--no-hydrate")
	wants := []libvirtx.Want{{Volume: "c1", Store: store, Target: "vda", Hydrate: "no"}, {Volume: "none", Store: "/none", Target: "vdn"}}
	b.want(t, "g1", wants...)
	b.await(t, "none", "failed", failed("/none"))
	dev := b.disk(t, store)
	b.startWriter(t, dev)
	paused := func() {
		t.Helper()
		eventually(t, "the guest is paused", func() bool { s, err := b.guest.State(t.Context()); return err == nil && s == "paused" })
	}
	breakDisk := func() { // its engine is killed, and can't be started again
		t.Helper()
		must(t, os.Rename(store, store+".away"))
		must(t, b.Kill(t.Context(), b.await(t, "c1", "attached", attached).PID, 9))
		paused()
		b.await(t, "c1", "failed", failed("no such file"))
	}
	breakDisk()
	must(t, os.Rename(store+".away", store))
	b.await(t, "c1", "served again", attached)
	b.awaitWrites(t, 50)
	b.assertNoIOErrors(t)
	log := b.stopWriter(t, dev)

	// Somebody else's disk, whose server fails each request while a file is there.
	fail := filepath.Join(b.Dir, "fail")
	_, err := b.Start("nbdkit", "-f", "-U", "/run/foreign.sock", "--filter=error", "memory", "64M", "error=EIO", "error-rate=100%", "error-file="+fail)
	must(t, err)
	eventually(t, "nbdkit serves", func() bool { return listens(b.Path("/run/foreign.sock")) })
	b.virsh(t, "attach-device", "g1", b.diskFile(t, "/run/foreign.sock", "x", "vdx"))
	foreign := b.in(t, `until [ -b /dev/vdb ]; do sleep 0.2; done; echo /dev/vdb`)
	// Later, a paused guest answers nothing; and again and again, until there is an error to be had.
	b.in(t, "(sleep 2; while dd if="+foreign+" of=/dev/null bs=4k count=1 iflag=direct; do sleep 1; done) >/dev/null 2>&1 &")
	must(t, os.WriteFile(fail, nil, 0o644))
	paused()
	before := b.counters(t)
	eventually(t, "looked at again", func() bool {
		must(t, b.daemon().Notice(t.Context(), api.NoticeRequest{Domain: "g1", UUID: b.virsh(t, "domuuid", "g1"), Operation: "started"}))
		return b.counters(t).Reconciles >= before.Reconciles+3
	})
	if now := b.counters(t); now.Resumes != before.Resumes || b.virsh(t, "domstate", "g1") != "paused" {
		t.Errorf("a guest that another disk had paused was resumed: %+v, before %+v", now, before)
	}
	must(t, os.Remove(fail))
	b.virsh(t, "resume", "g1")
	b.in(t, "dd if="+dev+" of=/dev/null bs=4k count=1 2>&1; guest verify "+dev+" w")

	b.in(t, "(sleep 2; while dd if="+dev+" of=/dev/null bs=4k count=1000 iflag=direct; do :; done) >/dev/null 2>&1 &")
	breakDisk()
	b.want(t, "g1", wants[1])
	must(t, os.Rename(store+".away", store))
	b.await(t, "c1", "detached", gone)
	b.verifyOutside(t, store, log)
}
