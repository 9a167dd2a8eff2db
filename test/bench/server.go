package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	startTimeout = 60 * time.Second
	stopTimeout  = 60 * time.Second
)

// tail keeps the end of what a process says.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	t.b = t.b[max(0, len(t.b)-4096):]
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b))
}

// server is a running NBD server on a unix socket.
type server struct {
	cmd    *exec.Cmd
	socket string
	said   tail
	done   chan struct{} // closed when the process has ended
	err    error         // how, once done is closed
}

// startServer starts argv and returns when its socket takes connections.
func startServer(ctx context.Context, argv, env []string, socket string) (*server, error) {
	s := &server{cmd: exec.Command(argv[0], argv[1:]...), socket: socket, done: make(chan struct{})}
	s.cmd.Env = append(os.Environ(), env...)
	s.cmd.Stdout, s.cmd.Stderr = &s.said, &s.said
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's ^C is ours to handle
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		s.err = s.cmd.Wait()
		close(s.done)
	}()
	if err := s.ready(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, &s.said), s.stop())
	}
	return s, nil
}

func (s *server) ready(ctx context.Context) error {
	deadline := time.After(startTimeout)
	for {
		c, err := net.Dial("unix", s.socket)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.done:
			return fmt.Errorf("ended before it served: %w", errors.Join(s.err, err))
		case <-deadline:
			return fmt.Errorf("does not serve after %v: %w", startTimeout, err)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (s *server) pid() int { return s.cmd.Process.Pid }

// stop asks the process to end and waits for it; it is an error if it has to be killed, or failed.
func (s *server) stop() error {
	select {
	case <-s.done:
		return fmt.Errorf("%s ended by itself: %v: %s", s.cmd.Args[0], s.err, &s.said)
	default:
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-s.done:
	case <-time.After(stopTimeout):
		err := s.cmd.Process.Kill()
		<-s.done
		return fmt.Errorf("%s: killed, SIGTERM did not end it in %v: %w", s.cmd.Args[0], stopTimeout, errors.Join(err, s.err))
	}
	if s.err != nil {
		return fmt.Errorf("%s: %w: %s", s.cmd.Args[0], s.err, &s.said)
	}
	return nil
}
