package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// program is the real binary, built once for all tests.
var program string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp(memoryDir(), "vcbin")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "virt-cow")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// memoryDir is a tmpfs where there is one: quick, and with paths short enough for sockets.
func memoryDir() string {
	if st, err := os.Stat("/dev/shm"); err == nil && st.IsDir() {
		return "/dev/shm"
	}
	return ""
}

// patience is how long a test polls for what should be there at once.
const patience = 60 * time.Second

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// need skips a test that misses a program, or root.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if p == "root" {
			if os.Geteuid() != 0 {
				t.Skip("SKIPPED: needs root (loop devices, mounts)")
			}
		} else if _, err := exec.LookPath(p); err != nil {
			t.Skipf("SKIPPED: %s is not installed", p)
		}
	}
}

// bench is a test's folder with a run folder of its own.
type bench struct {
	t   *testing.T
	dir string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir, err := os.MkdirTemp(memoryDir(), "vc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &bench{t, dir}
}

func (b *bench) path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(b.dir, name)
}

// outcome is what a command left.
type outcome struct {
	t      *testing.T
	args   []string
	code   int
	stdout string
	stderr string
}

func (b *bench) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = b.dir
	cmd.Env = append(os.Environ(), "VIRT_COW_RUN_DIR="+b.path("run"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

func (b *bench) exec(name string, args ...string) outcome {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := b.command(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		b.t.Fatalf("%s %q: still running\n%s", name, args, &stderr)
	}
	if err != nil && cmd.ProcessState == nil {
		b.t.Fatalf("%s: %v", name, err)
	}
	return outcome{b.t, append([]string{name}, args...), cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// run runs virt-cow.
func (b *bench) run(args ...string) outcome {
	b.t.Helper()
	return b.exec(program, args...)
}

// must runs another program, which must succeed.
func (b *bench) must(name string, args ...string) string {
	b.t.Helper()
	return b.exec(name, args...).exits(0).stdout
}

func (o outcome) exits(code int) outcome {
	o.t.Helper()
	if o.code != code {
		o.t.Fatalf("%q: exit code %d, want %d\n%s%s", o.args, o.code, code, o.stdout, o.stderr)
	}
	return o
}

// says checks that all of the texts are in the output.
func (o outcome) says(texts ...string) outcome {
	o.t.Helper()
	for _, text := range texts {
		if !strings.Contains(o.stdout+o.stderr, text) {
			o.t.Errorf("%q: does not say %q:\n%s%s", o.args, text, o.stdout, o.stderr)
		}
	}
	return o
}

func (o outcome) json(into any) {
	o.t.Helper()
	d := json.NewDecoder(strings.NewReader(o.stdout))
	if err := d.Decode(into); err != nil || d.More() {
		o.t.Fatalf("%q: not one JSON value (%v):\n%s", o.args, err, o.stdout)
	}
}
