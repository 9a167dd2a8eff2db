package inventory

import (
	"bytes"
	"context"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
)

// engine is a running virt-cow serve.
type engine struct {
	t      *testing.T
	cmd    *exec.Cmd
	client *api.Engine
	log    bytes.Buffer
	ended  chan struct{}
}

func serve(t *testing.T, r *rig, name string, flags ...string) *engine {
	t.Helper()
	e, err := r.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(r.dir, name+".sock")
	s := &engine{t: t, client: api.NewEngine(api.ControlPath(socket)), ended: make(chan struct{})}
	s.cmd = exec.Command(testProgram, append(append([]string{"--run-dir", r.config.RunDir, "serve", "--socket", socket}, flags...), e.Store)...)
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = s.cmd.Wait()
		close(s.ended)
	}()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		<-s.ended
	})
	s.until(func(*api.EngineStatus) bool { return true })
	return s
}

func (s *engine) until(is func(*api.EngineStatus) bool) {
	s.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if st, err := s.client.Status(context.Background()); err == nil && is(st) {
			return
		}
	}
	s.t.Fatalf("waited in vain\n%s", &s.log)
}

func (s *engine) stop() {
	s.t.Helper()
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	<-s.ended
	if code := s.cmd.ProcessState.ExitCode(); code != 0 {
		s.t.Fatalf("serve ended with %d\n%s", code, &s.log)
	}
}
