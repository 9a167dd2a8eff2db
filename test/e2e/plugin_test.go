package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virt-cow/virt-cow/internal/plugin"
)

// TestPlugins: what a plugin refuses is not done, and whoever asked for it reads why; what is done, or goes wrong, is
// told in its order.
func TestPlugins(t *testing.T) {
	b := newBed(t, lab0)
	b.recordEvents(t)
	store := b.adopted(t, "c1")
	b.plugin(t, "50-freeze", `[ "$1" != attach ] && [ "$1" != detach ] || { echo "no $1 on fridays"; exit 1; }`)
	b.refused(t, 1, "no attach on fridays", "attach", "g1", "c1") // off
	must(t, b.guest.Boot(t.Context()))
	b.refused(t, 1, "no attach on fridays", "attach", "g1", "c1")
	b.hasDisks(t, "")
	if got := b.wants(t, "g1"); got != "" {
		t.Errorf("refused, and yet g1 wants %s", got)
	}
	b.await(t, "c1", "not served", gone)
	b.assertClosed(t, store)
	must(t, os.Remove(b.Path(filepath.Join(pluginsDir, "50-freeze"))))

	b.run(t, "attach", "g1", "c1", "--no-hydrate", "--target", "vdk")
	pid := b.await(t, "c1", "attached", attached).PID
	b.plugin(t, "50-freeze", `[ "$1" != detach ] || { echo "no $1 on fridays"; exit 1; }`)
	b.refused(t, 1, "no detach on fridays", "detach", "g1", "c1")
	if got := b.wants(t, "g1"); got != "c1" {
		t.Errorf("refused, and yet g1 wants %q", got)
	}
	must(t, os.Remove(b.Path(filepath.Join(pluginsDir, "50-freeze"))))
	must(t, b.Kill(t.Context(), pid, 9))
	b.await(t, "c1", "served by a new engine", attachedBut(pid))
	b.run(t, "detach", "g1", "c1")
	must(t, os.Rename(store, store+".away"))
	b.refused(t, 1, "no such file", "attach", "g1", "c1")

	const want = "created attach attach attach attached detach engine-restarted detach detached failed"
	eventually(t, "all is told", func() bool { return strings.Count(b.eventNames(t, "c1"), " ") >= strings.Count(want, " ") })
	if got := b.eventNames(t, "c1"); got != want {
		t.Errorf("told %s\nwant %s", got, want)
	}
	for _, e := range b.events(t, "c1")[1:] {
		if e.Domain.Name != "g1" || e.Volume.Store != store || e.Volume.UUID == "" {
			t.Errorf("%+v", e)
		}
		if e.Event == plugin.EventAttached && e.Target != "vdk" || e.Event == plugin.EventFailed && !strings.Contains(e.Error, "no such file") {
			t.Errorf("%+v", e)
		}
	}
	if c := b.counters(t); c.Vetoes != 3 || c.PluginFailures != 0 || c.EngineRestarts != 1 {
		t.Errorf("%+v", c)
	}
}
