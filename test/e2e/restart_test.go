package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/test/lab"
	"github.com/virt-cow/virt-cow/test/lab/records"
)

// TestRollingRestart replaces the engines of a guest that writes to its three disks, after an upgrade of the daemon and
// then once more: the guest goes on, sees no error, and nothing is lost.
func TestRollingRestart(t *testing.T) {
	b := newBed(t, lab0)
	must(t, b.guest.Boot(t.Context()))
	names := []string{"c1", "c2", "c3"}
	stores := map[string]string{}
	var writers []writer
	for _, name := range names {
		stores[name] = b.adopted(t, name)
		b.run(t, "attach", "g1", name, "--rate", "256K")
		writers = append(writers, startWriter(t, b.guest, b.disk(t, stores[name]), name))
	}
	pids := b.pids(t, names, false)

	newer := filepath.Join(b.Dir, "newer")
	must(t, lab.Build("./cmd/virt-cow", newer, "-ldflags=-X main.version=newer", "-tags=virtcow_lean"))
	must(t, b.vc.Daemon().Stop(syscall.SIGTERM))
	b.vc.Program = newer
	_, err := b.vc.StartDaemon(t.Context())
	must(t, err)
	if now := b.pids(t, names, true); now != pids {
		t.Fatalf("the new daemon has engines %v, the old one had %v", now, pids)
	}
	if out := b.run(t, "status"); strings.Count(out, " old") < len(names) {
		t.Errorf("status does not say which engines are old:\n%s", out)
	}
	for _, which := range []string{"--old", "--all"} {
		out := b.run(t, "volume", "restart", which)
		now := b.pids(t, names, false)
		for i, name := range names {
			if now[i] == pids[i] || !strings.Contains(out, fmt.Sprintf("volume %s: engine is process %d now", name, now[i])) {
				t.Errorf("volume restart %s: engine of %s was process %d, is %d now, and was said to be:\n%s", which, name, pids[i], now[i], out)
			}
			writers[i].await(t, 50)
		}
		pids = now
	}
	if out := b.run(t, "volume", "restart", "--old"); !strings.Contains(out, "nothing to restart") {
		t.Error(out)
	}
	if now := b.pids(t, names, false); now != pids {
		t.Errorf("nothing is old, and yet engines are %v, were %v", now, pids)
	}

	b.assertNoIOErrors(t)
	logs := map[string]records.Log{}
	for i, name := range names {
		logs[name] = writers[i].stop(t)
	}
	must(t, b.guest.PowerOff(t.Context()))
	for _, name := range names {
		b.await(t, name, "off", off)
		b.verifyOutside(t, stores[name], logs[name])
	}
	b.assertMasterUnchanged(t)
}

// pids are the engines of three volumes that their guest has, which are all old or none.
func (b *bed) pids(t *testing.T, names []string, old bool) (pids [3]int) {
	t.Helper()
	for i, name := range names {
		pids[i] = b.await(t, name, fmt.Sprint("attached, old: ", old), func(s *api.VolumeStatus) bool {
			return attached(s) && s.Old == old
		}).PID
	}
	return pids
}
