// Package machine boots a whole Debian with systemd for tests of what is installed: package, units, shutdown. It is a
// container without a container engine: namespaces, a control group of its own, and an overlay over the Debian that
// scripts/deps.sh made; a boot takes a second or two.
//
// As in package lab a supervisor, this program started again, ends all of it and removes it once its standard input ends,
// that is when Close is called or the program that made the machine is gone. Call Main first thing in TestMain.
package machine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/test/lab"
)

// Config says what a machine is to be.
type Config struct {
	Plain bool // no systemd: a chroot with namespaces, as a package's installation may meet it
}

// Machine is one that runs, or ran.
type Machine struct {
	PID   int    // of its first process, outside
	Share string // folder outside, /share inside; there until Close

	dir        string
	supervisor *exec.Cmd
	stdin      io.Closer
	done       chan struct{}
}

// up bounds a boot, on a busy host.
const up = 3 * time.Minute

// For boots a machine for a test and ends it with the test. The test is skipped, saying why, where that can't be, or
// fails if lab.RequireEnv is set.
func For(t testing.TB, c Config) *Machine {
	t.Helper()
	tree, err := Tree()
	if err != nil {
		lab.SkipOrFail(t, err)
	}
	m, err := boot(c, tree)
	if m != nil {
		t.Cleanup(func() {
			if t.Failed() && !c.Plain {
				out, _ := m.Run(context.Background(), "journalctl", "--no-pager", "-n", "300")
				t.Log("journal:\n" + out)
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	m.await(t, "its files", func() bool { return m.Command(t.Context(), "test", "-e", "/share/"+marker).Run() == nil })
	if !c.Plain {
		m.await(t, "systemd", func() bool { return m.booted(t) })
	}
	return m
}

// marker is a file in the shared folder: inside /share has it once the machine's files are in place.
const marker = ".machine"

// Tree is the Debian's root folder. It must not be changed.
func Tree() (string, error) {
	if os.Geteuid() != 0 {
		return "", fmt.Errorf("%w: namespaces and mounts need root", lab.ErrMissing)
	}
	cache, err := lab.CacheDir()
	if err != nil {
		return "", err
	}
	trees, err := filepath.Glob(filepath.Join(cache, "debian-*-*"))
	if err != nil || len(trees) == 0 {
		return "", fmt.Errorf("%w: no Debian under %s: run scripts/deps.sh", lab.ErrMissing, cache)
	}
	return trees[len(trees)-1], nil
}

func boot(c Config, tree string) (*Machine, error) {
	dir, err := os.MkdirTemp("", "virt-cow-machine-")
	if err != nil {
		return nil, err
	}
	m := &Machine{dir: dir, Share: filepath.Join(dir, "share"), done: make(chan struct{})}
	for _, d := range []string{"upper", "work", "root", "share"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return m, err
		}
	}
	if err := os.WriteFile(filepath.Join(m.Share, marker), nil, 0o644); err != nil {
		return m, err
	}
	self, err := os.Executable()
	if err != nil {
		return m, err
	}
	init := "systemd"
	if c.Plain {
		init = "plain"
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), stageEnv+"="+strings.Join([]string{stageSupervise, dir, tree, init}, "\n"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stderr = os.Stderr
	if m.stdin, err = cmd.StdinPipe(); err != nil {
		return m, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return m, err
	}
	if err := cmd.Start(); err != nil {
		return m, err
	}
	m.supervisor = cmd
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	if word != wordReady {
		return m, fmt.Errorf("boot: %s %w", line, errors.Join(err))
	}
	m.PID, err = strconv.Atoi(rest)
	go func() {
		io.Copy(io.Discard, lines) // it closes its output once the first process has ended
		close(m.done)
	}()
	return m, err
}

func (m *Machine) await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(up); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("the machine does not come up: %s: not after %s", what, up)
		}
		select {
		case <-m.done:
			t.Fatal("the machine ended while it booted")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (m *Machine) booted(t testing.TB) bool {
	t.Helper()
	out, _ := m.Run(t.Context(), "systemctl", "is-system-running")
	if state := strings.TrimSpace(out); state == "degraded" || state == "maintenance" {
		units, _ := m.Run(t.Context(), "systemctl", "--no-pager", "--failed")
		t.Fatalf("the machine comes up %s:\n%s", state, units)
	}
	return strings.TrimSpace(out) == "running"
}

// Command is exec.CommandContext in the machine, as root.
func (m *Machine) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	full := append([]string{"-t", strconv.Itoa(m.PID), "-m", "-u", "-i", "-n", "-p", "-C", "--", name}, args...)
	cmd := exec.CommandContext(ctx, "nsenter", full...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}
	return cmd
}

// Run runs a command and returns both its outputs; an error names it and quotes them.
func (m *Machine) Run(ctx context.Context, name string, args ...string) (string, error) {
	out, err := m.Command(ctx, name, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), err
}

// Path is where a path inside is reached from outside, sockets included, while the machine runs. Absolute symlinks in it
// lead elsewhere.
func (m *Machine) Path(inside string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", m.PID), inside)
}

// Written is a file that was written inside, readable after the machine has ended. It must not be below /run, /dev or
// /tmp.
func (m *Machine) Written(inside string) string { return filepath.Join(m.dir, "upper", inside) }

// Loop makes a block device of a sparse file, there inside too under the name it returns, and detaches it with the test.
func (m *Machine) Loop(t testing.TB, size int64) string {
	t.Helper()
	f, err := os.CreateTemp(m.dir, "loop-")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "-f", "--show", f.Name()).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v: %s", dev, err, out)
		}
	})
	var st unix.Stat_t
	if err := unix.Stat(dev, &st); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(m.Path(dev), unix.S_IFBLK|0o660, int(st.Rdev)); err != nil {
		t.Fatal(err)
	}
	return dev
}

// Done is closed once the machine is off.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Close ends the machine and removes it.
func (m *Machine) Close() error {
	if m.supervisor != nil {
		m.stdin.Close()
		if err := m.supervisor.Wait(); err != nil {
			return fmt.Errorf("machine's supervisor: %w", err)
		}
		m.supervisor = nil
	}
	return os.RemoveAll(m.dir)
}
