package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virt-cow/virt-cow/internal/api"
)

// TestCloneFromStartToCutLoose is the demo's path: a clone wanted by a guest that is off is attached when the
// guest starts, changed by it, hydrated and cut loose, all with the master untouched.
func TestCloneFromStartToCutLoose(t *testing.T) {
	b := newBed(t, lab0)
	store := b.clone(t, "c1")
	if out := b.run(t, "attach", "g1", "--store", store, "--target", "vdc"); !strings.Contains(out, "gets it as vdc when it starts") {
		t.Fatal(out)
	}
	must(t, b.guest.Boot(t.Context()))
	b.await(t, "c1", "attached because its guest started", attached)
	dev := b.disk(t, store)
	b.in(t, "mount "+dev+" /mnt && grep -q golden /mnt/etc/hostname && echo guest >/mnt/etc/hostname && umount /mnt && sync")
	b.await(t, "c1", "cut loose", cutLoose)
	b.in(t, "fsck.ext4 -fn "+dev)
	if out := b.run(t, "status"); !strings.Contains(out, "cut loose") || !strings.Contains(out, "vdc") {
		t.Fatal(out)
	}

	metrics, err := b.Run(t.Context(), "curl", "-sS", "--unix-socket", b.vc.RunDir+"/"+api.DaemonSocket, "http://virt-cow"+api.PathDaemonMetrics)
	must(t, err)
	for _, want := range []string{
		"virt_cow_libvirt_connected 1", `virt_cow_volume_operations_total{kind="write",volume="c1"} `, `domain="g1"`,
		`virt_cow_volume_hydration_done_bytes{volume="c1"} 5.0331648e+07`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics has no %s", want)
		}
	}

	// From here on the master is of no use to the clone.
	b.assertMasterUnchanged(t)
	must(t, os.Remove(b.master))
	b.in(t, "echo 3 >/proc/sys/vm/drop_caches; mount "+dev+" /mnt && cat /mnt/data/big | wc -c && umount /mnt")

	must(t, b.guest.PowerOff(t.Context()))
	b.await(t, "c1", "off", off)
	b.assertClosed(t, store)
	i, err := b.vc.StoreInfo(t.Context(), store)
	must(t, err)
	if !i.CutLoose {
		t.Fatal("the store does not know that it is cut loose")
	}
	// The data area is a plain disk.
	image := filepath.Join(b.Dir, "plain.raw")
	_, err = b.Run(t.Context(), "dd", "if="+store, "of="+image, "bs=1M", "iflag=skip_bytes", "skip="+itoa(i.Data), "status=none")
	must(t, err)
	_, err = b.Run(t.Context(), "e2fsck", "-fn", image)
	must(t, err)
	out, err := b.Run(t.Context(), "debugfs", "-R", "cat /etc/hostname", image)
	must(t, err)
	if !strings.Contains(out, "guest") {
		t.Fatal(out)
	}
}

// TestMkfsOnAttachedClone attaches to a running guest, which makes a file system of its own over the master's.
func TestMkfsOnAttachedClone(t *testing.T) {
	b := newBed(t, lab0)
	must(t, b.guest.Boot(t.Context()))
	store := b.clone(t, "c1")
	if out := b.run(t, "attach", "g1", "--store", store, "--no-hydrate"); !strings.Contains(out, "g1 has it as vda") {
		t.Fatal(out)
	}
	dev := b.disk(t, store)
	b.in(t, "mkfs.ext4 -q -F "+dev+" && mount "+dev+" /mnt && cp /bin/busybox /bin/guest /mnt && sync")
	b.in(t, "cmp /bin/guest /mnt/guest && umount /mnt && fsck.ext4 -fn "+dev)
	b.in(t, "echo 3 >/proc/sys/vm/drop_caches; mount "+dev+" /mnt && cmp /bin/guest /mnt/guest && umount /mnt")
	if s := b.await(t, "c1", "attached", attached); s.Engine.Hydration.State != api.HydrationPaused {
		t.Fatalf("hydration is %s, although it was not asked for", s.Engine.Hydration.State)
	}
	b.run(t, "detach", "g1", "c1")
	b.await(t, "c1", "gone", gone)
	b.assertClosed(t, store)
	b.assertMasterUnchanged(t)
	if out := b.in(t, "ls /sys/block | grep vd || true"); out != "" {
		t.Fatal("the guest still has ", out)
	}
	// Detached is detached: the next start has no disk.
	must(t, b.guest.PowerOff(t.Context()))
	must(t, b.guest.Boot(t.Context()))
	if out := b.in(t, "ls /sys/block | grep vd || true"); out != "" {
		t.Fatal("the guest has ", out, " again")
	}
}
