package daemon

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// process is an engine process, a child of ours or one an earlier daemon started.
type process struct {
	pid  int
	done chan struct{} // closed at its end
	why  func() string // how it ended, once done is closed
}

// spawn starts an engine process in a session of its own, so that nothing that ends the daemon ends it.
func (d *Daemon) spawn(w libvirtx.Want) (*process, error) {
	args := []string{
		"--run-dir", d.config.RunDir, "--json", "serve", "--socket", d.socketPath(w.Volume), "--control", d.controlPath(w.Volume),
		"--name", w.Volume,
	}
	if w.Hydrate != "no" {
		args = append(args, "--hydrate")
	}
	if w.Rate > 0 {
		args = append(args, "--rate", strconv.FormatInt(w.Rate, 10))
	}
	logPath := filepath.Join(d.config.LogDir, w.Volume+".log")
	log, err := os.OpenFile(logPath, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return nil, err
	}
	from, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		log.Close()
		return nil, err
	}
	cmd := exec.Command(d.config.Program, append(args, w.Store)...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		log.Close()
		return nil, err
	}
	p := &process{pid: cmd.Process.Pid, done: make(chan struct{})}
	var end error
	p.why = func() string { return fmt.Sprintf("%s (%s)", lastLine(logPath, from, end), logPath) }
	go func() { // not one of Daemon.tasks: it may outlive the daemon's work
		end = cmd.Wait()
		log.Close()
		close(p.done)
	}()
	return p, nil
}

// lastLine is how an engine ended and, if it ended with an error of its own, which: its last line since offset
// from.
func lastLine(path string, from int64, end error) string {
	said := "exit status 0"
	if end != nil {
		said = end.Error()
	}
	f, err := os.Open(path)
	if err != nil {
		return said
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return said
	}
	b := make([]byte, min(size-from, 4096))
	if _, err := f.ReadAt(b, size-int64(len(b))); err != nil {
		return said
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if last, ok := strings.CutPrefix(lines[len(lines)-1], "virt-cow: "); ok {
		return said + ": " + last
	}
	return said
}

// adoptProcess finds the process behind a control socket. It is nil, without an error, if nobody answers.
func adoptProcess(control string) (*process, error) {
	c, err := net.Dial("unix", control)
	if err != nil {
		if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
			return nil, nil
		}
		return nil, err
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(cerr, err); err != nil {
		return nil, fmt.Errorf("%s: who answers: %w", control, err)
	}
	pid := int(cred.Pid)
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil // gone meanwhile
	} else if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	p := &process{pid: pid, done: make(chan struct{}), why: func() string { return "not our child, so how is not known" }}
	f := os.NewFile(uintptr(fd), "pidfd")
	conn, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	go func() { // a pidfd is readable once its process has ended
		defer f.Close()
		conn.Read(func(fd uintptr) bool {
			n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return n > 0
		})
		close(p.done)
	}()
	return p, nil
}

// terminate asks the process to end cleanly.
func (p *process) terminate() {
	select {
	case <-p.done: // the number may belong to another by now
	default:
		syscall.Kill(p.pid, syscall.SIGTERM)
	}
}
