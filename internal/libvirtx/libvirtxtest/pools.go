package libvirtxtest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// pools: volumes of a folder. A logical pool needs device-mapper and an iSCSI one an initiator in the kernel: their
// XML is tested without them.
func (r *rig) pools(t *testing.T) {
	ctx, c := t.Context(), r.conn(t)
	dir := filepath.Join(r.h.Dir, "pool")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r.virsh(t, "pool-define-as", "p1", "dir", "--target", dir)
	for name, f := range map[string]func() error{
		"create": func() error { _, err := c.CreateVolume(ctx, "p1", "v", 1<<20); return err },
		"find":   func() error { _, _, err := c.FindVolume(ctx, "p1", "v"); return err },
		"delete": func() error { return c.DeleteVolume(ctx, "p1", "v") },
	} {
		if err := f(); !errors.Is(err, libvirtx.ErrPool) || !strings.Contains(err.Error(), "virsh pool-start p1") {
			t.Errorf("%s in an inactive pool: %v", name, err)
		}
	}
	r.virsh(t, "pool-start", "p1")

	const size = 3<<30 + 4096
	path, err := c.CreateVolume(ctx, "p1", "v 1.raw", size)
	if err != nil || path != filepath.Join(dir, "v 1.raw") {
		t.Fatal(path, err)
	}
	if s, err := os.Stat(path); err != nil || s.Size() != size {
		t.Fatal(s, err)
	}
	if out, err := r.h.Run(ctx, "busybox", "du", "-k", path); err != nil || !strings.HasPrefix(out, "0\t") {
		t.Fatal("not sparse:", out, err)
	}
	if p, n, err := c.FindVolume(ctx, "p1", "v 1.raw"); err != nil || p != path || n != size {
		t.Fatal(p, n, err)
	}
	if _, err := c.CreateVolume(ctx, "p1", "v 1.raw", 1<<20); !errors.Is(err, libvirtx.ErrExists) {
		t.Fatal(err)
	}

	// What came since the pool was last looked at.
	byHand := filepath.Join(dir, "by-hand")
	if err := os.WriteFile(byHand, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.CreateVolume(ctx, "p1", "by-hand", 1<<20); !errors.Is(err, libvirtx.ErrExists) {
		t.Fatal(err)
	}
	if s, err := os.Stat(byHand); err != nil || s.Size() != 8192 {
		t.Fatal("the file that was there was touched", s, err)
	}
	if p, n, err := c.FindVolume(ctx, "p1", "by-hand"); err != nil || p != byHand || n != 8192 {
		t.Fatal(p, n, err)
	}
	if err := c.DeleteVolume(ctx, "p1", "by-hand"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(byHand); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for name, f := range map[string]func() error{
		"find":   func() error { _, _, err := c.FindVolume(ctx, "p1", "by-hand"); return err },
		"delete": func() error { return c.DeleteVolume(ctx, "p1", "by-hand") },
	} {
		if err := f(); !errors.Is(err, libvirtx.ErrNoVolume) || !strings.Contains(err.Error(), "by-hand") || !strings.Contains(err.Error(), "p1") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := c.CreateVolume(ctx, "nopool", "v", 1<<20); !errors.Is(err, libvirtx.ErrNoPool) || !strings.Contains(err.Error(), "nopool") {
		t.Fatal(err)
	}
	for _, name := range []string{"", "../v", "a/b", ".v", "-v"} {
		if _, err := c.CreateVolume(ctx, "p1", name, 1<<20); !errors.Is(err, libvirtx.ErrPool) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := c.CreateVolume(ctx, "p1", "zero", 0); !errors.Is(err, libvirtx.ErrPool) {
		t.Fatal(err)
	}
	r.virsh(t, "pool-destroy", "p1")
	r.virsh(t, "pool-undefine", "p1")
}
