package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// Freeze stops all that runs on a host, as when a hypervisor hangs: it answers nobody and does nothing, but for what is
// with the kernel. Thaw has it go on where it was, and do late what it was about to do.
func (h *Host) Freeze() error {
	// Until none is found that runs: what was just being stopped may have started others.
	for deadline := time.Now().Add(time.Minute); ; {
		running, err := h.signalAll(syscall.SIGSTOP)
		if err != nil || running == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("host %s does not freeze: %d processes run", h.Name, running)
		}
		time.Sleep(time.Millisecond)
	}
}

// Thaw undoes Freeze.
func (h *Host) Thaw() error {
	_, err := h.signalAll(syscall.SIGCONT)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.started {
		p.cmd.Process.Signal(syscall.SIGCONT) // nsenter stops along with its child; it may have ended
	}
	return err
}

// signalAll sends a signal to all that runs on the host but its supervisor, and counts those that were not stopped.
func (h *Host) signalAll(s syscall.Signal) (running int, err error) {
	supervisor := h.pid()
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", supervisor))
	if err != nil {
		return 0, err
	}
	spaces, err := filepath.Glob("/proc/[0-9]*/ns/pid")
	if err != nil {
		return 0, err
	}
	for _, p := range spaces {
		dir := filepath.Dir(filepath.Dir(p))
		pid, err := strconv.Atoi(filepath.Base(dir))
		if ns, lerr := os.Readlink(p); err != nil || lerr != nil || ns != own || pid == supervisor {
			continue
		}
		if !stands(processState(dir)) {
			running++
		}
		if err := syscall.Kill(pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
			return running, fmt.Errorf("signal process %d of host %s: %w", pid, h.Name, err)
		}
	}
	return running, nil
}

// awaitStopped waits until a process that was stopped is: its threads may go on for a moment.
func awaitStopped(pid int) error {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(threads, func(dir string) bool { return !stands(processState(dir)) }) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d does not stop", pid)
		}
	}
}

// goOn has nsenter go on, and waits until it waits for its child again.
func (p *Process) goOn() error {
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		return nil // it has ended, and with it the child
	}
	nsenter := fmt.Sprintf("/proc/%d", p.cmd.Process.Pid)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if s := processState(nsenter); s == 'S' || s == 'Z' || s == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d does not go on", p.cmd.Process.Pid)
		}
	}
}

// stands says that what is in this state does nothing until it is told to.
func stands(state byte) bool { return state == 'T' || state == 'Z' || state == 0 }

// processState is the letter in /proc/PID/stat, 0 for a process that is gone.
func processState(dir string) byte {
	b, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return 0
	}
	for i := len(b) - 1; i > 0; i-- { // the name may have anything in it
		if b[i] == ')' && i+2 < len(b) {
			return b[i+2]
		}
	}
	return 0
}
