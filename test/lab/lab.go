// Package lab runs real hypervisors for tests and for the demo: a libvirtd with its own network, mount, UTS
// and PID namespaces, its own /etc/libvirt, /run, /var/lib, /var/log and /var/cache, and tiny guests (a Debian
// kernel and an initramfs made here, under TCG) driven over a serial port.
//
// A Host lives as long as the first process of its PID namespace, the supervisor: this very program, started
// again. The supervisor ends when its standard input does, that is when Close is called or the program that
// made the host is gone for whatever reason; the kernel then kills all that ran in the namespace and drops its
// mounts and interfaces. So nothing stays behind.
//
// A program that uses this package calls Main first thing, in main or TestMain.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
)

// Config says what a Host is to be.
type Config struct {
	Name string    // host name, "" for lab
	Log  io.Writer // gets what the processes started by Start say, nil for nothing
	Hook string    // the virt-cow that libvirt's hook is to call, "" for no hook

	Env []string // NAME=VALUE, of all programs run on the host besides this one's own environment

	Root string // folder with the root file system of the host, "" for the one RootEnv names, else this machine's

	QEMUUser string // user and group QEMU runs as, "" for root; libvirt-qemu is there
}

// Host is one hypervisor. Its methods may be called at the same time.
type Host struct {
	Name string
	Dir  string // outside the namespaces: temporary files, removed by Close; the same path is good inside

	site     *Site // nil for a host alone
	index    int   // among the hosts of its site
	uuid     uuid.UUID
	env      []string
	qemuUser string
	root     string // folder of its root file system, "" for this machine's
	log      io.Writer

	mu         sync.Mutex
	supervisor *exec.Cmd // nil while the host is off
	stdin      io.Closer // ends the supervisor
	libvirtd   *Process
	guests     []*Guest
	started    []*Process
}

// pid is the supervisor's, 0 while the host is off.
func (h *Host) pid() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.supervisor == nil {
		return 0
	}
	return h.supervisor.Process.Pid
}

// libvirtUp bounds how long libvirtd may take to answer for the first time.
const libvirtUp = 3 * time.Minute

// New makes a host and starts its libvirtd. Close it. An error that wraps ErrMissing says that this machine
// lacks something.
func New(ctx context.Context, c Config) (h *Host, err error) {
	if err := check(rootOf(c)); err != nil {
		return nil, err
	}
	if c.Name == "" {
		c.Name = "lab"
	}
	if c.Log == nil {
		c.Log = io.Discard
	}
	dir, err := os.MkdirTemp("", "virt-cow-lab-")
	if err != nil {
		return nil, err
	}
	h = &Host{Name: c.Name, Dir: dir, uuid: uuid.New(), qemuUser: c.QEMUUser, root: rootOf(c), log: c.Log, env: c.Env}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
			h = nil
		}
	}()
	if err := h.prepare(c.Hook); err != nil {
		return h, err
	}
	if err := h.startSupervisor(); err != nil {
		return h, err
	}
	if err := h.StartLibvirtd(ctx); err != nil {
		return h, err
	}
	return h, nil
}

// prepare fills the host's folder.
func (h *Host) prepare(hook string) error {
	if err := h.writeConfig(); err != nil {
		return err
	}
	if hook == "" {
		return nil
	}
	return h.InstallHook(hook)
}

// StartLibvirtd starts libvirtd and waits until it answers. New did it once.
func (h *Host) StartLibvirtd(ctx context.Context) error {
	args := []string{"-p", "/run/libvirtd.pid"}
	if h.site != nil {
		args = append(args, "--listen")
	}
	p, err := h.Start("libvirtd", args...)
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.libvirtd = p
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, libvirtUp)
	defer cancel()
	for {
		out, err := h.Command(ctx, "virsh", "-c", "qemu:///system", "version").CombinedOutput()
		if err == nil {
			return nil
		}
		select {
		case <-p.Done():
			return fmt.Errorf("libvirtd ended at once: %w, its log:\n%s", p.Err(), h.libvirtdLog())
		case <-ctx.Done():
			return fmt.Errorf("libvirtd doesn't answer: %s, its log:\n%s", strings.TrimSpace(string(out)), h.libvirtdLog())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Libvirtd is the process running now.
func (h *Host) Libvirtd() *Process {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.libvirtd
}

func (h *Host) libvirtdLog() string {
	b, _ := os.ReadFile(filepath.Join(h.Dir, "log", "libvirt", "libvirtd.log"))
	if len(b) > 4096 {
		b = b[len(b)-4096:]
	}
	return string(b)
}

// Path is where a path inside the host is reached from outside, sockets included.
func (h *Host) Path(inside string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", h.pid()), inside)
}

// LibvirtSocket is libvirtd's socket, reached from outside.
func (h *Host) LibvirtSocket() string { return h.Path("/run/libvirt/libvirt-sock") }

// Close ends everything on the host and removes its files. It may be called more than once.
func (h *Host) Close() error {
	h.end(func(_ *exec.Cmd, stdin io.Closer) { stdin.Close() })
	return os.RemoveAll(h.Dir)
}

// end has the supervisor end, and waits until all on the host is gone.
func (h *Host) end(how func(supervisor *exec.Cmd, stdin io.Closer)) {
	h.mu.Lock()
	guests, started := h.guests, h.started
	supervisor, stdin := h.supervisor, h.stdin
	h.guests, h.started, h.supervisor = nil, nil, nil
	h.mu.Unlock()
	for _, g := range guests {
		if g.Host() == h {
			g.hangUp()
		}
	}
	if supervisor == nil {
		return
	}
	how(supervisor, stdin)
	// The namespace ends once all in it are reaped: by the supervisor, or, as long as it lives, by the
	// nsenter that started them, which may be stopped.
	for _, p := range started {
		p.cmd.Process.Kill()
	}
	done := make(chan struct{})
	go func() {
		supervisor.Wait() // its exit status is of no interest: nothing inside outlives it
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		supervisor.Process.Kill()
		<-done
	}
	for _, p := range started { // what they said last goes to a log that may end with its test
		<-p.done
	}
	stdin.Close()
}
