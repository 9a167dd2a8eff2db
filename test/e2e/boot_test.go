package e2e

import (
	"os"
	"testing"

	"github.com/virt-cow/virt-cow/test/lab"
)

// TestBootDiskRefused: a guest whose boot disk can't be served does not start, in one line that says why, and starts
// once that is mended. Its engine is for its QEMU only, and ends with it.
func TestBootDiskRefused(t *testing.T) {
	b := newBedOn(t, lab.Config{Hook: program}, lab.GuestConfig{Devices: bootDisk("c1")})
	vetoed(t, b.Host, "g1", "no such volume in the catalogue: c1", "start", "g1")
	store := b.adopted(t, "c1")
	must(t, os.Rename(store, store+".away"))
	vetoed(t, b.Host, "g1", store+": no such file", "start", "g1")
	must(t, os.Rename(store+".away", store))
	back := b.openElsewhere(t, store)
	vetoed(t, b.Host, "g1", "is open on", "start", "g1")
	back()

	must(t, b.guest.Start(t.Context()))
	s := b.await(t, "c1", "attached", attached)
	if c := s.Engine.Client; s.Domain != "g1" || c == nil || c.Domain != "g1" || c.PIDFile != "/run/libvirt/qemu/g1.pid" {
		t.Errorf("domain %s, its engine lets in %+v", s.Domain, c)
	}
	must(t, b.guest.Destroy(t.Context()))
	b.await(t, "c1", "closed", closed)
	b.assertClosed(t, store)
}

// TestSaveAndRestore: a guest saved while it writes to a disk of its definition and to one attached later goes on
// after it is restored, with both; the second one can then be detached.
func TestSaveAndRestore(t *testing.T) {
	b := newBedOn(t, lab.Config{Hook: program}, lab.GuestConfig{Devices: bootDisk("c1")})
	boot, hot := b.adopted(t, "c1"), b.adopted(t, "c2")
	must(t, b.guest.Boot(t.Context()))
	b.run(t, "attach", "g1", "c2", "--no-hydrate")
	first, second := startWriter(t, b.guest, "/dev/vda", "boot"), startWriter(t, b.guest, b.disk(t, hot), "hot")
	b.virsh(t, "managedsave", "g1")
	for volume, store := range map[string]string{"c1": boot, "c2": hot} {
		b.await(t, volume, "closed", closed)
		b.assertClosed(t, store)
	}

	must(t, b.guest.Boot(t.Context()))
	b.await(t, "c1", "attached", attached)
	b.await(t, "c2", "attached", attached)
	first.await(t, 50)
	second.await(t, 50)
	b.assertNoIOErrors(t)
	bootLog, hotLog := first.stop(t), second.stop(t)
	b.run(t, "detach", "g1", "c2")
	b.verifyOutside(t, hot, hotLog)
	if got := b.wants(t, "g1"); got != "" {
		t.Errorf("detached, and yet g1 wants %s", got)
	}
	must(t, b.guest.PowerOff(t.Context()))
	b.await(t, "c1", "closed", closed)
	b.verifyOutside(t, boot, bootLog)
	b.assertMasterUnchanged(t)
}
