package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/top"
)

// stage answers as the daemon does, with a real engine behind its volumes where a test has one.
type stage struct {
	mu      sync.Mutex
	status  api.DaemonStatus
	engines map[string]*server // whose status is asked for each time
	handle  map[string]http.HandlerFunc
	calls   []string // of anything but the status: path and body
}

func (b *bench) stage(status api.DaemonStatus) *stage {
	b.t.Helper()
	s := &stage{status: status, engines: map[string]*server{}, handle: map[string]http.HandlerFunc{}}
	if err := os.MkdirAll(b.path("run"), 0o755); err != nil {
		b.t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(b.path("run"), api.DaemonSocket))
	if err != nil {
		b.t.Fatal(err)
	}
	web := &http.Server{Handler: s}
	go web.Serve(l)
	b.t.Cleanup(func() { web.Close() })
	return s
}

func (s *stage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.URL.Path == api.PathDaemonStatus {
		for i := range s.status.Volumes {
			if e := s.engines[s.status.Volumes[i].Volume]; e != nil {
				s.status.Volumes[i].Engine, _ = e.engine().Status(context.Background())
			}
		}
		_ = json.NewEncoder(w).Encode(s.status)
		return
	}
	var body json.RawMessage
	_ = json.NewDecoder(r.Body).Decode(&body)
	s.calls = append(s.calls, r.Method+" "+r.URL.Path+" "+string(body))
	if h := s.handle[r.URL.Path]; h != nil {
		h(w, r)
		return
	}
	w.WriteHeader(http.StatusNotFound)
	_ = json.NewEncoder(w).Encode(api.Error{Message: "no " + r.URL.Path})
}

// on has one path answered so.
func (s *stage) on(path string, h http.HandlerFunc) { s.change(func() { s.handle[path] = h }) }

// change changes the stage between requests.
func (s *stage) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// called returns and forgets what was called.
func (s *stage) called() (calls []string) {
	s.change(func() { calls, s.calls = s.calls, nil })
	return calls
}

func answer(v any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(v) }
}

func wellStatus() api.DaemonStatus {
	return api.DaemonStatus{
		Version: "v1", PID: 7, Launcher: "child", Started: time.Now().Unix() - 100, Libvirt: api.LibvirtStatus{Connected: true}, Catalogue: 9,
		Volumes: []api.VolumeStatus{{Volume: "c", Store: "/s/c", Domain: "g1", Target: "vdb", State: api.VolumeAttached, PID: 42}},
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*api.DaemonStatus)
		code   int
		says   []string
	}{
		"well":       {func(*api.DaemonStatus) {}, 0, []string{"virt-cow v1, pid 7, up 1m", "engines by child", "1 volume in use of 9", "c       g1"}},
		"none":       {func(s *api.DaemonStatus) { s.Volumes = nil }, 0, []string{"no volumes"}},
		"old, held":  {func(s *api.DaemonStatus) { s.Volumes[0].Old, s.Volumes[0].Held = true, api.HeldRequest }, 0, []string{"old binary, held"}},
		"failed":     {func(s *api.DaemonStatus) { s.Volumes[0].State, s.Volumes[0].Error = api.VolumeFailed, "gone" }, 3, []string{"c: gone", "1 of 1 volumes failed"}},
		"domain":     {func(s *api.DaemonStatus) { s.Domains = []api.DomainStatus{{Domain: "g2", Error: "no free PCI slot"}} }, 3, []string{"domain g2: no free PCI slot", "1 domain with an error"}},
		"no libvirt": {func(s *api.DaemonStatus) { s.Libvirt = api.LibvirtStatus{Error: "refused"} }, 3, []string{"NO LIBVIRT", "no connection to libvirt: refused"}},
		"flush": {func(s *api.DaemonStatus) { s.Volumes[0].Engine = &api.EngineStatus{Cache: "on", Error: "I/O error"} }, 3,
			[]string{"FLUSH fails: I/O error", "1 volume in trouble"}},
		"hydration": {func(s *api.DaemonStatus) {
			s.Volumes[0].Engine = &api.EngineStatus{Cache: "on", Hydration: &api.Hydration{State: api.HydrationFailed, Total: 100, Done: 50, Error: "bad sector"}}
		}, 3, []string{"50% failed", "hydration: bad sector"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			status := wellStatus()
			c.change(&status)
			b.stage(status)
			b.run("status").exits(c.code).says(c.says...)
			var got api.DaemonStatus
			b.run("status", "--json").exits(c.code).json(&got)
			if got.PID != 7 {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestHydrate(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	s := b.stage(wellStatus())
	running := api.VolumeStatus{Volume: "c", State: api.VolumeAttached, Engine: &api.EngineStatus{Hydration: &api.Hydration{State: "running", Total: 100, Done: 7, Rate: 50 << 20}}}
	s.on(api.PathDaemonHydration, answer(running))
	called := func(want ...string) {
		t.Helper()
		if got := strings.Join(s.called(), "; "); got != strings.Join(want, "; ") {
			t.Errorf("called %s\nwant   %s", got, strings.Join(want, "; "))
		}
	}
	b.run("hydrate", "start", "c", "--rate", "50M").exits(0).says("volume c: 7% running, at most 50 MiB/s")
	called(`POST /v1/hydration {"volume":"c","run":true,"rate":52428800}`)
	b.run("hydrate", "start", "c").exits(0)
	called(`POST /v1/hydration {"volume":"c","run":true}`)
	b.run("hydrate", "rate", "c", "0").exits(0)
	called(`POST /v1/hydration {"volume":"c","rate":0}`)
	b.run("hydrate", "pause", "c", "--json").exits(0)
	called(`POST /v1/hydration {"volume":"c","run":false}`)
	held := running
	held.Held = api.HeldHydration
	s.on(api.PathDaemonHydration, answer(held))
	b.run("hydrate", "start", "c").exits(0).says("`virt-cow hydrate pause c` ends it")
	s.on(api.PathDaemonHydration, nil)
	b.run("hydrate", "start", "nothing").exits(1).says("no /v1/hydration")
}

func TestRestart(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	status := wellStatus()
	status.Volumes = append(status.Volumes, api.VolumeStatus{Volume: "d", PID: 1, Old: true}, api.VolumeStatus{Volume: "e", PID: 2, Old: true},
		api.VolumeStatus{Volume: "f", Old: true})
	s := b.stage(status)
	s.on("/v1/volumes/d/restart", answer(api.VolumeStatus{Volume: "d", PID: 77}))
	b.run("volume", "restart").exits(exitUsage).says("--old or --all")
	b.run("volume", "restart", "d").exits(0).says("volume d: engine is process 77 now")
	b.run("volume", "restart", "--old").exits(1).says("process 77", "volume e:", "1 restarted before it, 0 left")
	s.change(func() { s.status.Volumes = nil })
	b.run("volume", "restart", "--all").exits(0).says("nothing to restart")
}

// TestOddNames: what is refused says what to do, and never comes to the daemon.
func TestOddNames(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	s := b.stage(wellStatus())
	long := strings.Repeat("x", 65)
	for _, args := range [][]string{
		{"attach", "", "c"}, {"attach", "a/b", "c"}, {"attach", "a\nb", "c"}, {"attach", "g1", "c/d"}, {"attach", "g1", "../c"},
		{"attach", "g1", "ä"}, {"attach", "g1", long}, {"attach", "g1"}, {"attach", "g1", ".c"}, {"attach", "g1", ""},
		{"detach", "g1", ""}, {"detach", "", "c"}, {"detach", "g1", "c d"},
		{"hydrate", "start", ""}, {"hydrate", "pause", "c/../d"}, {"hydrate", "rate", "\x1b[2J", "1M"}, {"volume", "restart", "a%2fb"},
		{"hydrate", "rate", "c", "99999999999999999999"}, {"hydrate", "rate", "c", "8E"}, {"hydrate", "rate", "c", "many"},
		{"attach", "g1", "c", "--rate", "16E"}, {"status", "--watch", "--interval", "1ns"}, {"status", "--watch", "--interval", "-1s"},
	} {
		o := b.run(args...).exits(exitUsage)
		if o.stderr == "" || strings.ContainsAny(o.stderr, "\x1b") {
			t.Errorf("%q says %q", args, o.stderr)
		}
	}
	if calls := s.called(); len(calls) > 0 {
		t.Error(calls)
	}
}

// busy keeps an engine busy until the test ends.
func (s *server) busy(t *testing.T) {
	dev := s.dial()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		block := noise(1, 4096)
		for i := int64(0); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := dev.WriteAt(block, i%64*4096); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-done; dev.Close() })
}

func TestWatchPlain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.image("m.raw", mib)
	b.clone("c.vcow", "m.raw")
	s := b.stage(wellStatus())
	engine := b.serve("c.vcow")
	s.change(func() { s.engines["c"] = engine })
	engine.busy(t)

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := b.command(ctx, program, "status", "--watch", "--interval", "100ms", "--json")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var rates *top.Rates
	lines := json.NewDecoder(out)
	for rates == nil || rates.Writes == 0 {
		var g glance
		if err := lines.Decode(&g); err != nil {
			t.Fatal(err)
		}
		rates = g.Rates["c"]
	}
	if rates.WriteBytes < rates.Writes*4095 || rates.WriteBytes > rates.Writes*4097 || rates.Reads != 0 {
		t.Errorf("%+v", rates)
	}
	cmd.Process.Signal(os.Interrupt)
	if err := cmd.Wait(); err != nil {
		t.Errorf("interrupted: %v", err)
	}
	var text logBuffer
	plain := b.command(ctx, program, "status", "--watch", "--interval", "100ms")
	plain.Stdout = &text
	if err := plain.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a second table", func() bool { return strings.Count(text.String(), "VOLUME") > 1 })
	plain.Process.Signal(os.Interrupt)
	if err := plain.Wait(); err != nil || strings.Contains(text.String(), "\x1b") {
		t.Errorf("%v: %q", err, text.String())
	}
}

func TestWatchOnTerminal(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	term := b.onTerminal(100, 20, b.command(context.Background(), program, "status", "--watch", "--interval", "100ms"))
	before := term.local()
	mark := term.shows(0, "is not running") // a daemon that comes up later is found
	status := wellStatus()
	for i := range 50 {
		status.Volumes = append(status.Volumes, api.VolumeStatus{Volume: "v" + string(rune('A'+i%26)) + string(rune('a'+i/26)), State: "attached"})
	}
	b.stage(status)
	mark = term.shows(mark, "q quits, arrows and pages scroll: 1 to 16 of 51")
	if term.local() == before {
		t.Error("keys are read by lines")
	}
	term.types("\x1b[B")
	mark = term.shows(mark, "scroll: 2 to 17 of 51")
	term.types("G")
	mark = term.shows(mark, "scroll: 36 to 51 of 51")
	term.resize(60, 8)
	mark = term.shows(mark, "scroll: 36 to 39 of 51")
	next := term.shows(mark, "scroll: 36 to 39 of 51")          // all of it
	for line := range strings.Lines(term.output()[mark:next]) { // which the terminal ends with another \r
		if n := len([]rune(strings.NewReplacer("\r", "", "\n", "", "\x1b[K", "", "\x1b[H", "", "\x1b[J", "", "\x1b[7m", "", "\x1b[0m", "").Replace(line))); n > 60 {
			t.Errorf("%d wide: %q", n, line)
		}
	}
	term.types("\x03") // Ctrl-C
	if err := term.cmd.Wait(); err != nil {
		t.Errorf("after Ctrl-C: %v", err)
	}
	term.shows(mark, "\x1b[?25h\x1b[?1049l")
	if term.local() != before {
		t.Error("the terminal is not as it was")
	}
}
