package launch

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/virt-cow/virt-cow/internal/api"
)

// child starts engines as plain children, where there is no systemd.
type child struct {
	program, runDir, logDir string
}

// NewChild starts engines as children in sessions of their own, so that nothing that ends the daemon ends them. What
// they say is appended to logDir/VOLUME.log, which may be truncated at any time (logrotate's copytruncate).
func NewChild(program, runDir, logDir string) Launcher {
	return &child{program: program, runDir: runDir, logDir: logDir}
}

func (c *child) Name() string { return ChildName }

// Allow has nothing to do: no rule keeps a child from a device.
func (c *child) Allow(context.Context, *api.EngineSpec) error { return nil }

func (c *child) Start(_ context.Context, spec *api.EngineSpec, specPath string) (*Process, error) {
	if p, err := Adopt(spec.Control); p != nil || err != nil {
		return p, err
	}
	logPath := filepath.Join(c.logDir, spec.Volume+".log")
	log, err := os.OpenFile(logPath, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return nil, err
	}
	from, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		log.Close()
		return nil, err
	}
	cmd := exec.Command(c.program, "--run-dir", c.runDir, "--json", "serve", "--spec", specPath)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		log.Close()
		return nil, err
	}
	p := &Process{PID: cmd.Process.Pid, done: make(chan struct{})}
	p.signal = func(s syscall.Signal) error { return cmd.Process.Signal(s) }
	var end error
	p.why = func() string { return fmt.Sprintf("%s (%s)", lastLine(logPath, from, end), logPath) }
	go func() {
		end = cmd.Wait()
		log.Close()
		close(p.done)
	}()
	return p, nil
}

// Gone leaves the log: it tells how the engine ended.
func (c *child) Gone(context.Context, string) error { return nil }

// maxSaid bounds how much of a log is read for its last line.
const maxSaid = 4096

// lastLine is how an engine ended and, if it ended with an error of its own, which: its last line since offset from.
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
	if size < from { // truncated meanwhile
		from = 0
	}
	b := make([]byte, min(size-from, maxSaid))
	if _, err := f.ReadAt(b, size-int64(len(b))); err != nil {
		return said
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if last, ok := strings.CutPrefix(lines[len(lines)-1], "virt-cow: "); ok {
		return said + ": " + last
	}
	return said
}
