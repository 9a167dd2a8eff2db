package e2e

import (
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/test/lab"
	"github.com/virt-cow/virt-cow/test/lab/records"
)

// TestReboot ends everything on the host at once while a guest writes to a disk of its definition and to one attached
// later, and starts the host as a boot does: the guest gets both, and all that it had flushed is there.
func TestReboot(t *testing.T) {
	b := newBedOn(t, lab.Config{Hook: program}, lab.GuestConfig{Devices: bootDisk("c1")})
	stores := map[string]string{"c1": b.adopted(t, "c1"), "c2": b.adopted(t, "c2")}
	must(t, b.guest.Boot(t.Context()))
	b.run(t, "attach", "g1", "c2", "--no-hydrate")
	devs := map[string]string{"c1": "/dev/vda", "c2": b.disk(t, stores["c2"])}
	seeds := map[string]uint64{"c1": 11, "c2": 13}
	var writers []writer
	for name, seed := range seeds {
		writers = append(writers, startWriter(t, b.guest, devs[name], name, seed))
	}
	for _, w := range writers {
		w.await(t, 100)
	}

	hostRun(t, b, "busybox", "kill", "-9", "-1")
	promised := map[string]records.Log{}
	for name, seed := range seeds {
		promised[name] = b.toldOnConsole(t, name, seed)
	}
	b.reboot(t)
	up := make(chan error, 1)
	go func() {
		_, err := b.vc.StartDaemon(t.Context())
		up <- err
	}()
	eventually(t, "the daemon answers before libvirtd is there", func() bool {
		s, err := b.vc.Status(t.Context())
		return err == nil && !s.Libvirt.Connected
	})
	must(t, b.StartLibvirtd(t.Context()))
	must(t, <-up)
	must(t, b.guest.Boot(t.Context()))
	for name := range stores {
		b.await(t, name, "attached", attached)
	}
	for _, dev := range []string{"/dev/vda", b.disk(t, stores["c2"])} {
		b.in(t, "dd if="+dev+" of=/dev/null bs=64k")
	}
	b.assertNoIOErrors(t)
	b.isWell(t)
	must(t, b.guest.PowerOff(t.Context()))
	for name, store := range stores {
		b.await(t, name, "closed", closed)
		b.verifyOutside(t, store, promised[name])
		b.run(t, "store", "verify", store)
	}
	b.assertMasterUnchanged(t)
}

// reboot empties the host's /run and gives it another boot ID, as a boot does, once nothing runs any more.
func (b *bed) reboot(t *testing.T) {
	t.Helper()
	eventually(t, "all that was killed has ended", func() bool {
		_, err := b.Run(t.Context(), "busybox", "kill", "-0", "-1")
		return err != nil && strings.Contains(err.Error(), "No such process")
	})
	id := b.file(t, "boot_id", uuid.NewString()+"\n")
	for _, command := range []string{
		"find /run -xdev -mindepth 1 -delete",
		"mkdir /run/libvirt /run/lock /run/lab /run/virt-cow",
		"mount --bind " + id + " /proc/sys/kernel/random/boot_id",
	} {
		hostRun(t, b, "sh", "-c", command)
	}
}
