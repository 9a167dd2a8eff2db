package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/nbd"
)

// server is a running virt-cow serve.
type server struct {
	b      *bench
	cmd    *exec.Cmd
	socket string
	log    logBuffer
	done   chan struct{}
	code   int
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// launch starts virt-cow serve and does not wait until it serves.
func (b *bench) launch(store string, flags ...string) *server {
	b.t.Helper()
	name := strings.NewReplacer(" ", "-", "&", "-", "'", "-").Replace(filepath.Base(store)) // URIs hold it
	socket := b.path(name + ".sock")
	args := append([]string{"serve", "--socket", socket}, flags...)
	return b.launchArgs(store, socket, append(args, b.path(store))...)
}

// launchArgs starts virt-cow serve in whatever way.
func (b *bench) launchArgs(store, socket string, args ...string) *server {
	b.t.Helper()
	s := &server{b: b, socket: socket, done: make(chan struct{})}
	s.cmd = b.command(context.Background(), program, args...)
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	if err := s.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	go func() {
		_ = s.cmd.Wait()
		s.code = s.cmd.ProcessState.ExitCode()
		close(s.done)
	}()
	b.t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		<-s.done
		if b.t.Failed() {
			b.t.Logf("serve %s:\n%s", store, &s.log)
		}
	})
	return s
}

// serve starts virt-cow serve and waits until it answers.
func (b *bench) serve(store string, flags ...string) *server {
	b.t.Helper()
	s := b.launch(store, flags...)
	eventually(b.t, "serve answers", func() bool {
		if s.ended() {
			b.t.Fatalf("serve %s: ended with %d\n%s", store, s.code, &s.log)
		}
		_, err := s.engine().Status(context.Background())
		return err == nil
	})
	return s
}

func (s *server) engine() *api.Engine { return api.NewEngine(api.ControlPath(s.socket)) }

func (s *server) uri() string { return "nbd+unix:///?socket=" + s.socket }

func (s *server) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

func (s *server) status() *api.EngineStatus {
	s.b.t.Helper()
	st, err := s.engine().Status(context.Background())
	if err != nil {
		s.b.t.Fatal(err)
	}
	return st
}

// hasOpen says whether the process has a file open; from then on it catches signals.
func (s *server) hasOpen(name string) bool {
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", s.cmd.Process.Pid))
	return slices.ContainsFunc(fds, func(fd string) bool { to, _ := os.Readlink(fd); return to == s.b.path(name) })
}

func (s *server) signal(sig os.Signal) {
	s.b.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.b.t.Fatal(err)
	}
}

// wait waits for the end and checks how it came.
func (s *server) wait(code int) {
	s.b.t.Helper()
	select {
	case <-s.done:
	case <-time.After(patience):
		s.b.t.Fatalf("serve does not end\n%s", &s.log)
	}
	if s.code != code {
		s.b.t.Fatalf("serve: exit code %d, want %d\n%s", s.code, code, &s.log)
	}
}

// stop ends the server cleanly.
func (s *server) stop() {
	s.b.t.Helper()
	s.signal(syscall.SIGTERM)
	s.wait(0)
}

func (s *server) kill() {
	s.b.t.Helper()
	s.signal(syscall.SIGKILL)
	s.wait(-1)
}

// hydrated waits until the clone is cut loose.
func (s *server) hydrated() {
	s.b.t.Helper()
	eventually(s.b.t, "cut loose", func() bool { return s.status().Hydration.State == api.HydrationDone })
}

func (s *server) dial() blockdev.Device {
	s.b.t.Helper()
	dev, err := nbd.Dial(context.Background(), s.uri(), nbd.Options{})
	if err != nil {
		s.b.t.Fatalf("%v\n%s", err, &s.log)
	}
	s.b.t.Cleanup(func() { dev.Close() })
	return dev
}
