package iscsi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/reserve"
	"github.com/virt-cow/virt-cow/internal/nbd"
)

// host is what a hypervisor has: a name, a network, a session with the target, a run folder.
type host struct {
	name   string
	number int // of its network
	uuid   uuid.UUID
	boot   uuid.UUID
	key    uint64 // of its reservations
	disk   string // its device of the LUN
	runDir string
}

func (h *host) iqn() string    { return "iqn.2026-01.org.virt-cow:" + h.name }
func (h *host) cable() string  { return "net" + h.name }
func (h *host) portal() string { return fmt.Sprintf("10.%d.0.1", h.number) }

// lun is the LUN and the hosts that see it.
type lun struct{ a, b *host }

// inside is the test in the emulated machine.
func inside(t *testing.T) {
	l := &lun{a: newHost(t, "a", 1), b: newHost(t, "b", 2)}
	startTarget(t, l.a, l.b)
	l.a.login(t)
	l.b.login(t)
	for _, p := range parts {
		t.Run(p.name, func(t *testing.T) {
			began := time.Now()
			l.clear(t)
			p.run(t, l)
			t.Logf("took %s", time.Since(began).Round(10*time.Millisecond))
		})
	}
}

func newHost(t *testing.T, name string, number int) *host {
	t.Helper()
	h := &host{name: name, number: number, uuid: uuid.New(), runDir: filepath.Join("/run", name)}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	h.boot = uuid.MustParse(string(bytes.TrimSpace(boot)))
	h.key = reserve.Key(h.uuid, h.boot)
	return h
}

// clear takes all reservations and registrations away, zeroes the LUN, and forgets what hosts keep in memory.
func (l *lun) clear(t *testing.T) {
	t.Helper()
	for _, h := range []*host{l.a, l.b} {
		dev := h.open(t)
		s, err := reserve.Read(dev)
		if err == nil && s.Registered(h.key) {
			err = reserve.Unregister(dev, h.key)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(h.runDir); err != nil {
			t.Fatal(err)
		}
	}
	dev := l.a.open(t)
	if s, err := reserve.Read(dev); err != nil || len(s.Keys) != 0 || s.Type != reserve.TypeNone {
		t.Fatalf("the LUN is not free: %+v, %v", s, err)
	}
	if err := dev.WriteZeroes(0, dev.Info().Size, true); err != nil {
		t.Fatal(err)
	}
}

// open opens the host's disk past the page cache, until the part ends.
func (h *host) open(t *testing.T) *blockdev.File {
	t.Helper()
	dev, err := blockdev.OpenFile(t.Context(), h.disk, blockdev.FileOptions{Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	return dev
}

// command is virt-cow on the host.
func (h *host) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "virt-cow", args...)
	cmd.Env = append(os.Environ(), "VIRT_COW_RUN_DIR="+h.runDir)
	return cmd
}

// run runs virt-cow on the host, as its administrator, and returns what it printed, also with an error.
func (h *host) run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := h.command(ctx, args...).CombinedOutput()
	return string(out), err
}

// engine is one engine process of a host, over its disk.
type engine struct {
	cmd    *exec.Cmd
	socket string
	log    bytes.Buffer
	done   chan struct{}
}

func (h *host) socket() string { return filepath.Join(h.runDir, "v.sock") }

// unreserved is for an engine that does not know of reservations.
func unreserved(s *api.EngineSpec) { s.Reservations = false }

// serveArgs writes the spec of an engine of the host, as its daemon would, with reservations, and returns the arguments of the engine.
func (h *host) serveArgs(t *testing.T, with ...func(*api.EngineSpec)) []string {
	t.Helper()
	s := &api.EngineSpec{
		Version: api.SpecVersion, Volume: "v", Store: h.disk, Socket: h.socket(), Control: api.ControlPath(h.socket()), Reservations: true,
	}
	for _, f := range with {
		f(s)
	}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(h.runDir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(h.runDir, "v"+api.SpecSuffix)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"serve", "--host-uuid", h.uuid.String(), "--lock-wait", patience.String(), "--spec", path}
}

// serve starts an engine of the host and waits until it answers.
func (h *host) serve(t *testing.T, with ...func(*api.EngineSpec)) *engine {
	t.Helper()
	args := h.serveArgs(t, with...)
	e := &engine{cmd: h.command(context.Background(), args...), socket: h.socket(), done: make(chan struct{})}
	e.cmd.Stdout, e.cmd.Stderr = &e.log, &e.log
	if err := start(e.cmd, capabilities); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = e.cmd.Wait()
		close(e.done)
	}()
	t.Cleanup(func() {
		e.kill(t)
		if t.Failed() {
			t.Logf("engine of host %s:\n%s", h.name, &e.log)
		}
	})
	eventually(t, "the engine of host "+h.name+" answers", func() bool {
		select {
		case <-e.done:
			t.Fatalf("it ended: %v\n%s", e.cmd.ProcessState, &e.log)
		default:
		}
		_, err := e.control().Status(t.Context())
		return err == nil
	})
	return e
}

// control is the engine's control API.
func (e *engine) control() *api.Engine { return api.NewEngine(api.ControlPath(e.socket)) }

// guest is a connection to the engine, as a guest's QEMU has one.
func (e *engine) guest(t *testing.T) *nbd.Client {
	t.Helper()
	c, err := nbd.Dial(t.Context(), "nbd+unix:///?socket="+e.socket, nbd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// kill kills the engine and waits for its end.
func (e *engine) kill(t *testing.T) {
	t.Helper()
	_ = e.cmd.Process.Kill()
	e.wait(t)
}

// freeze stops the engine where it is, all of its threads.
func (e *engine) freeze(t *testing.T) {
	t.Helper()
	ok(t, e.cmd.Process.Signal(unix.SIGSTOP))
	ok(t, unix.Waitid(unix.P_PID, e.cmd.Process.Pid, nil, unix.WSTOPPED|unix.WNOWAIT, nil))
}

// stop ends the engine cleanly and returns its exit code.
func (e *engine) stop(t *testing.T) int {
	t.Helper()
	_ = e.cmd.Process.Signal(os.Interrupt)
	e.wait(t)
	return e.cmd.ProcessState.ExitCode()
}

func (e *engine) wait(t *testing.T) {
	t.Helper()
	select {
	case <-e.done:
	case <-time.After(patience):
		t.Errorf("an engine does not end")
	}
}
