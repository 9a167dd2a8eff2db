package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// supervisorEnv carries the host's folder and name to the supervisor.
const supervisorEnv = "VIRT_COW_LAB_SUPERVISOR"

// Main must be called first thing by a program that makes hosts. In the supervisor it does not return.
func Main() {
	v := os.Getenv(supervisorEnv)
	if v == "" {
		return
	}
	dir, name, _ := strings.Cut(v, "\n")
	os.Unsetenv(supervisorEnv)
	if err := supervise(dir, name); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// startSupervisor starts this program again as the first process of new namespaces and waits for its word.
func (h *Host) startSupervisor() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), supervisorEnv+"="+h.Dir+"\n"+h.Name)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC,
		Setsid:     true, // a Ctrl-C at the terminal is for the one who made the host
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = h.log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w: new namespaces: %w", ErrMissing, err)
	}
	h.supervisor, h.stdin = cmd, stdin
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if line = strings.TrimSpace(line); line != "ready" {
		return fmt.Errorf("set up the host's namespaces: %s %w", line, errors.Join(err))
	}
	return nil
}

// supervise sets the host up and sits until standard input ends. As first process of its PID namespace it
// reaps what its descendants leave; at the end it kills them all and removes the host's folder, as its maker
// may be gone.
func supervise(dir, name string) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	if err := setUp(dir, name); err != nil {
		return err
	}
	go func() {
		for {
			if _, err := syscall.Wait4(-1, nil, 0, nil); errors.Is(err, syscall.ECHILD) {
				time.Sleep(50 * time.Millisecond) // nothing to reap now
			}
		}
	}()
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	for !errors.Is(syscall.Kill(-1, syscall.SIGKILL), syscall.ESRCH) {
		time.Sleep(10 * time.Millisecond)
	}
	return os.RemoveAll(dir)
}

// runDirs are there from the beginning.
var runDirs = []string{"/run/libvirt", "/run/lock", "/run/lab", "/run/virt-cow"}

func setUp(dir, name string) error {
	// Nothing mounted from here on is seen outside.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	for _, m := range []struct{ what, where string }{
		{"etc", "/etc/libvirt"}, {"lib", "/var/lib"}, {"log", "/var/log"}, {"cache", "/var/cache"},
		{"passwd", "/etc/passwd"}, {"group", "/etc/group"},
	} {
		if err := unix.Mount(filepath.Join(dir, m.what), m.where, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", m.where, err)
		}
	}
	for _, m := range []struct{ fs, where, data string }{
		{"tmpfs", "/run", "mode=755"}, {"proc", "/proc", ""},
	} {
		if err := unix.Mount(m.fs, m.where, m.fs, unix.MS_NOSUID|unix.MS_NODEV, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.where, err)
		}
	}
	for _, d := range runDirs {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link set lo up: %w: %s", err, out)
	}
	return nil
}
