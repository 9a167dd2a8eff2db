package hooks

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// guest is a guest's /etc/qemu with the freeze hook as it is shipped, and programs that write down how they were called.
type guest struct {
	t   *testing.T
	dir string
}

func newGuest(t *testing.T) guest {
	g := guest{t, t.TempDir()}
	hook, err := os.ReadFile("fsfreeze/fsfreeze-hook")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(g.dir, "fsfreeze-hook"), hook, 0o755), os.Mkdir(filepath.Join(g.dir, "fsfreeze-hook.d"), 0o755)); err != nil {
		t.Fatal(err)
	}
	return g
}

// program adds one that fails if it is called with the word fails.
func (g guest) program(name, fails string, mode os.FileMode) {
	g.t.Helper()
	script := fmt.Sprintf("#!/bin/sh\necho \"${0##*/} $*\" >>'%s'\n[ \"$1\" != '%s' ]\n", filepath.Join(g.dir, "calls"), fails)
	if err := os.WriteFile(filepath.Join(g.dir, "fsfreeze-hook.d", name), []byte(script), mode); err != nil {
		g.t.Fatal(err)
	}
}

// hook calls it as the agent does, and says whether it ended well and what it called.
func (g guest) hook(args ...string) (bool, string) {
	g.t.Helper()
	calls := filepath.Join(g.dir, "calls")
	os.Remove(calls)
	cmd := exec.Command(filepath.Join(g.dir, "fsfreeze-hook"), args...)
	cmd.Env = append(os.Environ(), "FSFREEZE_LOG="+filepath.Join(g.dir, "log"))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		g.t.Fatal(err)
	}
	if len(out) > 0 {
		g.t.Errorf("it says to the agent: %s", out)
	}
	b, _ := os.ReadFile(calls)
	return err == nil, strings.Join(strings.Split(strings.TrimSpace(string(b)), "\n"), ", ")
}

func (g guest) expect(arg string, ok bool, calls string) {
	g.t.Helper()
	if gotOK, got := g.hook(arg); gotOK != ok || got != calls {
		g.t.Errorf("%s: ended well %v, called %q: want %v, %q", arg, gotOK, got, ok, calls)
	}
}

func TestFreezeHook(t *testing.T) {
	g := newGuest(t)
	g.expect("freeze", true, "")
	g.expect("thaw", true, "")
	g.program("10-a b", "", 0o755)
	g.program("20-b", "", 0o755)
	g.program("30-c", "", 0o755)
	for _, ignored := range []string{"10-x~", "20-x.bak", "30-x.dpkg-old", "40-x.rpmsave"} {
		g.program(ignored, "", 0o755)
	}
	g.program("50-not-executable", "", 0o644)
	g.expect("freeze", true, "10-a b freeze, 20-b freeze, 30-c freeze")
	g.expect("thaw", true, "30-c thaw, 20-b thaw, 10-a b thaw")
	if ok, calls := g.hook(); ok || calls != "" {
		t.Error("without an argument:", calls)
	}

	g.program("20-b", "freeze", 0o755) // what was prepared is undone, and no more is
	g.expect("freeze", false, "10-a b freeze, 20-b freeze, 20-b thaw, 10-a b thaw")
	if log, err := os.ReadFile(filepath.Join(g.dir, "log")); err != nil || !strings.Contains(string(log), "20-b freeze: FAILED, status 1") {
		t.Errorf("%s %v", log, err)
	}
	g.program("20-b", "thaw", 0o755) // the others are thawed all the same
	g.expect("freeze", true, "10-a b freeze, 20-b freeze, 30-c freeze")
	g.expect("thaw", false, "30-c thaw, 20-b thaw, 10-a b thaw")
}

// TestDatabaseHooksWithoutDatabase: in a guest without one they are no hindrance.
func TestDatabaseHooksWithoutDatabase(t *testing.T) {
	path := t.TempDir() // a pidof that finds nothing, for here something may run
	if err := os.WriteFile(filepath.Join(path, "pidof"), []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"mysql", "postgresql"} {
		for _, arg := range []string{"freeze", "thaw", "other"} {
			cmd := exec.Command(filepath.Join("fsfreeze", "fsfreeze-hook.d", name), arg)
			cmd.Env = append(os.Environ(), "PATH="+path+":"+os.Getenv("PATH"), "FSFREEZE_STATE="+filepath.Join(path, "state"))
			if out, err := cmd.CombinedOutput(); (err != nil) != (arg == "other") {
				t.Errorf("%s %s: %v: %s", name, arg, err, out)
			}
		}
	}
}
