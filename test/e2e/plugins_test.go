package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/plugin"
	"github.com/virt-cow/virt-cow/test/lab"
)

// TestPluginVeto: what a plugin does not allow is refused with its name and reason, and nothing has changed. Told are
// only the events that came about, in their order.
func TestPluginVeto(t *testing.T) {
	b := newBed(t, lab0)
	b.recordEvents(t)
	const freeze = "/var/lib/freeze"
	b.plugin(t, "50-freeze", `[ ! -e `+freeze+` ] || case $1 in attach|detach|delete) echo "change freeze" >&2; exit 1;; esac`)
	b.run(t, "volume", "create", "c1", "--master", b.master)
	refused := func(event string, args ...string) {
		t.Helper()
		must(t, os.WriteFile(b.Path(freeze), nil, 0o644))
		b.refused(t, 1, "plugin 50-freeze does not allow "+event+" of volume c1: change freeze", args...)
		must(t, os.Remove(b.Path(freeze)))
	}
	// A volume whose store is missing when its guest starts has failed, until it is back.
	lost := b.adopted(t, "c2")
	b.run(t, "attach", "g1", "c2", "--no-hydrate")
	must(t, os.Rename(lost, lost+".away"))
	must(t, b.guest.Boot(t.Context()))
	b.await(t, "c2", "failed", failed(lost))
	must(t, os.Rename(lost+".away", lost))
	b.await(t, "c2", "attached", attached)

	refused("attach", "attach", "g1", "c1")
	if got := b.wants(t, "g1"); got != "c2" {
		t.Errorf("refused, and yet g1 wants %s", got)
	}
	b.await(t, "c1", "unused", gone)
	refused("delete", "volume", "delete", "c1")
	v, err := b.daemon().Volume(t.Context(), "c1")
	must(t, err)
	if _, err := os.Stat(b.Path(v.Store)); err != nil || v.State != api.StateReady || v.CutLoose || v.Error != "" {
		t.Errorf("refused, and yet it is %+v: %v", v, err)
	}

	b.run(t, "attach", "g1", "c1", "--no-hydrate")
	pid := b.await(t, "c1", "attached", attached).PID
	refused("detach", "detach", "g1", "c1")
	if s := b.await(t, "c1", "still attached", attached); s.PID != pid || b.wants(t, "g1") != "c2 c1" {
		t.Errorf("refused, and yet its engine was %d and is %d, and g1 wants %s", pid, s.PID, b.wants(t, "g1"))
	}
	must(t, b.Kill(t.Context(), pid, syscall.SIGKILL))
	b.await(t, "c1", "served by a new engine", func(s *api.VolumeStatus) bool { // no request: QEMU does not connect yet
		return s != nil && s.Engine != nil && s.PID != pid
	})
	b.run(t, "detach", "g1", "c1")
	b.run(t, "volume", "delete", "c1")
	if _, err := os.Stat(b.Path(v.Store)); !os.IsNotExist(err) {
		t.Errorf("deleted, and yet its store is there: %v", err)
	}

	b.assertTold(t, "c1", "created attached engine-restarted detached deleted")
	if got, want := b.eventNames(t, "c1", plugin.Before...), "attach delete attach detach detach delete"; got != want {
		t.Errorf("plugins were asked %q, want %q", got, want)
	}
	b.assertTold(t, "c2", "created failed attached")
	for _, e := range append(b.events(t, "c1"), b.events(t, "c2")...) {
		if ofDomain := !strings.HasPrefix(e.Event, "delete") && e.Event != plugin.EventCreated; ofDomain && e.Domain.Name != "g1" {
			t.Errorf("not of g1: %+v", e)
		}
		if (e.Event == plugin.EventFailed) != strings.Contains(e.Error, lost) || e.Volume.UUID == "" {
			t.Errorf("%+v", e)
		}
	}
}

// assertTold fails unless this comes to be all that plugins were told of a volume.
func (b *bed) assertTold(t *testing.T, volume, want string) {
	t.Helper()
	eventually(t, "plugins are told of "+volume+": "+want, func() bool { return b.eventNames(t, volume, plugin.After...) == want })
}

// TestProvider: a volume whose store a site's own plugin makes, finds and deletes. What is in the provider's way is
// not touched.
func TestProvider(t *testing.T) {
	b := newBed(t, lab0)
	script, err := os.ReadFile("../../hooks/plugins/provider-folder")
	must(t, err)
	folder, providers := filepath.Join(b.Dir, "exported"), b.Path(plugin.ProvidersDir(pluginsDir))
	must(t, os.MkdirAll(providers, 0o755))
	must(t, lab.WriteProgram(filepath.Join(providers, "nfs"), script))
	must(t, os.WriteFile(filepath.Join(providers, "nfs.conf"), []byte("folder="+folder+"\n"), 0o644))

	create := []string{"volume", "create", "p1", "--master", b.master, "--provider", "nfs"}
	b.refused(t, 1, folder+" is no folder", create...)
	must(t, os.Mkdir(folder, 0o755))
	store := filepath.Join(folder, "p1.store")
	must(t, os.WriteFile(store, []byte("somebody's"), 0o644))
	b.refused(t, 4, "provider nfs has a volume of this name already", create...)
	if text, err := os.ReadFile(store); err != nil || string(text) != "somebody's" {
		t.Fatalf("what was there is now %q: %v", text, err)
	}
	must(t, os.Remove(store))
	b.refused(t, 1, "no such provider", "volume", "create", "p1", "--size", "1M", "--provider", "iscsi")

	b.run(t, create...)
	v, err := b.daemon().Volume(t.Context(), "p1")
	must(t, err)
	if v.Store != store || v.Provider != "nfs" {
		t.Fatalf("%+v", v)
	}
	b.run(t, "hydrate", "start", "p1")
	b.run(t, "volume", "wait", "p1", "--for", "hydrated")
	b.await(t, "p1", "let go of", gone)
	b.run(t, "volume", "delete", "p1")
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("the provider still has %v: %v", left, err)
	}
	b.refused(t, 1, "no such volume", "volume", "show", "p1")
	b.assertMasterUnchanged(t)
}
