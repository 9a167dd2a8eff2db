package inventory

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How long one run of the program may take.
const (
	callTimeout = 2 * time.Minute
	scanTimeout = 30 * time.Minute // thousands of LUNs, some of them dead
	undoTimeout = 5 * time.Minute
)

// The exit codes of the program that mean something here.
const (
	exitUsage  = 2
	exitLocked = 4
)

// program is virt-cow, run for everything that touches a store.
type program struct {
	path   string
	runDir string
}

// run runs a command of the program, decodes its JSON into out, if not nil, and turns its exit code into an error.
// A file in keep stays open in the process as long as it lives, and with it the file's lock.
func (p program) run(ctx context.Context, out any, keep []*os.File, args ...string) error {
	cmd := exec.CommandContext(ctx, p.path, append([]string{"--json", "--run-dir", p.runDir}, args...)...)
	cmd.ExtraFiles = keep
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	done := make(chan error, 1)
	go func() { done <- cmd.Run() }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		select {
		case err = <-done:
		case <-time.After(2 * time.Second): // in the kernel, waiting for a disk: no signal ends it
			return fmt.Errorf("virt-cow %s hangs: a disk doesn't answer: %w", strings.Join(args, " "), ctx.Err())
		}
	}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("virt-cow %s: %w", strings.Join(args, " "), ctx.Err())
	case errors.As(err, &exit):
		return p.failure(exit.ProcessState, stderr.String(), args)
	case err != nil:
		return fmt.Errorf("virt-cow %s: %w", strings.Join(args, " "), err)
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(stdout.Bytes(), out); err != nil {
		return fmt.Errorf("virt-cow %s: its answer: %w", strings.Join(args, " "), err)
	}
	return nil
}

// failure is what the program said last.
func (p program) failure(state *os.ProcessState, stderr string, args []string) error {
	const prefix = "virt-cow: "
	text := strings.TrimSpace(stderr)
	if i := strings.LastIndex("\n"+text, "\n"+prefix); i >= 0 {
		text = text[i+len(prefix):]
	} else {
		text = fmt.Sprintf("virt-cow %s: %s: %s", strings.Join(args, " "), state, text)
	}
	switch state.ExitCode() {
	case exitUsage:
		return &failed{ErrInvalid, text}
	case exitLocked:
		return &failed{ErrInUse, text}
	}
	return errors.New(text)
}

// failed is an error with the program's own words.
type failed struct {
	kind error
	text string
}

func (f *failed) Error() string { return f.text }
func (f *failed) Unwrap() error { return f.kind }

// makingLock is held while a volume is being made or deleted, by this process and by the programs it runs: one that
// outlives a killed daemon still works on the volume. RunDir is emptied by a reboot, which ends those too.
func (p program) makingLock(ctx context.Context, id string) (*os.File, error) {
	path := p.makingPath(id)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("%w: a process of an earlier daemon still works on it", ErrInUse), f.Close())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (p program) makingPath(id string) string { return filepath.Join(p.runDir, "lock", id+".making") }

// madeUnlock ends makingLock. A volume's UUID is never used again, so nobody waits for a file that is gone.
func (p program) madeUnlock(f *os.File) {
	_ = os.Remove(f.Name()) // emptied by a reboot otherwise
	f.Close()
}
