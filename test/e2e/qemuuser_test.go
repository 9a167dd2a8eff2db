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

// QEMU's user and group on Debian.
const (
	qemuUser = "libvirt-qemu"
	qemuID   = 64055
)

// TestQEMUUser has QEMU run as hosts run it, not as root: the disk's socket is its group's, and nobody's but this guest's.
func TestQEMUUser(t *testing.T) {
	b := newBedOn(t, lab.Config{QEMUUser: qemuUser}, lab0)
	must(t, b.guest.Boot(t.Context()))
	store := b.clone(t, "c1")
	b.run(t, "attach", "g1", "--store", store, "--target", "vdc")
	s := b.await(t, "c1", "attached", attached)

	pid, err := os.ReadFile(b.Path("/run/libvirt/qemu/g1.pid"))
	must(t, err)
	if uid := strings.TrimSpace(hostRun(t, b, "stat", "-c", "%u", "/proc/"+strings.TrimSpace(string(pid)))); uid != fmt.Sprint(qemuID) {
		t.Fatalf("QEMU runs as user %s: this test shows nothing", uid)
	}
	for path, want := range map[string]string{
		s.Engine.Socket: fmt.Sprintf("660 0 %d", qemuID), api.ControlPath(s.Engine.Socket): "600 0 0",
	} {
		if got := strings.TrimSpace(hostRun(t, b, "stat", "-c", "%a %u %g", path)); got != want {
			t.Errorf("%s: mode, user, group %s, want %s", filepath.Base(path), got, want)
		}
	}
	dev := b.disk(t, store)
	b.in(t, "mount "+dev+" /mnt && grep -q golden /mnt/etc/hostname && echo guest >/mnt/etc/hostname && umount /mnt && sync")

	// Another process of the same user, as another guest's QEMU is, and one of another user.
	connect := func(id string) (string, error) {
		return b.Run(t.Context(), "setpriv", "--reuid="+id, "--regid="+id, "--clear-groups",
			"qemu-img", "info", "nbd+unix:///c1?socket="+s.Engine.Socket)
	}
	if out, err := connect(fmt.Sprint(qemuID)); err == nil {
		t.Errorf("another process of QEMU's user may have the disk: %s", out)
	}
	s = b.await(t, "c1", "served by an engine that has refused somebody", func(s *api.VolumeStatus) bool {
		return attached(s) && s.Engine.IO.Refused > 0
	})
	if out, err := connect("65534"); err == nil || !strings.Contains(out, "Permission denied") {
		t.Errorf("another user: %v: %s", err, out)
	}

	// The next engine's socket is QEMU's too.
	must(t, b.Kill(t.Context(), s.PID, syscall.SIGKILL))
	old := s.PID
	b.await(t, "c1", "served again", func(s *api.VolumeStatus) bool { return s != nil && s.Engine != nil && s.PID != old })
	b.in(t, "mount "+dev+" /mnt && grep -q guest /mnt/etc/hostname && umount /mnt && sync")
	b.assertMasterUnchanged(t)
}

func hostRun(t *testing.T, b *bed, name string, args ...string) string {
	t.Helper()
	out, err := b.Run(t.Context(), name, args...)
	must(t, err)
	return out
}
