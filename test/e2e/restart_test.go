package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/virt-cow/virt-cow/test/lab"
	"github.com/virt-cow/virt-cow/test/lab/records"
)

// TestUpgrade: the program is replaced and the daemon restarted; status tells that the engines are old; they are
// replaced one by one under a guest that writes to all of them, and nothing is lost.
func TestUpgrade(t *testing.T) {
	b := newBed(t, lab0)
	installed := filepath.Join(b.Dir, "virt-cow")
	install := func(version string) {
		t.Helper()
		must(t, lab.Build("./cmd/virt-cow", installed+".new", "-ldflags", "-X main.version="+version))
		must(t, os.Rename(installed+".new", installed))
		must(t, b.vc.Daemon().Stop(syscall.SIGTERM))
		b.vc.Program = installed
		_, err := b.vc.StartDaemon(t.Context())
		must(t, err)
	}
	install("1.0")
	names := []string{"c1", "c2", "c3"}
	stores, pids, writers := map[string]string{}, map[string]int{}, map[string]writer{}
	for _, name := range names {
		stores[name] = b.adopted(t, name)
		b.run(t, "attach", "g1", name, "--no-hydrate")
	}
	must(t, b.guest.Boot(t.Context()))
	for _, name := range names {
		pids[name] = b.await(t, name, "attached", attached).PID
		writers[name] = startWriter(t, b.guest, b.disk(t, stores[name]), name)
	}
	status := func(name string, pid int, old bool) error {
		s, err := b.vc.Volume(t.Context(), name)
		if err == nil && (s == nil || s.PID != pid || s.Old != old || s.Engine == nil) {
			err = fmt.Errorf("%s: want engine %d, old %t, got %+v", name, pid, old, s)
		}
		return err
	}
	for _, name := range names {
		must(t, status(name, pids[name], false))
	}

	install("1.1")
	for _, name := range names {
		b.await(t, name, "adopted", attached)
		must(t, status(name, pids[name], true))
	}
	for i, name := range names {
		s, err := b.daemon().Restart(t.Context(), name)
		must(t, err)
		if s.PID == pids[name] || s.Old || s.Engine == nil || s.Engine.Version != "1.1" {
			t.Fatalf("%+v", s)
		}
		b.await(t, name, "attached", attached)
		writers[name].await(t, 20)
		for _, later := range names[i+1:] { // one at a time
			must(t, status(later, pids[later], true))
		}
	}
	b.assertNoIOErrors(t)
	if c := b.counters(t); c.EngineRestarts != 0 {
		t.Errorf("what was asked for counts as an accident: %+v", c)
	}
	logs := map[string]records.Log{}
	for _, name := range names {
		logs[name] = writers[name].stop(t)
	}
	must(t, b.guest.Destroy(t.Context()))
	for _, name := range names {
		b.await(t, name, "off", off)
		b.verifyOutside(t, stores[name], logs[name])
	}
}
