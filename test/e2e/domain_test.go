package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// TestStoreMissingAtStart: the guest runs without its disk, status says why, and once the store is back the
// disk is plugged in.
func TestStoreMissingAtStart(t *testing.T) {
	b := newBed(t, lab0)
	store := b.clone(t, "c1")
	b.run(t, "attach", "g1", "--store", store)
	must(t, os.Rename(store, store+".away"))
	must(t, b.guest.Start(t.Context()))
	s := b.await(t, "c1", "failed", func(s *api.VolumeStatus) bool { return s != nil && s.State == api.VolumeFailed })
	if !strings.Contains(s.Error, store) || !strings.Contains(s.Error, "no such file") {
		t.Error(s.Error)
	}
	b.refused(t, 3, "1 of 1 volumes failed", "status")
	must(t, os.Rename(store+".away", store))
	b.await(t, "c1", "attached", attached)
	must(t, b.guest.Destroy(t.Context()))
	b.await(t, "c1", "off", off)
	b.assertClosed(t, store)
}

// TestHydrationControl: what is asked of a volume's hydration holds for its next engine too.
func TestHydrationControl(t *testing.T) {
	b := newBed(t, lab0)
	store := b.clone(t, "c1")
	b.run(t, "attach", "g1", "--store", store, "--no-hydrate")
	must(t, b.guest.Start(t.Context()))
	s := b.await(t, "c1", "attached", attached)
	if h := s.Engine.Hydration; h.State != api.HydrationPaused {
		t.Fatalf("%+v", h)
	}
	d := api.NewDaemon(b.Path("/run/virt-cow"))
	hydrate := func(run bool, rate int64) {
		t.Helper()
		_, err := d.Hydration(t.Context(), api.VolumeHydrationRequest{Volume: "c1", HydrationRequest: api.HydrationRequest{Run: &run, Rate: &rate}})
		must(t, err)
	}
	slow := func(s *api.VolumeStatus) bool {
		return attached(s) && s.Engine.Hydration.State == api.HydrationRunning && s.Engine.Hydration.Rate == 4096
	}
	hydrate(true, 4096)
	pid := b.await(t, "c1", "hydrated slowly", slow).PID
	must(t, b.Kill(t.Context(), pid, syscall.SIGKILL))
	b.await(t, "c1", "hydrated slowly by the next engine", func(s *api.VolumeStatus) bool {
		return s != nil && s.PID != pid && s.Engine != nil && s.Engine.Hydration.Rate == 4096
	})
	hydrate(false, 0)
	b.await(t, "c1", "paused", func(s *api.VolumeStatus) bool {
		return s != nil && s.Engine != nil && s.Engine.Hydration.State == api.HydrationPaused
	})
	hydrate(true, 0)
	b.await(t, "c1", "cut loose", cutLoose)
	b.assertMasterUnchanged(t)
}

// TestTransientDomain: a domain without a stored definition gets its disk, and its end closes the store.
func TestTransientDomain(t *testing.T) {
	b := newBed(t, lab0)
	x, err := b.Virsh(t.Context(), "dumpxml", "g1")
	must(t, err)
	_, err = b.Virsh(t.Context(), "undefine", "g1")
	must(t, err)
	file := filepath.Join(b.Dir, "transient.xml")
	must(t, os.WriteFile(file, []byte(x), 0o644))
	_, err = b.Virsh(t.Context(), "create", file)
	must(t, err)
	store := b.clone(t, "c.1_x") // a name whose alias needs escaping
	b.run(t, "attach", "g1", "--store", store, "--no-hydrate")
	b.await(t, "c.1_x", "attached", attached)
	must(t, b.guest.Destroy(t.Context()))
	b.await(t, "c.1_x", "gone with its domain", gone)
	b.assertClosed(t, store)
}

// TestLibvirtdKilled: the daemon connects again and goes on; an engine that died meanwhile was started again
// without libvirt.
func TestLibvirtdKilled(t *testing.T) {
	b := newBed(t, lab0)
	store := b.clone(t, "c1")
	b.run(t, "attach", "g1", "--store", store, "--no-hydrate")
	must(t, b.guest.Boot(t.Context()))
	pid := b.await(t, "c1", "attached", attached).PID
	dev := b.disk(t, store)
	b.startWriter(t, dev)
	must(t, b.Libvirtd().Stop(syscall.SIGKILL))
	b.awaitWrites(t, 50)
	must(t, b.Kill(t.Context(), pid, syscall.SIGKILL))
	b.await(t, "c1", "served by a new engine", func(s *api.VolumeStatus) bool { return s != nil && s.PID != pid && s.Engine != nil })
	b.refused(t, 1, "not connected to libvirt", "detach", "g1", "c1")
	b.refused(t, 3, "no connection to libvirt", "status")
	must(t, b.StartLibvirtd(t.Context()))
	b.awaitWrites(t, 50)
	log := b.stopWriter(t, dev)
	eventually(t, "the daemon is connected again", func() bool {
		s, err := b.vc.Status(t.Context())
		return err == nil && s.Libvirt.Connected
	})
	b.run(t, "detach", "g1", "c1")
	b.await(t, "c1", "gone", gone)
	b.verifyOutside(t, store, log)
}

// TestPluggedByHand: a disk with one of our sockets that virsh attached is left alone, its engine too.
func TestPluggedByHand(t *testing.T) {
	b := newBed(t, lab0)
	store := b.clone(t, "c1")
	p, err := b.Start(program, "serve", "--socket", "/run/virt-cow/c1.sock", store)
	must(t, err)
	eventually(t, "it serves", func() bool { return listens(b.Path("/run/virt-cow/c1.sock")) })
	must(t, b.guest.Start(t.Context()))
	file := filepath.Join(b.Dir, "disk.xml")
	must(t, os.WriteFile(file, []byte(`<disk type='network' device='disk'><driver name='qemu' type='raw'/>
<source protocol='nbd' name=''><host transport='unix' socket='/run/virt-cow/c1.sock'/></source><target dev='vdb' bus='virtio'/></disk>`), 0o644))
	_, err = b.Virsh(t.Context(), "attach-device", "g1", file)
	must(t, err)
	b.refused(t, 1, "still has volume c1", "attach", "g1", "--store", store)
	b.refused(t, 1, "virsh detach-disk g1 vdb", "detach", "g1", "c1")

	// A new daemon looks at everything anew.
	must(t, b.vc.Daemon().Stop(syscall.SIGTERM))
	_, err = b.vc.StartDaemon(t.Context())
	must(t, err)
	other := b.clone(t, "c2")
	b.run(t, "attach", "g1", "--store", other, "--no-hydrate") // the domain was looked at by now
	x, err := b.Virsh(t.Context(), "dumpxml", "g1")
	must(t, err)
	disks, err := libvirtx.Disks(x)
	must(t, err)
	if len(disks) != 2 || disks[1].Target != "vdb" && disks[0].Target != "vdb" {
		t.Fatal(disks)
	}
	select {
	case <-p.Done():
		t.Fatal("the engine served by hand was ended: ", p.Err())
	default:
	}
	must(t, p.Signal(0))
}
