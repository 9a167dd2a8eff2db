package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
)

func TestAsk(t *testing.T) {
	for _, c := range []struct {
		name    string
		plugins map[string]string // name: script
		veto    string            // the plugin that does, "" for none
		reason  string            // part of it
		ran     string            // what was left in $S/ran
		failed  uint64
	}{
		{name: "no plugin"},
		{name: "yes", plugins: map[string]string{"a": "echo a >>$S/ran"}, ran: "a\n"},
		{name: "in lexical order, and none after a veto", plugins: map[string]string{
			"30-c": "echo c >>$S/ran", "20-b": "echo b >>$S/ran; echo not today >&2; exit 1", "10-a": "echo a >>$S/ran",
		}, veto: "20-b", reason: "not today", ran: "a\nb\n"},
		{name: "reason on stdout", plugins: map[string]string{"a": "echo out; exit 7"}, veto: "a", reason: "out"},
		{name: "stderr wins, its last line", plugins: map[string]string{"a": "echo one >&2; echo two >&2; echo out; exit 1"}, veto: "a", reason: "two"},
		{name: "no reason", plugins: map[string]string{"a": "exit 3"}, veto: "a", reason: "exit status 3"},
		{name: "killed by a signal", plugins: map[string]string{"a": "kill -SEGV $$"}, veto: "a", reason: "segmentation fault", failed: 1},
		{name: "no end of a line", plugins: map[string]string{"a": "printf 'half a line' >&2; exit 1"}, veto: "a", reason: "half a line"},
		{name: "binary garbage", plugins: map[string]string{"a": `head -c 5000 /dev/urandom >&2; printf '\n\033[31mred\377\000\n' >&2; exit 1`},
			veto: "a", reason: "?[31mred??"},
		{name: "one long line", plugins: map[string]string{"a": "head -c 200000 /dev/zero | tr '\\0' x >&2; exit 1"}, veto: "a",
			reason: strings.Repeat("x", maxLine)},
		{name: "stdin closed unread", plugins: map[string]string{"a": "exec <&-; exit 0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, deadline)
			for name, body := range c.plugins {
				s.plugin(name, body)
			}
			err := s.runner.Ask(t.Context(), attach("v1"))
			var veto *VetoError
			switch {
			case c.veto == "" && err != nil:
				t.Fatal(err)
			case c.veto == "":
			case !errors.As(err, &veto):
				t.Fatalf("got %v, want a veto", err)
			case veto.Plugin != c.veto || veto.Event != EventAttach || veto.Volume != "v1" || !strings.Contains(veto.Reason, c.reason):
				t.Errorf("veto %+v", veto)
			case len(veto.Reason) > maxLine || strings.ContainsAny(veto.Reason, "\n\x1b\x00"):
				t.Errorf("reason %q", veto.Reason)
			case s.runner.Vetoes() != 1:
				t.Errorf("%d vetoes", s.runner.Vetoes())
			}
			if got := s.trace("ran"); got != c.ran {
				t.Errorf("ran %q, want %q", got, c.ran)
			}
			if got := s.runner.Failures(); got != c.failed {
				t.Errorf("%d failures, want %d", got, c.failed)
			}
		})
	}
}

// What a plugin is given: argument, document, environment, folder, descriptors, process group.
func TestSurroundings(t *testing.T) {
	fd, err := syscall.Open("/dev/null", syscall.O_RDONLY, 0) // as one this process inherited: not closed on exec
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	t.Setenv("SECRET", "x")
	s := newSite(t, deadline)
	s.plugin("10-look.sh", `cat >$S/doc; echo "$#|$1|$PWD" >$S/args; env >$S/env
for f in /proc/$$/fd/*; do readlink $f || true; done >$S/fds
ps -o pid=,pgid=,sid=,tty= -p $$ >$S/ids || cut -d' ' -f1,5,6,7 /proc/$$/stat >$S/ids`)
	if err := s.runner.Ask(t.Context(), attach("v1")); err != nil {
		t.Fatal(err)
	}
	if got := s.trace("args"); got != "1|attach|/\n" {
		t.Errorf("arguments and folder %q", got)
	}
	for line := range strings.Lines(s.trace("env")) {
		switch name, _, _ := strings.Cut(line, "="); name {
		case "PATH", "HOME", "LANG", "PWD", "OLDPWD", "SHLVL", "_": // the last ones are the shell's own
		case "VIRT_COW_PLUGIN":
			if line != "VIRT_COW_PLUGIN="+s.dir+"/10-look.sh\n" {
				t.Error(line)
			}
		default:
			t.Errorf("environment has %s", line)
		}
	}
	for line := range strings.Lines(s.trace("fds")) {
		if !strings.HasPrefix(line, "pipe:") && !strings.HasPrefix(line, s.dir) && !strings.HasPrefix(line, s.state) && !strings.HasPrefix(line, "/proc/") {
			t.Errorf("it has open: %s", line)
		}
	}
	if ids := strings.Fields(s.trace("ids")); len(ids) < 3 || ids[0] != ids[1] || ids[0] != ids[2] {
		t.Errorf("process, group, session: %v", ids)
	}

	var doc map[string]any
	if err := json.Unmarshal([]byte(s.trace("doc")), &doc); err != nil {
		t.Fatal(err)
	}
	if _, err := uuid.Parse(fmt.Sprint(doc["id"])); err != nil {
		t.Errorf("id: %v", err)
	}
	if _, err := time.Parse(time.RFC3339Nano, fmt.Sprint(doc["time"])); err != nil {
		t.Errorf("time: %v", err)
	}
	delete(doc, "id")
	delete(doc, "time")
	got, _ := json.Marshal(doc)
	const want = `{"domain":{"name":"g1","uuid":"c1d2e3f4-0000-4000-8000-000000000001"},"event":"attach","host":"hv1","schema":1,` +
		`"target":"vdb","version":"v0",` +
		`"volume":{"name":"v1","store":"/dev/mapper/lun7","uuid":"5f0e2e0c-5a6b-4d2b-9c0a-1f8f3d6f7a10"}}`
	if string(got) != want {
		t.Errorf("document\n%s\nwant\n%s", got, want)
	}
}

// A plugin that hangs is killed with all its group, whoever holds its outputs.
func TestTimeout(t *testing.T) {
	for name, body := range map[string]string{
		"hangs":                         "echo $$ >$S/pids; exec sleep 600",
		"ignores signals":               "trap '' TERM INT HUP; echo $$ >$S/pids; while :; do sleep 1; done",
		"stops":                         "echo $$ >$S/pids; kill -STOP $$",
		"forks and hangs":               "sleep 600 & echo $! >$S/pids; echo $$ >>$S/pids; wait",
		"a grandchild that left it all": "setsid sh -c 'echo $$ >'$S'/away; exec sleep 600' & echo $$ >$S/pids; wait",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, 3*time.Second) // what the plugin writes it writes before
			s.plugin("a", body)
			var veto *VetoError
			if err := s.runner.Ask(t.Context(), attach("v1")); !errors.As(err, &veto) || veto.Reason != errTimeout.Error() {
				t.Fatalf("got %v", err)
			}
			if s.runner.Failures() != 1 || s.runner.Vetoes() != 1 {
				t.Errorf("%d failures, %d vetoes", s.runner.Failures(), s.runner.Vetoes())
			}
			for _, pid := range strings.Fields(s.trace("pids")) {
				s.await("process "+pid+" gone", func() bool { return gone(pid) })
			}
			if away := strings.TrimSpace(s.trace("away")); away != "" { // what the contract does not cover
				n, _ := strconv.Atoi(away)
				syscall.Kill(n, syscall.SIGKILL)
			}
		})
	}
}

// What a plugin leaves behind in its group is killed when it exits, and does not keep anybody waiting.
func TestLeftBehind(t *testing.T) {
	s := newSite(t, 10*time.Minute)
	s.plugin("a", "sleep 600 & echo $! >$S/pid; exit 0")
	if err := s.runner.Ask(t.Context(), attach("v1")); err != nil {
		t.Fatal(err)
	}
	pid := strings.TrimSpace(s.trace("pid"))
	s.await("grandchild gone", func() bool { return gone(pid) })

	s.plugin("a", "setsid sh -c 'echo $$ >'$S'/away; exec sleep 600' & while ! [ -s $S/away ]; do sleep 0.05; done; exit 0")
	if err := s.runner.Ask(t.Context(), attach("v1")); err != nil { // it holds stdout, in a group of its own
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(s.trace("away")))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
		t.Errorf("what took a session of its own is not there any more: %v", err)
	}
}

// gone is true of a process that has ended, whether or not its parent has noticed.
func gone(pid string) bool {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X")
}

func TestFlood(t *testing.T) {
	for name, body := range map[string]string{"stdout": "exec yes", "stderr": "exec yes >&2", "a child's": "yes & wait"} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, deadline)
			s.plugin("a", body)
			var veto *VetoError
			if err := s.runner.Ask(t.Context(), attach("v1")); !errors.As(err, &veto) || veto.Reason != errFlood.Error() {
				t.Fatalf("got %v", err)
			}
			if n := strings.Count(s.log.String(), "\n"); n > maxLines+10 {
				t.Errorf("%d lines logged", n)
			}
			s.wantLog("plugin wrote more than is logged")
		})
	}
	// Much, but no flood.
	s := newSite(t, deadline)
	s.plugin("a", "seq 100000")
	if err := s.runner.Ask(t.Context(), attach("v1")); err != nil {
		t.Fatal(err)
	}
	s.wantLog(`"lines":` + strconv.Itoa(100000-maxLines))
}

func TestAskCancelled(t *testing.T) {
	s := newSite(t, 10*time.Minute)
	s.plugin("a", "echo $$ >$S/pid; exec sleep 600")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		s.await("plugin runs", func() bool { return s.trace("pid") != "" })
		cancel()
	}()
	err := s.runner.Ask(ctx, attach("v1"))
	var veto *VetoError
	if !errors.Is(err, context.Canceled) || errors.As(err, &veto) {
		t.Fatalf("got %v", err)
	}
	s.await("plugin gone", func() bool { return gone(strings.TrimSpace(s.trace("pid"))) })
	if s.runner.Vetoes() != 0 {
		t.Error("counted as a veto")
	}
}

// Two at once run at the same time: each waits for the other.
func TestAskTwoAtOnce(t *testing.T) {
	s := newSite(t, deadline)
	s.plugin("a", `v=$(sed 's/.*"volume":{"name":"\([a-z0-9]*\)".*/\1/'); : >$S/in.$v
while [ "$(ls $S | grep -c '^in\.')" -lt 2 ]; do sleep 0.05; done`)
	var wg sync.WaitGroup
	for _, v := range []string{"v1", "v2"} {
		wg.Go(func() {
			if err := s.runner.Ask(t.Context(), attach(v)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// A plugin replaced or removed while it runs ends as what it was; the next event finds what is there.
func TestReplacedWhileRunning(t *testing.T) {
	s := newSite(t, deadline)
	s.plugin("a", ": >$S/runs; while ! [ -e $S/go ]; do sleep 0.05; done; echo old >&2; exit 1")
	done := make(chan error, 1)
	go func() { done <- s.runner.Ask(t.Context(), attach("v1")) }()
	s.await("plugin runs", func() bool { _, err := os.Stat(filepath.Join(s.state, "runs")); return err == nil })
	s.plugin("a", "echo new >&2; exit 1")
	if err := os.WriteFile(filepath.Join(s.state, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	var veto *VetoError
	if err := <-done; !errors.As(err, &veto) || veto.Reason != "old" {
		t.Errorf("got %v", err)
	}
	if err := s.runner.Ask(t.Context(), attach("v1")); !errors.As(err, &veto) || veto.Reason != "new" {
		t.Errorf("got %v", err)
	}
	s.plugin("a", "rm $0; exit 0")
	s.plugin("b", "exit 0")
	for range 2 {
		if err := s.runner.Ask(t.Context(), attach("v1")); err != nil {
			t.Error(err)
		}
	}
}

// One that is removed after the folder was read, before its turn, was not there; one that can't start was.
func TestRemovedInBetween(t *testing.T) {
	s := newSite(t, deadline)
	s.plugin("a", "rm "+filepath.Join(s.dir, "b"))
	s.plugin("b", "exit 1")
	if err := s.runner.Ask(t.Context(), attach("v1")); err != nil {
		t.Error(err)
	}
	path := s.plugin("b", "")
	if err := os.WriteFile(path, []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.plugin("a", "exit 0")
	var veto *VetoError
	if err := s.runner.Ask(t.Context(), attach("v1")); !errors.As(err, &veto) || !strings.Contains(veto.Reason, "can't be run") {
		t.Errorf("got %v", err)
	}
}

// A plugin is killed before guests when memory runs out.
func TestOutOfMemory(t *testing.T) {
	s := newSite(t, deadline)
	s.plugin("a", `while [ "$(cat /proc/$$/oom_score_adj)" -lt 500 ]; do sleep 0.05; done`)
	if err := s.runner.Ask(t.Context(), attach("v1")); err != nil {
		t.Error(err)
	}
}

// A plugin does not outlive a daemon that was killed.
func TestDaemonKilled(t *testing.T) {
	s := newSite(t, deadline)
	s.plugin("a", "echo $$ >$S/pid; exec sleep 600")
	daemon := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDaemonProcess$")
	daemon.Env = append(os.Environ(), daemonEnv+"="+s.dir)
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	s.await("plugin runs", func() bool { return s.trace("pid") != "" })
	daemon.Process.Kill()
	daemon.Wait() // killed
	s.await("plugin gone", func() bool { return gone(strings.TrimSpace(s.trace("pid"))) })
}

const daemonEnv = "VIRT_COW_TEST_PLUGINS"

// TestDaemonProcess is the process that TestDaemonKilled kills.
func TestDaemonProcess(t *testing.T) {
	if dir := os.Getenv(daemonEnv); dir != "" {
		New(Config{Dir: dir, Timeout: deadline}).Ask(t.Context(), attach("v1"))
	}
}
