package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/catalogue"
)

// TestTenThousandVolumes: what an operator does works with a full catalogue. The times it took are in the log.
func TestTenThousandVolumes(t *testing.T) {
	b := newBed(t, lab0)
	b.adopted(t, "c1")
	b.adopted(t, "c2")
	must(t, b.vc.Daemon().Stop(syscall.SIGTERM))
	const n = 10000
	b.fillCatalogue(t, n)

	timed := func(what string, do func()) {
		t.Helper()
		began := time.Now()
		do()
		t.Logf("%s: %s", what, time.Since(began).Round(time.Millisecond))
	}
	run := func(args ...string) (out string) {
		t.Helper()
		timed(strings.Join(args, " "), func() { out = b.run(t, args...) })
		return out
	}
	timed("start of the daemon", func() {
		_, err := b.vc.StartDaemon(t.Context())
		must(t, err)
	})
	s, err := b.vc.Status(t.Context())
	must(t, err)
	if s.Catalogue != n+2 {
		t.Fatalf("%d volumes in the catalogue, want %d", s.Catalogue, n+2)
	}
	if out := run("volume", "list"); strings.Count(out, "\nv0") != n || !strings.Contains(out, "\nc2 ") {
		t.Errorf("volume list has %d of %d volumes", strings.Count(out, "\nv0"), n)
	}
	if out := run("volume", "show", "v09999"); !strings.Contains(out, "/stores/v09999.vcow") {
		t.Error(out)
	}
	run("volume", "show", "c1")
	run("status")
	b.refused(t, 2, "holds volume v05000, not c1", "attach", "g1", "c1", "--store", "/stores/v05000.vcow")
	run("attach", "g1", "c1")
	b.await(t, "c1", "off", off)
	b.refused(t, 4, "detach g1 c1", "volume", "delete", "c1")
	run("detach", "g1", "c1")
	run("volume", "delete", "c1")
	run("volume", "clone", b.master, "c3")
	run("volume", "delete", "c2", "c3")
	run("volume", "delete", "--keep-store", "v00000")
	if s, err = b.vc.Status(t.Context()); err != nil || s.Catalogue != n-1 {
		t.Errorf("%d volumes in the catalogue, want %d: %v", s.Catalogue, n-1, err)
	}
	b.assertMasterUnchanged(t)
}

// fillCatalogue adds volumes to the catalogue while no daemon has it: one by its own means, the others as copies of
// that record, as each of its means waits for the disk.
func (b *bed) fillCatalogue(t *testing.T, n int) {
	t.Helper()
	state := b.Path("/var/lib/virt-cow")
	c, err := catalogue.Open(state)
	must(t, err)
	first := catalogue.Entry{
		Name: "v00000", UUID: uuid.NewString(), State: catalogue.Ready, Store: "/stores/v00000.vcow", Role: "clone",
		Size: 1 << 30, ChunkSize: 4096, Master: "raw:/masters/golden.raw", Created: time.Now().Unix(),
	}
	must(t, c.Add(first))
	must(t, c.Close())
	dir := filepath.Join(state, "volumes")
	record, err := os.ReadFile(filepath.Join(dir, first.Name+".json"))
	must(t, err)
	for i := 1; i < n; i++ {
		name := fmt.Sprintf("v%05d", i)
		text := strings.NewReplacer(first.Name, name, first.UUID, uuid.NewString()).Replace(string(record))
		must(t, os.WriteFile(filepath.Join(dir, name+".json"), []byte(text), 0o600))
	}
}
