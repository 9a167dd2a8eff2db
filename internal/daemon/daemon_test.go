package daemon

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/inventory"
	"github.com/virt-cow/virt-cow/internal/launch"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/plugin"
)

func newTestDaemon(t *testing.T) *Daemon {
	t.Helper()
	return newTestDaemonWith(t, func(*Config) {})
}

func newTestDaemonWith(t *testing.T, change func(*Config)) *Daemon {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	run, err := os.MkdirTemp("", "vcd") // short: sockets are in here
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{
		config: Config{
			RunDir: run, QEMURunDir: run, Launcher: launch.NewChild("/bin/false", run, run), Plugins: plugin.New(plugin.Config{Dir: run}),
			Inventory: inventory.Config{StateDir: t.TempDir(), StoreDir: t.TempDir(), RunDir: run, Program: "/bin/false"},
		},
		log: zerolog.New(t.Output()), root: ctx, volumes: map[string]*volume{}, domains: map[uuid.UUID]*domain{},
	}
	change(&d.config)
	if err := errors.Join(d.openInventory(), d.openCuts()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		d.tasks.Wait()
		if err := errors.Join(d.config.Plugins.Close(context.Background()), d.inventory.Close(), os.RemoveAll(run)); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestClaim(t *testing.T) {
	t.Parallel()
	d := newTestDaemon(t)
	a := newDomain(d, libvirtx.Domain{Name: "a", UUID: uuid.New()})
	b := newDomain(d, libvirtx.Domain{Name: "b", UUID: uuid.New()})
	adopted := &volume{name: "adopted", want: libvirtx.Want{Volume: "adopted", Store: "/s/adopted"}, engine: d.newEngine("adopted")}
	d.volumes["adopted"] = adopted
	for _, c := range []struct {
		dom           *domain
		volume, store string
		starting      bool
		refused       string // "" if not
	}{
		{a, "v", "/s/v", false, ""},
		{a, "v", "/s/v", false, ""},
		{b, "v", "/s/other", false, "volume v (/s/other) belongs to domain a"},
		{b, "w", "/s/v", false, "belongs to domain a"},
		{a, "w", "/s/v", false, "volume v (/s/v) belongs to domain a"},
		{b, "w", "/s/w", false, ""},
		{b, "adopted", "/s/elsewhere", false, "/s/adopted"},
		{b, "adopted", "/s/adopted", false, ""},
		{a, "adopted", "/s/adopted", false, "belongs to domain b"},
		{b, "v", "/s/v", true, ""}, // a is off
		{a, "v", "/s/v", false, "belongs to domain b"},
		{a, "adopted", "/s/adopted", true, "belongs to domain b"}, // its engine runs
		{a, "w", "/s/v", true, "belongs to domain b"},
	} {
		_, err := d.claim(c.dom, libvirtx.Want{Volume: c.volume, Store: c.store}, c.starting)
		if (err == nil) != (c.refused == "") || err != nil && !strings.Contains(err.Error(), c.refused) {
			t.Errorf("%s claims %s in %s: want an error with %q, got %v", c.dom.name(), c.volume, c.store, c.refused, err)
		}
	}
}

func TestPlace(t *testing.T) {
	t.Parallel()
	v := view{
		wants: []libvirtx.Want{{Volume: "w", Target: "vdb"}},
		taken: map[string]bool{"vda": true, "sda": true},
		disks: map[string]libvirtx.Disk{"leaving": {Target: "vdz"}},
	}
	for _, c := range []struct {
		want   libvirtx.Want
		target string
		error  string
	}{
		{libvirtx.Want{Volume: "x"}, "vdc", ""},
		{libvirtx.Want{Volume: "x", Bus: "scsi"}, "sdb", ""},
		{libvirtx.Want{Volume: "x", Target: "vdq"}, "vdq", ""},
		{libvirtx.Want{Volume: "x", Target: "vda"}, "", "another disk at vda"},
		{libvirtx.Want{Volume: "x", Target: "vdb"}, "", "another disk at vdb"},
		{libvirtx.Want{Volume: "w"}, "", "has volume w already"},
		{libvirtx.Want{Volume: "leaving"}, "", "still has volume"},
	} {
		w := c.want
		err := v.place(&w, "dom")
		if c.error == "" && (err != nil || w.Target != c.target) || c.error != "" && (err == nil || !strings.Contains(err.Error(), c.error)) {
			t.Errorf("%+v: %q %v", c.want, w.Target, err)
		}
	}
	for c := 'a'; c <= 'z'; c++ {
		v.taken["vd"+string(c)] = true
	}
	if err := v.place(&libvirtx.Want{Volume: "x"}, "dom"); err == nil || !strings.Contains(err.Error(), "no free target") {
		t.Error(err)
	}
}

func TestVolumeOfSocket(t *testing.T) {
	t.Parallel()
	d := newTestDaemon(t)
	run := d.config.RunDir
	for path, want := range map[string]string{
		run + "/v.sock": "v", run + "//v.sock": "v", run + "/a.b.sock": "a.b",
		"": "", run + "/v.ctl": "", run + "/.sock": "", "/elsewhere/v.sock": "", run + "/x/v.sock": "",
	} {
		if got := d.volumeOfSocket(path); got != want {
			t.Errorf("%s: %q, not %q", path, got, want)
		}
	}
}

// TestAdoptWithDamagedSpecs: one bad spec harms no other, and nothing is taken for an engine that is none.
func TestAdoptWithDamagedSpecs(t *testing.T) {
	t.Parallel()
	d := newTestDaemon(t)
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(d.specPath(name), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	write("torn", `{"version":1,"wa`)
	write("newer", `{"version":5,"volume":"newer"}`)
	write("evil", `{"version":1,"want":{"volume":"../evil","store":"/s"}}`)
	write("renamed", `{"version":2,"volume":"other","store":"/s/other"}`)
	write("first", `{"version":1,"want":{"volume":"first","store":"/s/first","target":"vdb","hydrate":"no","rate":7}}`)
	for _, name := range []string{"live", "first"} {
		l, err := net.Listen("unix", d.controlPath(name))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	was := &volume{
		name: "live", want: libvirtx.Want{Volume: "live", Store: "/s/live", Rate: 7, Target: "vdc"},
		plugged: true, held: api.HeldRequest, arrived: true, hydrated: true,
	}
	if _, err := d.note(was); err != nil {
		t.Fatal(err)
	}
	if err := d.adopt(); err != nil {
		t.Fatal(err)
	}
	if len(d.volumes) != 2 {
		t.Fatal(d.volumes)
	}
	live := d.volumes["live"]
	if live.want != was.want || !live.plugged || live.held != api.HeldRequest || !live.arrived || !live.hydrated {
		t.Errorf("not as it was noted: %+v", live)
	}
	first := d.volumes["first"]
	if want := (libvirtx.Want{Volume: "first", Store: "/s/first", Target: "vdb", Hydrate: "no", Rate: 7}); first.want != want || !first.plugged {
		t.Errorf("of a daemon of version 1: %+v", first)
	}
	for _, name := range []string{"torn", "newer", "evil", "renamed", "live", "first"} {
		if _, err := os.Stat(d.specPath(name)); err != nil {
			t.Errorf("spec %s is gone: an engine may run", name)
		}
	}
}

func TestOneDaemonARunFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	syscall.ForkLock.RLock() // what another test starts would have the file open, and so locked, until it runs
	defer syscall.ForkLock.RUnlock()
	unlock, err := lockRunDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockRunDir(dir); !errors.Is(err, ErrRunning) {
		t.Fatal(err)
	}
	unlock()
	again, err := lockRunDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	again()
}
