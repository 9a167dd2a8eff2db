package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virt-cow/virt-cow/test/lab"
)

// TestMigrateStale shows that this lab finds the fault that cache off is there for. A guest on its way writes a chunk that was
// clear when the destination opened the store. A program that trusts the table it loaded then, as a kernel snapshot does, has the
// guest read the master's old data there; ours has it read what it wrote.
func TestMigrateStale(t *testing.T) {
	if err := lab.Check(); err != nil {
		lab.SkipOrFail(t, err)
	}
	t.Parallel()
	stale := filepath.Join(t.TempDir(), "virt-cow")
	must(t, lab.Build("./cmd/virt-cow", stale, "-tags=virtcow_stale,virtcow_lean"))
	for _, w := range []struct {
		name, program string
		corrupts      bool
	}{{"table loaded at prepare", stale, true}, {"cache off", program, false}} {
		t.Run(w.name, func(t *testing.T) {
			wrote, read, master := writeOnTheWay(t, w.program)
			switch {
			case wrote == master:
				t.Fatal("the guest wrote what the master has: this test proves nothing")
			case w.corrupts && read != master:
				t.Errorf("the guest does not read the master's old data %s but %s (it wrote %s): this test would not find the fault", master, read, wrote)
			case !w.corrupts && read != wrote:
				t.Errorf("the guest wrote %s and reads %s (the master has %s)", wrote, read, master)
			}
			t.Logf("wrote %.12s, reads %.12s, the master has %.12s", wrote, read, master)
		})
	}
}

// writeOnTheWay has a guest write a chunk while its memory is copied, and read it where it came. What it returns are checksums.
func writeOnTheWay(t *testing.T, program string) (wrote, read, master string) {
	t.Helper()
	const chunk = 4096
	s := newSiteOf(t, siteConfig{program: program, volumes: []string{"v1"}, made: clones("--chunk", "4K")})
	c := &crossing{site: s, volumes: []string{"v1"}}
	s.boot(t, "v1")
	dev := c.on().disk(t, "/dev/disk/by-id/v1")
	raw, err := os.ReadFile(s.raw)
	must(t, err)
	at := bytes.Index(raw, []byte("master data\n"))/chunk + 1
	sum := sha256.Sum256(raw[at*chunk : (at+1)*chunk])

	p := c.begin(t, true)
	p.await(t, copying)
	wrote = in(t, s.guest, fmt.Sprintf(`dd if=/dev/urandom of=/tmp/new bs=%d count=1 2>/dev/null
dd if=/tmp/new of=%s bs=%[1]d seek=%[3]d count=1 conv=notrunc,fsync 2>/dev/null && sha256sum </tmp/new`, chunk, dev, at))
	must(t, p.wait(t))
	c.awaitSettled(t, p.to, "v1")
	read = in(t, s.guest, fmt.Sprintf(`echo 3 >/proc/sys/vm/drop_caches
dd if=%s bs=%d skip=%d count=1 2>/dev/null | sha256sum`, dev, chunk, at))
	must(t, s.guest.Destroy(t.Context()))
	first := func(s string) string { s, _, _ = strings.Cut(s, " "); return s }
	return first(wrote), first(read), hex.EncodeToString(sum[:])
}
