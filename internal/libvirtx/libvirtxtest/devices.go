package libvirtxtest

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/test/lab"
)

// noSlot: a machine without a free port says so before anything is plugged in.
func (r *rig) noSlot(t *testing.T) {
	ctx, c := t.Context(), r.conn(t)
	g, d := r.define(t, lab.GuestConfig{Name: "full", Ports: -1})
	if err := g.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Attach(ctx, d, r.diskXML(t, "v", uuid.New(), "vdb", "")); !errors.Is(err, libvirtx.ErrNoSlot) || !strings.Contains(err.Error(), "full") {
		t.Fatal(err)
	}
	if err := c.Attach(ctx, d, r.diskXML(t, "v", uuid.New(), "sda", "scsi")); !errors.Is(err, libvirtx.ErrNoController) || !strings.Contains(err.Error(), "full") {
		t.Fatal(err)
	}
	r.noDisks(t, d)
	if x, err := c.XML(ctx, d); err != nil || strings.Contains(x, `type='scsi'`) {
		t.Fatal("a controller was left:", err, x)
	}
	if err := g.Destroy(ctx); err != nil {
		t.Fatal(err)
	}
	r.virsh(t, "undefine", g.Name)
}

func (r *rig) noDisks(t *testing.T, d libvirtx.Domain) {
	t.Helper()
	x, err := r.conn(t).XML(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if disks, err := libvirtx.Disks(x); err != nil || len(disks) != 0 {
		t.Fatal("a disk was left half attached:", disks, err)
	}
}

func (r *rig) diskXML(t *testing.T, volume string, id uuid.UUID, target, bus string) string {
	t.Helper()
	version, err := r.conn(t).Version(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	x, err := libvirtx.DiskXML(libvirtx.Spec{Volume: volume, UUID: id, Socket: socketOf(volume), Target: target, Bus: bus}, version)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func socketOf(volume string) string { return "/run/virt-cow/" + volume + ".sock" }

// serve serves a MiB at a volume's socket.
func (r *rig) serve(t *testing.T, volume string) {
	t.Helper()
	image := filepath.Join(r.h.Dir, volume+".raw")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := r.h.Start("qemu-nbd", "-f", "raw", "-t", "-e", "4", "-x", volume, "-k", socketOf(volume), image)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop(syscall.SIGTERM) })
	r.listens(t, volume)
}

// listens waits until somebody does at a volume's socket, which is there a moment before.
func (r *rig) listens(t *testing.T, volume string) {
	t.Helper()
	eventually(t, "the NBD server", func() bool {
		c, err := net.Dial("unix", r.h.Path(socketOf(volume)))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// devices: attach and detach with a guest that is up.
func (r *rig) devices(t *testing.T) {
	ctx, c := t.Context(), r.conn(t)
	g, d := r.define(t, lab.GuestConfig{Name: "g1", Devices: `<controller type='scsi' model='virtio-scsi'/>`})
	if err := c.Attach(ctx, d, r.diskXML(t, "a.b", uuid.New(), "vdb", "")); err == nil {
		t.Fatal("attached to a domain that is off")
	}
	if err := g.Boot(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Attach(ctx, d, r.diskXML(t, "a.b", uuid.New(), "vdb", "")); err == nil || !strings.Contains(err.Error(), "g1") {
		t.Fatal("attached a volume that nobody serves:", err)
	}
	r.noDisks(t, d)
	for _, bus := range []string{"", "scsi"} {
		target := "vdb"
		if bus == "scsi" {
			target = "sda"
		}
		r.attachDetach(t, g, d, target, bus)
	}
	if err := g.Destroy(ctx); err != nil {
		t.Fatal(err)
	}
	r.virsh(t, "undefine", g.Name)
}

func (r *rig) attachDetach(t *testing.T, g *lab.Guest, d libvirtx.Domain, target, bus string) {
	ctx, c, id := t.Context(), r.conn(t), uuid.New()
	volume := "a." + target
	r.serve(t, volume)
	text := r.diskXML(t, volume, id, target, bus)
	if err := c.Attach(ctx, d, text); err != nil {
		t.Fatal(err)
	}
	r.sees(t, libvirtx.DeviceAdded{Domain: d, Alias: libvirtx.Alias(volume)})
	if err := c.Attach(ctx, d, text); err == nil || !strings.Contains(err.Error(), target) {
		t.Fatal("a taken target:", err)
	}
	x, err := c.XML(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	want := libvirtx.Disk{Target: target, Socket: socketOf(volume), Alias: libvirtx.Alias(volume)}
	if disks, err := libvirtx.Disks(x); err != nil || len(disks) != 1 || disks[0] != want {
		t.Fatal(disks, err)
	}
	if _, volumes, err := libvirtx.Named([]byte(x), "/var/run/virt-cow"); err != nil || len(volumes) != 1 || volumes[0].Volume != volume {
		t.Fatal(volumes, err)
	}
	stored, err := c.InactiveXML(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	if disks, err := libvirtx.Disks(stored); err != nil || len(disks) != 0 {
		t.Fatal("the stored definition has the disk too:", disks, err)
	}
	if bus == "" {
		dev, err := g.Disk(ctx, libvirtx.Serial(id))
		if err != nil {
			t.Fatal(err)
		}
		if out, err := g.Run(ctx, "blockdev --getsize64 "+dev); err != nil || strings.TrimSpace(out) != "1048576" {
			t.Fatal(out, err)
		}
	}
	if err := c.Detach(ctx, d, "ua-virt-cow-nothing"); !errors.Is(err, libvirtx.ErrNoDevice) {
		t.Fatal(err)
	}
	if err := c.Detach(ctx, d, libvirtx.Alias(volume)); err != nil {
		t.Fatal(err)
	}
	r.sees(t, libvirtx.DeviceRemoved{Domain: d, Alias: libvirtx.Alias(volume)})
	if err := c.Detach(ctx, d, libvirtx.Alias(volume)); !errors.Is(err, libvirtx.ErrNoDevice) {
		t.Fatal(err)
	}
	r.noDisks(t, d)
}

// ioError: a disk that fails its first read, by the firmware, pauses its guest.
func (r *rig) ioError(t *testing.T) {
	ctx, c := t.Context(), r.conn(t)
	failing := filepath.Join(r.h.Dir, "failing")
	if err := os.WriteFile(failing, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := r.h.Start("nbdkit", "-f", "-U", socketOf("bad"), "--filter=error", "memory", "1M", "error-pread=EIO", "error-pread-rate=100%", "error-pread-file="+failing)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop(syscall.SIGTERM)
	r.listens(t, "bad")
	if err := r.h.DefineXML(ctx, `<domain type='qemu'><name>bad</name><memory unit='MiB'>32</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>`+r.diskXML(t, "bad", uuid.New(), "vda", "")+`</devices></domain>`); err != nil {
		t.Fatal(err)
	}
	d, err := c.Lookup(ctx, "bad")
	if err != nil {
		t.Fatal(err)
	}
	r.virsh(t, "start", "bad")
	paused := libvirtx.State{Active: true, Paused: true, IOError: true}
	eventually(t, "the pause", func() bool { s, err := c.State(ctx, d); return err == nil && s == paused })
	eventually(t, "the event of the error", func() bool {
		r.rec.mu.Lock()
		defer r.rec.mu.Unlock()
		for _, e := range r.rec.events {
			if e, ok := e.(libvirtx.IOError); ok && e.Domain == d && e.Alias == libvirtx.Alias("bad") {
				return true
			}
		}
		return false
	})
	if err := os.Remove(failing); err != nil {
		t.Fatal(err)
	}
	if err := c.Resume(ctx, d); err != nil {
		t.Fatal(err)
	}
	if s, err := c.State(ctx, d); err != nil || s != (libvirtx.State{Active: true}) {
		t.Fatal(s, err)
	}
	r.virsh(t, "destroy", "bad")
	r.virsh(t, "undefine", "bad")
}
