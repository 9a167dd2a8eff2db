package daemon

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

func newTestDaemon(t *testing.T) *Daemon {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	d := &Daemon{
		config: Config{RunDir: t.TempDir(), LogDir: t.TempDir()}, log: zerolog.New(t.Output()), root: ctx,
		volumes: map[string]*volume{}, domains: map[uuid.UUID]*domain{},
	}
	t.Cleanup(func() {
		cancel()
		d.tasks.Wait()
	})
	return d
}

func TestClaim(t *testing.T) {
	d := newTestDaemon(t)
	a := newDomain(d, libvirtx.Domain{Name: "a", UUID: uuid.New()})
	b := newDomain(d, libvirtx.Domain{Name: "b", UUID: uuid.New()})
	adopted := &volume{name: "adopted", want: libvirtx.Want{Volume: "adopted", Store: "/s/adopted"}, engine: d.newEngine("adopted")}
	d.volumes["adopted"] = adopted
	for _, c := range []struct {
		dom           *domain
		volume, store string
		refused       string // "" if not
	}{
		{a, "v", "/s/v", ""},
		{a, "v", "/s/v", ""},
		{b, "v", "/s/other", "volume v (/s/other) belongs to domain a"},
		{b, "w", "/s/v", "belongs to domain a"},
		{a, "w", "/s/v", "volume v (/s/v) belongs to domain a"},
		{b, "w", "/s/w", ""},
		{b, "adopted", "/s/elsewhere", "/s/adopted"},
		{b, "adopted", "/s/adopted", ""},
		{a, "adopted", "/s/adopted", "belongs to domain b"},
	} {
		_, err := d.claim(c.dom, libvirtx.Want{Volume: c.volume, Store: c.store})
		if (err == nil) != (c.refused == "") || err != nil && !strings.Contains(err.Error(), c.refused) {
			t.Errorf("%s claims %s in %s: want an error with %q, got %v", c.dom.name(), c.volume, c.store, c.refused, err)
		}
	}
}

func TestPlace(t *testing.T) {
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

// TestAdoptWithDamagedRecords: one bad record harms no other, and nothing is taken for an engine that is none.
func TestAdoptWithDamagedRecords(t *testing.T) {
	d := newTestDaemon(t)
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(d.config.RunDir, name+recordSuffix), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	exists := func(name string) bool {
		_, err := os.Stat(filepath.Join(d.config.RunDir, name+recordSuffix))
		return err == nil
	}
	write("torn", `{"version":1,"wa`)
	write("newer", `{"version":2,"want":{"Volume":"newer"}}`)
	write("evil", `{"version":1,"want":{"Volume":"../evil","Store":"/s"}}`)
	write("dead", `{"version":1,"want":{"Volume":"dead","Store":"/s/dead"}}`)
	l, err := net.Listen("unix", filepath.Join(d.config.RunDir, "live.ctl"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := d.writeRecord(libvirtx.Want{Volume: "live", Store: "/s/live", Rate: 7}); err != nil {
		t.Fatal(err)
	}
	if err := d.adopt(); err != nil {
		t.Fatal(err)
	}
	if len(d.volumes) != 1 || d.volumes["live"] == nil || d.volumes["live"].want.Rate != 7 {
		t.Fatal(d.volumes)
	}
	for name, want := range map[string]bool{"torn": true, "newer": true, "evil": true, "live": true, "dead": false} {
		if exists(name) != want {
			t.Errorf("record %s is there: %v", name, !want)
		}
	}
}

func TestOneDaemonARunFolder(t *testing.T) {
	dir := t.TempDir()
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

func TestHowAnEngineEnded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "v.log")
	old := "virt-cow: an old error\n"
	for said, want := range map[string]string{
		"": "exit status 1",
		`{"level":"info","message":"serving"}` + "\n":                                  "exit status 1",
		`{"level":"info"}` + "\nvirt-cow: /s/v: already in use\n":                      "exit status 1: /s/v: already in use",
		strings.Repeat("virt-cow: long ago\n", 1000) + "virt-cow: " + "no such file\n": "exit status 1: no such file",
	} {
		if err := os.WriteFile(path, []byte(old+said), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := lastLine(path, int64(len(old)), errors.New("exit status 1")); got != want {
			t.Errorf("%.40q: %q, not %q", said, got, want)
		}
	}
}
