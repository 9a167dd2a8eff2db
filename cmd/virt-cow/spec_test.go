package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
)

func (b *bench) spec(name string, s api.EngineSpec) {
	b.t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(b.path(name), text, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// An engine as its unit has it: all it is to do is in a file, and systemd hears when it serves and when it ends.
func TestServeASpec(t *testing.T) {
	b := newBench(t)
	b.image("m.raw", mib)
	b.clone("c.vcow", "m.raw")
	s := api.EngineSpec{
		Version: api.SpecVersion, Volume: "c", UUID: b.info("c.vcow").UUID, Store: b.path("c.vcow"), Socket: b.path("n.sock"),
		Control: b.path("k.ctl"), Group: "root", Hydrate: true,
		Client: &api.Peer{Domain: "g", UUID: uuid.NewString(), PIDFile: b.path("g.pid")},
	}
	b.spec("c.volume", s)
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: b.path("notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	told := func(want string) {
		t.Helper()
		for {
			_ = systemd.SetReadDeadline(time.Now().Add(patience))
			p := make([]byte, 4096)
			n, err := systemd.Read(p)
			if err != nil {
				t.Fatalf("systemd never heard %s: %v", want, err)
			}
			for line := range strings.Lines(string(p[:n])) {
				if strings.TrimSpace(line) == want {
					return
				}
			}
		}
	}
	t.Setenv("NOTIFY_SOCKET", b.path("notify"))
	e := b.launchArgs("c.vcow", b.path("n.sock"), "serve", "--spec", b.path("c.volume"))
	told("READY=1")
	st, err := api.NewEngine(s.Control).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st.Volume != "c" || st.Client == nil || *st.Client != *s.Client || st.Hydration.State == api.HydrationPaused {
		t.Errorf("%+v", st)
	}
	e.signal(os.Interrupt)
	told("STOPPING=1")
	e.wait(0)

	for _, more := range [][]string{{"c.vcow"}, {"--socket", "x"}, {"--hydrate"}, {"--name", "c"}, {"--read-only"}, {"--cache-off"}, {"--rate", "1M"}, {"--group", "root"}, {"--control", "x"}, {"--incoming", "x"}, {"--address", "x"}} {
		b.run(append([]string{"serve", "--spec", b.path("c.volume")}, more...)...).exits(exitUsage).says("--spec says all")
	}
	b.run("serve").exits(exitUsage).says("--spec")
	b.run("serve", b.path("c.vcow")).exits(exitUsage).says("--socket")
	b.run("serve", "--spec", b.path("none")).exits(exitFailed).says("no such file")
	other := s
	other.UUID = uuid.NewString()
	b.spec("other.volume", other)
	b.run("serve", "--spec", b.path("other.volume")).exits(exitFailed).says(b.path("c.vcow"), other.UUID, st.UUID)
	other = s
	other.Volume = "d"
	b.spec("other.volume", other)
	b.run("serve", "--spec", b.path("other.volume")).exits(exitFailed).says("holds volume c, not d")
	other.Version = api.SpecVersion + 1
	b.spec("other.volume", other)
	b.run("serve", "--spec", b.path("other.volume")).exits(exitUsage).says(fmt.Sprintf("version %d", api.SpecVersion+1))
	if names, _ := filepath.Glob(b.path("*.sock")); len(names) != 0 {
		t.Errorf("left behind: %v", names)
	}
}
