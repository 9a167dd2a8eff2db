package e2e

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/test/lab"
)

// bootDisk is a disk that is in a domain's XML from the start.
func bootDisk(volume string) string {
	return `<disk type='network' device='disk'>
<driver name='qemu' type='raw' cache='none' discard='unmap' error_policy='stop' rerror_policy='stop'/>
<source protocol='nbd' name=''><host transport='unix' socket='/run/virt-cow/` + volume + `.sock'/></source>
<target dev='vda' bus='virtio'/></disk>`
}

// vetoed fails unless a virsh command fails with the hook's line and leaves the domain off.
func vetoed(t *testing.T, h *lab.Host, domain, says string, virsh ...string) {
	t.Helper()
	_, err := h.Virsh(t.Context(), virsh...)
	if err == nil || !strings.Contains(err.Error(), "virt-cow: domain "+domain) || !strings.Contains(err.Error(), says) {
		t.Fatalf("want a veto that says %q, got %v", says, err)
	}
	state, err := h.Virsh(t.Context(), "domstate", domain)
	must(t, err)
	if state != "shut off" {
		t.Fatalf("vetoed, and yet domain %s is %s", domain, state)
	}
}

// TestHookWithoutDaemon: what a real libvirtd makes of the hook while no daemon is there.
func TestHookWithoutDaemon(t *testing.T) {
	t.Parallel()
	h := lab.For(t, lab.Config{Log: t.Output()})
	vc := h.VirtCow(program)
	foreign, err := h.Define(t.Context(), lab.GuestConfig{Name: "foreign"})
	must(t, err)
	ours, err := h.Define(t.Context(), lab.GuestConfig{Name: "ours", Devices: bootDisk("web1")})
	must(t, err)
	store := filepath.Join(h.Dir, "web1.vcow")
	_, err = vc.Run(t.Context(), "store", "create", "--size", "16M", "--name", "web1", store)
	must(t, err)

	// A reload is enough to have the first hook noticed. It takes effect a moment later.
	must(t, h.InstallHook(program))
	if err := ours.Start(t.Context()); err == nil || strings.Contains(err.Error(), "virt-cow:") {
		t.Fatalf("libvirtd has noticed the hook before it was told: %v", err)
	}
	must(t, h.ReloadLibvirtd())
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		err := ours.Start(t.Context())
		if err != nil && strings.Contains(err.Error(), "virt-cow:") {
			break
		}
		if err == nil || time.Now().After(deadline) {
			t.Fatalf("libvirtd does not notice the hook: %v", err)
		}
	}
	vetoed(t, h, "ours", "systemctl start virt-cow", "start", "ours")
	must(t, foreign.Start(t.Context()))

	// An engine that serves is all a guest needs.
	engine, err := h.Start(program, "serve", "--socket", "/run/virt-cow/web1.sock", store)
	must(t, err)
	status := func() *api.EngineStatus {
		s, _ := api.NewEngine(h.Path("/run/virt-cow/web1.ctl")).Status(t.Context())
		return s
	}
	eventually(t, "the engine serves", func() bool { return status() != nil })
	must(t, ours.Boot(t.Context()))
	if s := status(); s == nil || s.Connections == 0 {
		t.Fatalf("the guest runs without its disk: %+v", s)
	}

	// A libvirtd that comes back calls reconnect for each guest, and would kill one whose hook fails.
	must(t, h.Libvirtd().Stop(syscall.SIGKILL))
	must(t, h.StartLibvirtd(t.Context()))
	for _, g := range []*lab.Guest{foreign, ours} {
		if state, err := g.State(t.Context()); err != nil || state != "running" {
			t.Fatalf("after libvirtd's restart %s is %s: %v", g.Name, state, err)
		}
	}
	_, err = ours.Run(t.Context(), "dd if=/dev/urandom of=/dev/vda bs=64k count=4 conv=fsync && sync")
	must(t, err)

	// Saved and restored; without its volume it stays saved.
	_, err = ours.Run(t.Context(), "echo kept >/tmp/memory")
	must(t, err)
	before, err := h.Virsh(t.Context(), "dumpxml", "ours", "--inactive")
	must(t, err)
	_, err = h.Virsh(t.Context(), "managedsave", "ours")
	must(t, err)
	must(t, engine.Stop(syscall.SIGTERM))
	vetoed(t, h, "ours", "web1", "start", "ours")
	info, err := h.Virsh(t.Context(), "dominfo", "ours")
	if err != nil || !strings.Contains(strings.Join(strings.Fields(info), " "), "Managed save: yes") {
		t.Fatalf("the saved state is gone: %v\n%s", err, info)
	}
	_, err = h.Start(program, "serve", "--socket", "/run/virt-cow/web1.sock", store)
	must(t, err)
	eventually(t, "the engine serves", func() bool { return status() != nil })
	must(t, ours.Boot(t.Context()))
	if out, err := ours.Run(t.Context(), "cat /tmp/memory"); err != nil || strings.TrimSpace(out) != "kept" {
		t.Fatalf("not restored: %q %v", out, err)
	}
	after, err := h.Virsh(t.Context(), "dumpxml", "ours", "--inactive")
	must(t, err)
	if before != after {
		t.Fatalf("the hook has changed the domain's XML\n%s\n%s", before, after)
	}
}

// TestBootDisk: a volume that is in the domain's XML is served before QEMU starts, at a start and at a restore, and no
// longer once the guest is off; with the daemon gone its engine goes on and the guest starts again.
func TestBootDisk(t *testing.T) {
	b := newBedOn(t, lab.Config{Hook: program}, lab.GuestConfig{Devices: bootDisk("c1")})
	vetoed(t, b.Host, "g1", "c1", "start", "g1") // the daemon does not know it
	store := b.adopted(t, "c1")

	must(t, b.guest.Boot(t.Context()))
	b.await(t, "c1", "attached", attached)
	const dev = "/dev/vda" // its only disk
	if got := b.in(t, "mkdir -p /mnt && mount "+dev+" /mnt && cat /mnt/etc/hostname && umount /mnt"); got != "golden" {
		t.Fatal(got)
	}
	b.startWriter(t, dev)
	log := b.stopWriter(t, dev)

	b.virsh(t, "managedsave", "g1")
	b.await(t, "c1", "closed", closed)
	b.assertClosed(t, store)
	must(t, b.guest.Boot(t.Context()))
	b.await(t, "c1", "attached", attached)
	b.in(t, "guest verify "+dev+" w")

	must(t, b.vc.Daemon().Stop(syscall.SIGKILL))
	must(t, b.guest.Destroy(t.Context()))
	must(t, b.guest.Boot(t.Context()))
	b.in(t, "dd if="+dev+" of=/dev/null bs=64k count=4")
	_, err := b.vc.StartDaemon(t.Context())
	must(t, err)
	b.await(t, "c1", "attached", attached)
	must(t, b.guest.Destroy(t.Context()))
	b.await(t, "c1", "closed", closed)
	b.assertMasterUnchanged(t)
	b.verifyOutside(t, store, log)
}

// closed accepts a volume that has no engine.
func closed(s *api.VolumeStatus) bool { return s == nil || s.PID == 0 }
