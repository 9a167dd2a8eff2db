package lab

import (
	"bufio"
	"encoding/json"
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

// supervisorEnv carries an order to the supervisor.
const supervisorEnv = "VIRT_COW_LAB_SUPERVISOR"

// order says what host the supervisor is to set up.
type order struct {
	Dir, Name string
	Site      bool // has a /dev, an /etc and a boot of its own

	Root      string   // its root file system, "" for this machine's; with it:
	Outside   []string // folders that it has from this machine
	MachineID string   // of /etc/machine-id
}

// Main must be called first thing by a program that makes hosts. In the supervisor it does not return.
func Main() {
	v := os.Getenv(supervisorEnv)
	if v == "" {
		return
	}
	os.Unsetenv(supervisorEnv)
	var o order
	err := json.Unmarshal([]byte(v), &o)
	if err == nil {
		err = supervise(o)
	}
	if err != nil {
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
	what := order{Dir: h.Dir, Name: h.Name, Site: h.site != nil, Root: h.root}
	if h.root != "" {
		what.MachineID = strings.ReplaceAll(h.uuid.String(), "-", "")
		if what.Outside, err = outsideFolders(); err != nil {
			return err
		}
	}
	o, err := json.Marshal(what)
	if err != nil {
		return err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), supervisorEnv+"="+string(o))
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
	h.mu.Lock()
	h.supervisor, h.stdin = cmd, stdin
	h.mu.Unlock()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if line = strings.TrimSpace(line); line != "ready" {
		return fmt.Errorf("set up the host's namespaces: %s %w", line, errors.Join(err))
	}
	return nil
}

// supervise sets the host up and sits until standard input ends. As first process of its PID namespace it
// reaps what its descendants leave; at the end it kills them all and removes the host's folder, as its maker
// may be gone.
func supervise(o order) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	if err := setUp(o); err != nil {
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
	// Others of the site may still be ending, and write below this folder.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if err := os.RemoveAll(o.Dir); err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

func setUp(o order) error {
	// Nothing mounted from here on is seen outside.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Sethostname([]byte(o.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if o.Root != "" {
		if err := enterRoot(o); err != nil {
			return err
		}
	}
	if o.Site {
		if err := ownFolders(); err != nil {
			return err
		}
	}
	binds := []bind{
		{"etc", "/etc/libvirt"}, {"lib", "/var/lib"}, {"log", "/var/log"}, {"cache", "/var/cache"},
		{"passwd", "/etc/passwd"}, {"group", "/etc/group"},
	}
	if o.Site {
		binds = append(binds, bind{"hosts", "/etc/hosts"}, bind{"pki", "/etc/pki"})
	} else if err := mountRun(); err != nil {
		return err
	}
	for _, b := range binds {
		if err := b.mount(o.Dir); err != nil {
			return err
		}
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if o.Site {
		if err := (bind{"boot_id", "/proc/sys/kernel/random/boot_id"}).mount(o.Dir); err != nil {
			return err
		}
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link set lo up: %w: %s", err, out)
	}
	return nil
}

// bind puts a file or folder of the host's folder over one that is everywhere.
type bind struct{ what, where string }

func (b bind) mount(dir string) error {
	if err := unix.Mount(filepath.Join(dir, b.what), b.where, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", b.where, err)
	}
	return nil
}

// mountRun gives the host a /run of its own.
func mountRun() error {
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	for _, d := range []string{"/run/libvirt", "/run/lock", "/run/lab", "/run/virt-cow"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	return nil
}
