package launch

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/local"
)

// Process is an engine process, whoever started it.
type Process struct {
	PID int

	done   chan struct{}
	why    func() string
	signal func(syscall.Signal) error
}

// Done is closed once the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Why says how the process ended, as far as that can be known. Call it once Done is closed.
func (p *Process) Why() string { return p.why() }

// Terminate asks the process to flush, close its store and end. It is harmless once the process has ended.
func (p *Process) Terminate() { _ = p.signal(syscall.SIGTERM) }

// answerWait bounds how long an engine may take to accept a connection to its control socket.
const answerWait = 5 * time.Second

// Adopt finds the process that listens on an engine's control socket. It is nil, without an error, if none does. An
// error says that it can't be known whether there is one.
func Adopt(controlSocket string) (*Process, error) {
	c, err := net.DialTimeout("unix", controlSocket, answerWait)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("is there an engine: %w", err)
	}
	defer c.Close()
	cred, err := local.Peer(c.(*net.UnixConn))
	if err != nil {
		return nil, fmt.Errorf("%s: who answers: %w", controlSocket, err)
	}
	if cred.Pid == 0 {
		return nil, fmt.Errorf("%s: who answers is in another PID namespace", controlSocket)
	}
	pid := int(cred.Pid)
	why := func() string { return "not started by this daemon, so how is not known" }
	if name := unitOf(pid); name != "" {
		why = func() string { return whyEnded(name, pid) }
	}
	p, err := follow(pid, why)
	if errors.Is(err, errGone) {
		return nil, nil
	}
	return p, err
}

// errGone says that there is no such process any more.
var errGone = errors.New("process is gone")

// follow makes a Process of one that is not our child. The caller makes sure that pid was not another's by the time it
// was opened here.
func follow(pid int, why func() string) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("%w: %d", errGone, pid)
	} else if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	conn, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	p := &Process{PID: pid, done: make(chan struct{}), why: why}
	p.signal = func(s syscall.Signal) error {
		var err error
		cerr := conn.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), s, nil, 0) })
		return errors.Join(cerr, err)
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
