package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/virt-cow/virt-cow/internal/api"
)

// TestPool: volumes whose stores are volumes of libvirt's storage pools. Deleting one deletes what was made for it and
// nothing else; what libvirt's absence interrupts is finished once it is back.
func TestPool(t *testing.T) {
	b := newBed(t, lab0)
	dir := filepath.Join(b.Dir, "pool")
	must(t, os.Mkdir(dir, 0o755))
	b.virsh(t, "pool-define-as", "vms", "dir", "--target", dir)
	refused := func(want string, args ...string) {
		t.Helper()
		out, err := b.vc.Run(t.Context(), args...)
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("%v: want an error with %q, got %v: %s", args, want, err, out)
		}
	}
	create := []string{"volume", "clone", b.master, "p1", "--pool", "vms"}
	refused("virsh pool-start vms", create...)
	refused("nopool", "volume", "create", "p1", "--size", "1M", "--pool", "nopool")
	b.virsh(t, "pool-start", "vms")
	b.virsh(t, "vol-create-as", "vms", "mine", "4M")

	b.run(t, create...)
	if out := b.virsh(t, "vol-list", "vms"); strings.Count(out, dir) != 2 {
		t.Fatalf("not in the pool:\n%s", out)
	}
	refused("p1", create...)
	b.run(t, "hydrate", "start", "p1")
	b.run(t, "volume", "wait", "p1", "--for", "hydrated")
	b.await(t, "p1", "let go of", gone)
	b.assertMasterUnchanged(t)

	// libvirt is away while the volume is deleted.
	must(t, b.Libvirtd().Stop(syscall.SIGKILL))
	out, err := b.vc.Run(t.Context(), "volume", "delete", "p1")
	t.Log("deleted without libvirt:", err, out)
	must(t, b.StartLibvirtd(t.Context()))
	if state := b.virsh(t, "pool-info", "vms"); !strings.Contains(state, "running") {
		b.virsh(t, "pool-start", "vms")
	}
	eventually(t, "the volume is deleted once libvirt is back", func() bool {
		if _, err := b.vc.Run(t.Context(), "volume", "show", "p1"); err != nil {
			return true
		}
		_, _ = b.vc.Run(t.Context(), "volume", "delete", "p1") // where the first one was refused, not begun
		return false
	})
	b.virsh(t, "pool-refresh", "vms")
	if out := b.virsh(t, "vol-list", "vms"); strings.Count(out, dir) != 1 || !strings.Contains(out, "mine") {
		t.Errorf("the pool should have nothing but what was there before:\n%s", out)
	}
	list, err := api.NewDaemon(b.Path(b.vc.RunDir)).Volumes(t.Context())
	must(t, err)
	if len(list.Volumes) != 0 {
		t.Errorf("left in the catalogue: %+v", list.Volumes)
	}
}
