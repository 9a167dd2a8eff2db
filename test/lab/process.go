package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Command is exec.CommandContext on the host, without a terminal.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	full := append([]string{"-t", strconv.Itoa(h.pid()), "-m", "-u", "-n", "-p", "-i", "--", name}, args...)
	cmd := exec.CommandContext(ctx, "nsenter", full...)
	cmd.Dir = "/"
	cmd.Env = append(append(os.Environ(), h.env...), "PATH="+filepath.Join(h.Dir, "bin")+":"+os.Getenv("PATH"))
	// Who gives up kills nsenter, and what it started on the host may go on and have the pipe.
	cmd.WaitDelay = 10 * time.Second
	// On a terminal virsh would start an agent that asks for passwords, and says so where its answer should be;
	// and a Ctrl-C is for the one who made the host.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

// Run runs a command on the host and returns what it printed on both outputs. An error names the command and
// quotes its output.
func (h *Host) Run(ctx context.Context, name string, args ...string) (string, error) {
	out, err := h.Command(ctx, name, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), err
}

// Process is a long-running program on the host.
type Process struct {
	PID  int // outside the namespaces
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Start starts a program that runs until it is killed or the host is closed.
func (h *Host) Start(name string, args ...string) (*Process, error) {
	cmd := h.Command(context.Background(), name, args...)
	prefix := filepath.Base(name) + ": "
	if h.site != nil {
		prefix = h.Name + " " + prefix
	}
	w := &lineWriter{to: h.log, prefix: prefix}
	cmd.Stdout, cmd.Stderr = w, w
	cmd.WaitDelay = time.Second // a descendant may hold the pipe
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	h.mu.Lock()
	h.started = append(h.started, p)
	h.mu.Unlock()
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	// nsenter forks to enter the PID namespace: the program is its only child.
	children := fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid)
	for {
		b, err := os.ReadFile(children)
		if pid, perr := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && perr == nil {
			p.PID = pid
			return p, nil
		}
		select {
		case <-p.done:
			return nil, fmt.Errorf("%s ended at once: %w", name, p.err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Signal sends a signal to the program itself. After SIGSTOP it returns once all of its threads stand still.
func (p *Process) Signal(s syscall.Signal) error {
	err := syscall.Kill(p.PID, s)
	switch {
	// nsenter stops along with its child, and does not go on with it; when it does it has its child go on, which must not be later
	// than the next signal.
	case s == syscall.SIGCONT && err == nil:
		return p.goOn()
	case s == syscall.SIGSTOP && err == nil:
		return errors.Join(awaitStopped(p.PID), awaitStopped(p.cmd.Process.Pid))
	}
	return err
}

// Done is closed once the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is how the program ended, once Done is closed.
func (p *Process) Err() error { return p.err }

// Stop sends a signal and waits for the end, a minute at most.
func (p *Process) Stop(s syscall.Signal) error {
	if err := p.Signal(s); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(time.Minute):
		return fmt.Errorf("process %d did not end a minute after %s", p.PID, s)
	}
}

// Kill sends a signal to a process by its PID as seen on the host.
func (h *Host) Kill(ctx context.Context, pid int, s syscall.Signal) error {
	_, err := h.Run(ctx, "busybox", "kill", "-"+strconv.Itoa(int(s)), strconv.Itoa(pid))
	return err
}

// lineWriter passes whole lines on, each with a prefix.
type lineWriter struct {
	mu     sync.Mutex
	to     interface{ Write([]byte) (int, error) }
	prefix string
	rest   []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rest = append(w.rest, p...)
	for {
		i := strings.IndexByte(string(w.rest), '\n')
		if i < 0 {
			return len(p), nil
		}
		fmt.Fprintf(w.to, "%s%s\n", w.prefix, w.rest[:i])
		w.rest = w.rest[i+1:]
	}
}
