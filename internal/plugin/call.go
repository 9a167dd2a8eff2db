package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// environment is all that plugins get, besides VIRT_COW_PLUGIN: the path of the file in the folder of plugins, which
// may be a link to what is run.
var environment = []string{
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "LANG=C.UTF-8",
}

const (
	// drainTime is how long output is still read once the plugin has ended and its group was killed: a process
	// that left the group may hold the pipes.
	drainTime = time.Second
	// deathTime bounds the wait for a process that was killed: one inside a hung system call stays.
	deathTime = 5 * time.Second
	// busyTime bounds the tries to run a file that someone is still writing.
	busyTime = 2 * time.Second
	// outOfMemory is a plugin's oom_score_adj, of -1000 to 1000.
	outOfMemory = "500"
)

// errFlood and errTimeout say why a plugin was killed.
var (
	errFlood   = errors.New("wrote too much and was killed")
	errTimeout = errors.New("gave no answer in time and was killed")
)

// call is one run of a plugin.
type call struct {
	plugin  Entry
	event   string
	stdin   []byte
	timeout time.Duration
	stdout  output
	stderr  output
}

// output takes what comes out of one pipe, up to limit bytes.
type output struct {
	to    io.Writer
	limit int
}

// run runs a plugin to its end and kills what is left of its process group. It returns nil if it exited with 0, an
// *exec.ExitError if it ended otherwise by itself, else why it could not be run or was killed.
func (c *call) run(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	// The kernel kills the plugin when the thread that started it ends, so that none outlives its time-out because
	// the daemon was killed: that thread must stay until then.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pipes, err := newPipes()
	if err != nil {
		return err
	}
	defer pipes.close()
	p, err := c.start(ctx, pipes)
	if err != nil {
		return err
	}
	pipes.closeTheirs()

	var io sync.WaitGroup
	flood := make(chan struct{}, 2)
	io.Go(func() { c.stdout.read(pipes.stdout[0], flood) })
	io.Go(func() { c.stderr.read(pipes.stderr[0], flood) })
	io.Go(func() {
		pipes.stdin[1].Write(c.stdin) // a plugin need not read it
		pipes.stdin[1].Close()
	})
	timer := time.NewTimer(c.timeout)
	defer timer.Stop()
	select {
	case <-p.ended:
	case <-flood:
		err = errFlood
	case <-timer.C:
		err = errTimeout
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	p.killGroup()
	select {
	case <-p.ended:
	case <-time.After(deathTime):
	}
	pipes.deadline(time.Now().Add(drainTime))
	io.Wait()
	if err != nil {
		return err
	}
	select {
	case <-flood: // just before it ended
		return errFlood
	default:
	}
	return p.reap()
}

func (c *call) start(ctx context.Context, pipes *pipes) (*process, error) {
	for deadline := time.Now().Add(busyTime); ; {
		cmd := &exec.Cmd{
			Path: c.plugin.Path, Args: []string{c.plugin.Path, c.event}, Dir: "/",
			Env:   append([]string{"VIRT_COW_PLUGIN=" + c.plugin.File}, environment...),
			Stdin: pipes.stdin[0], Stdout: pipes.stdout[1], Stderr: pipes.stderr[1],
			SysProcAttr: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
		}
		err := cmd.Start()
		if err == nil {
			return watch(cmd), nil
		}
		if !errors.Is(err, syscall.ETXTBSY) || time.Now().After(deadline) {
			return nil, fmt.Errorf("can't be run: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// read reads to the end, the deadline or the limit.
func (o output) read(f *os.File, flood chan<- struct{}) {
	n, _ := io.Copy(o.to, io.LimitReader(f, int64(o.limit)+1)) // an end by the deadline is an end
	if n > int64(o.limit) {
		flood <- struct{}{}
	}
}

// process is a plugin's process, the leader of its group.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed once it has ended; its process id is kept until reap

	mu     sync.Mutex
	reaped bool
	err    error
}

func watch(cmd *exec.Cmd) *process {
	p := &process{cmd: cmd, ended: make(chan struct{})}
	offer(cmd.Process.Pid)
	go func() {
		for errors.Is(unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
		}
		close(p.ended)
		p.killGroup()
		p.reap()
	}()
	return p
}

// killGroup kills all that is left of the group. Until the leader is reaped its number is nobody else's.
func (p *process) killGroup() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
	}
}

// reap takes the exit status of a process that has ended.
func (p *process) reap() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		p.err = p.cmd.Wait()
		p.reaped = true
	}
	return p.err
}

// offer makes a plugin what the kernel kills first when memory runs out, before any guest. A daemon is usually kept
// from that, and its children would be.
func offer(pid int) {
	os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(outOfMemory), 0)
}
