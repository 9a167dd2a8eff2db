package main

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func (b *hookBed) ours(d *daemonState, volumes ...string) string {
	var sockets []string
	for _, v := range volumes {
		sockets = append(sockets, filepath.Join(d.dir, v+".sock"))
	}
	return hookDomain("g1", sockets...)
}

// TestHookTakesAnyDomain: names are the operator's, and later versions of libvirt may say more.
func TestHookTakesAnyDomain(t *testing.T) {
	b := newHookBed(t)
	up, down := b.daemon(t, "up", "", false), b.daemon(t, "down", "no socket", false)
	for _, name := range []string{"--help", "-", "--", "-v", "a b'\"$(exit 7);*", "ü\n\x01", ""} {
		for _, argv := range [][]string{{b.script}, {program, "hook"}} {
			argv = append(argv, name)
			if code := b.hook(t.Context(), down.dir, "60s", hookDomain("x"), append(argv, "prepare", "begin", "-", "--json", "x")...).outcome(t); code != 0 {
				t.Errorf("%q, foreign: exit code %d", name, code)
			}
			before := len(up.called())
			code := b.hook(t.Context(), up.dir, "60s", b.ours(up, "web1"), append(argv, "prepare", "begin", "-")...).outcome(t)
			if code != 0 || len(up.called()) != before+1 {
				t.Errorf("%q, ours: exit code %d, calls %q", name, code, up.called())
			}
			if code := b.hook(t.Context(), down.dir, "1s", b.ours(down, "web1"), append(argv, "prepare", "begin", "-")...).outcome(t); code != 1 {
				t.Errorf("%q, ours, daemon down: exit code %d", name, code)
			}
		}
	}
}

// TestHookOfRemovedProgram: what is left behind by a package stops no guest but ours, and a program that can't run kills none.
func TestHookOfRemovedProgram(t *testing.T) {
	b := newHookBed(t)
	d := b.daemon(t, "down", "no socket", false)
	bin := b.path("bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	b.envPath = bin + ":/usr/bin:/bin"
	ours := hookDomain("g1", "/run/virt-cow/web1.sock")
	check := func(xml, operation string, want int, says string) {
		t.Helper()
		r := b.hook(t.Context(), d.dir, "60s", xml, b.script, "g1", operation, "begin", "-")
		if code := r.outcome(t); code != want || !strings.Contains(r.stderr.String(), says) {
			t.Errorf("%s: exit code %d, want %d; %s", operation, code, want, &r.stderr)
		}
	}
	for _, operation := range []string{"prepare", "restore", "migrate", "start", "started", "stopped", "release", "reconnect", "attach", "x"} {
		check(hookDomain("g1", "/run/other.sock"), operation, 0, "")
	}
	for _, operation := range []string{"prepare", "migrate"} {
		check(ours, operation, 1, "not installed")
		check(strings.ReplaceAll(ours, "'", `"`), operation, 1, "not installed")
	}
	for _, broken := range []string{"", "\x7fELF", "#!/none\n", "#!/bin/sh\nkill -SEGV $$\n", "#!/bin/sh\necho noise; exit 9\n"} {
		if err := os.WriteFile(filepath.Join(bin, "virt-cow"), []byte(broken), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, operation := range []string{"restore", "started", "stopped", "release", "reconnect"} {
			check(ours, operation, 0, "")
		}
	}
}

// TestHookWithBrokenConfiguration: a mistake in the file is no reason to stop a foreign guest.
func TestHookWithBrokenConfiguration(t *testing.T) {
	b := newHookBed(t)
	d := b.daemon(t, "up", "", false)
	file := b.path("config.toml")
	if err := os.WriteFile(file, []byte("run_dir = [\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, xml := range []string{hookDomain("x", "/run/other.sock"), b.ours(d, "web1")} {
		r := b.hook(t.Context(), d.dir, "60s", xml, program, "hook", "g1", "prepare", "begin", "-")
		r.Env = append(r.Env, "VIRT_COW_CONFIG="+file)
		if code := r.outcome(t); code != 0 || !strings.Contains(r.stderr.String(), file) {
			t.Errorf("exit code %d: %s", code, &r.stderr)
		}
	}
}

// TestHookComesUp: a daemon that is being restarted is waited for.
func TestHookComesUp(t *testing.T) {
	b := newHookBed(t)
	down, up := b.daemon(t, "down", "no socket", false), b.daemon(t, "up", "", false)
	socket := filepath.Join(down.dir, "daemon.sock")
	for end := time.Now().Add(patience); ; {
		begun := time.Now()
		r := b.hook(t.Context(), down.dir, "120s", b.ours(down, "web1"), b.script, "g1", "prepare", "begin", "-")
		if err := r.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond) // it has found nobody
		if err := os.Symlink(filepath.Join(up.dir, "daemon.sock"), socket); err != nil {
			t.Fatal(err)
		}
		err := r.Wait()
		if err == nil && r.stderr.Len() == 0 && len(up.called()) == 1 {
			return
		}
		// It waits for five seconds, which may be over before the daemon has come.
		if len(up.called()) > 0 || time.Since(begun) < 5*time.Second || time.Now().After(end) {
			t.Fatalf("%v, calls %q\n%s", err, up.called(), &r.stderr)
		}
		if err := os.Remove(socket); err != nil {
			t.Fatal(err)
		}
	}
}

// TestHookInterrupted: SIGTERM while it waits for a daemon that hangs.
func TestHookInterrupted(t *testing.T) {
	b := newHookBed(t)
	d := b.daemon(t, "hung", "silent", false)
	for operation, want := range map[string]int{"prepare": 1, "reconnect": 0} {
		before := len(d.called())
		r := b.hook(t.Context(), d.dir, "10m", b.ours(d, "web1"), program, "hook", "g1", operation, "begin", "-")
		if err := r.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the daemon is asked", func() bool { return len(d.called()) > before })
		if err := r.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		r.Wait()
		if code := r.ProcessState.ExitCode(); code != want || want == 1 && !strings.Contains(r.stderr.String(), "interrupted") {
			t.Errorf("%s: exit code %d, %q", operation, code, &r.stderr)
		}
	}
}

// TestHookDoesNotNeedItsInput: libvirt may close the pipe late, or the script may not read it at all.
func TestHookDoesNotNeedItsInput(t *testing.T) {
	b := newHookBed(t)
	d := b.daemon(t, "down", "no socket", false)
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer out.Close()
	for _, operation := range []string{"start", "attach", "x"} {
		r := b.hook(t.Context(), d.dir, "60s", "", b.script, "g1", operation, "begin", "-")
		r.Stdin = in
		if code := r.outcome(t); code != 0 {
			t.Errorf("%s: exit code %d", operation, code)
		}
	}
	r := b.hook(t.Context(), d.dir, "60s", "", program, "hook", "g1", "prepare", "begin", "-")
	r.Stdin = nil
	pipe, err := r.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	for part := range strings.SplitSeq(hookDomain("g1", "/run/other.sock"), "<disk") { // in pieces
		io.WriteString(pipe, part)
		time.Sleep(10 * time.Millisecond)
	}
	pipe.Close()
	if err := r.Wait(); err != nil {
		t.Errorf("%v %s", err, &r.stderr)
	}
}

// TestHooksAtOnce: a host that boots starts all its guests.
func TestHooksAtOnce(t *testing.T) {
	b := newHookBed(t)
	states := []*daemonState{
		b.daemon(t, "up", "", false), b.daemon(t, "slow", "slow", false), b.daemon(t, "refuses", "error", false),
		b.daemon(t, "down", "no socket", false), b.daemon(t, "down", "stale socket", false),
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var all sync.WaitGroup
	for i := range 50 {
		d := states[i%len(states)]
		want := map[string]int{"up": 0, "slow": 0, "refuses": 1, "down": 1}[d.name]
		xml := b.ours(d, "web1", "web2")
		if i%2 == 0 {
			xml, want = hookDomain("g1", "/run/other.sock"), 0
		}
		all.Go(func() {
			if code := b.hook(ctx, d.dir, "60s", xml, b.script, "g1", "prepare", "begin", "-").outcome(t); code != want {
				t.Errorf("hook %d, daemon %s: exit code %d, want %d", i, d.name, code, want)
			}
		})
	}
	all.Wait()
	for _, d := range states[:3] {
		if n := len(d.called()); n != 5 {
			t.Errorf("daemon %s was asked %d times by 5 domains of ours and 5 foreign ones", d.name, n)
		}
	}
}

// TestHookByHand: too few arguments are an error of whoever types them.
func TestHookByHand(t *testing.T) {
	b := newHookBed(t)
	b.run("hook").exits(exitUsage)
	b.run("hook", "g1", "prepare").exits(exitUsage)
	b.run("hook", "--help").exits(0).says("<operation>")
	out := b.exec(program, "--run-dir", b.path("run"), "hook", "g1", "prepare", "begin", "-")
	out.exits(0)
	if _, err := exec.LookPath("shellcheck"); err == nil {
		b.must("shellcheck", b.script)
	}
}
