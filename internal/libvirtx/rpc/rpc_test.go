package rpc_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/libvirtx/rpc"
	"github.com/virt-cow/virt-cow/test/lab"
)

func TestMain(m *testing.M) {
	lab.Main()
	os.Exit(m.Run())
}

// recorder keeps what Keep tells it.
type recorder struct {
	mu     sync.Mutex
	conn   libvirtx.Conn
	conns  int
	events []libvirtx.Event
}

func (r *recorder) Connected(c libvirtx.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conn = c
	r.conns++
}

func (r *recorder) Event(e libvirtx.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

func (r *recorder) Disconnected(error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conn = nil
}

// saw says whether an event was recorded that f accepts.
func (r *recorder) saw(f func(libvirtx.Event) bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if f(e) {
			return true
		}
	}
	return false
}

func (r *recorder) current() (libvirtx.Conn, int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conn, r.conns
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !f(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not after two minutes: %s", what)
		}
	}
}

func lifecycle(what libvirtx.What) func(libvirtx.Event) bool {
	return func(e libvirtx.Event) bool {
		l, ok := e.(libvirtx.Lifecycle)
		return ok && l.What == what && l.Domain.Name == "g1"
	}
}

// TestRealLibvirt goes through the whole interface with one libvirtd and one guest.
func TestRealLibvirt(t *testing.T) {
	h := lab.For(t, lab.Config{Log: t.Output()})
	ctx := t.Context()
	rec := &recorder{}
	keepCtx, stopKeep := context.WithCancel(ctx)
	var keep sync.WaitGroup
	keep.Go(func() {
		libvirtx.Keep(keepCtx, func(ctx context.Context) (libvirtx.Conn, error) { return rpc.Dial(ctx, h.LibvirtSocket()) },
			rec, libvirtx.Backoff{Min: 50 * time.Millisecond, Max: time.Second}, zerolog.New(t.Output()))
	})
	defer keep.Wait()
	defer stopKeep()
	eventually(t, "a connection", func() bool { c, _ := rec.current(); return c != nil })
	c, _ := rec.current()

	g, err := h.Define(ctx, lab.GuestConfig{Name: "g1"})
	if err != nil {
		t.Fatal(err)
	}
	d, err := c.Lookup(ctx, "g1")
	if err != nil {
		t.Fatal(err)
	}
	t.Run("lookup", func(t *testing.T) { testLookup(t, c, d) })
	t.Run("metadata of a domain that is off", func(t *testing.T) { testMetadata(t, c, d) })
	if s, err := c.State(ctx, d); err != nil || s != (libvirtx.State{}) {
		t.Fatal(s, err)
	}
	if err := g.Boot(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "event started", func() bool { return rec.saw(lifecycle(libvirtx.Started)) })
	t.Run("metadata of a running domain", func(t *testing.T) { testMetadata(t, c, d) })
	eventually(t, "event metadata changed", func() bool {
		return rec.saw(func(e libvirtx.Event) bool {
			m, ok := e.(libvirtx.MetadataChanged)
			return ok && m.Namespace == libvirtx.Namespace && m.Domain == d
		})
	})
	t.Run("attach and detach", func(t *testing.T) { testAttach(t, h, g, c, d, rec) })
	t.Run("a libvirtd that was killed", func(t *testing.T) { testKilled(t, h, rec) })
	c, _ = rec.current()
	if err := g.Destroy(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "event stopped", func() bool { return rec.saw(lifecycle(libvirtx.Stopped)) })
	t.Run("a libvirtd that hangs", func(t *testing.T) { testHung(t, h, rec) })
}

func testLookup(t *testing.T, c libvirtx.Conn, d libvirtx.Domain) {
	if byID, err := c.Lookup(t.Context(), d.UUID.String()); err != nil || byID != d {
		t.Fatal(byID, d, err)
	}
	for _, name := range []string{"nobody", uuid.NewString()} {
		if _, err := c.Lookup(t.Context(), name); !errors.Is(err, libvirtx.ErrNoDomain) || !strings.Contains(err.Error(), name) {
			t.Fatal(err)
		}
	}
	if list, err := c.Domains(t.Context()); err != nil || len(list) != 1 || list[0] != d {
		t.Fatal(list, err)
	}
	if v, err := c.Version(t.Context()); err != nil || v < 1000000 {
		t.Fatal(v, err)
	}
}

func testMetadata(t *testing.T, c libvirtx.Conn, d libvirtx.Domain) {
	if x, err := c.Metadata(t.Context(), d); x != "" || err != nil {
		t.Fatal(x, err)
	}
	want := libvirtx.Want{Volume: "v1", Store: "/a b/<&>", Target: "vdb"}
	x, err := libvirtx.FormatWants([]libvirtx.Want{want})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetMetadata(t.Context(), d, x); err != nil {
		t.Fatal(err)
	}
	x, err = c.Metadata(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := libvirtx.ParseWants(x); err != nil || len(got) != 1 || got[0] != want {
		t.Fatal(got, err, x)
	}
	if x, err = c.XML(t.Context(), d); err != nil || !strings.Contains(x, `<virtcow:disks xmlns:virtcow="`+libvirtx.Namespace) {
		t.Fatal(err, x)
	}
	if err := c.SetMetadata(t.Context(), d, ""); err != nil {
		t.Fatal(err)
	}
	if x, err := c.Metadata(t.Context(), d); x != "" || err != nil {
		t.Fatal(x, err)
	}
}

func testAttach(t *testing.T, h *lab.Host, g *lab.Guest, c libvirtx.Conn, d libvirtx.Domain, rec *recorder) {
	ctx := t.Context()
	image := filepath.Join(h.Dir, "disk.raw")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	socket := "/run/virt-cow/a.b.sock"
	server, err := h.Start("qemu-nbd", "-f", "raw", "-t", "-k", socket, image)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop(syscall.SIGTERM)
	eventually(t, "the NBD server", func() bool { _, err := os.Stat(h.Path(socket)); return err == nil })
	version, err := c.Version(ctx)
	if err != nil {
		t.Fatal(err)
	}
	id := uuid.New()
	x, err := libvirtx.DiskXML(libvirtx.Spec{Volume: "a.b", UUID: id, Socket: socket, Target: "vdb"}, version)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Attach(ctx, d, x); err != nil {
		t.Fatal(err)
	}
	x, err = c.XML(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	disks, err := libvirtx.Disks(x)
	if want := (libvirtx.Disk{Target: "vdb", Socket: socket, Alias: libvirtx.Alias("a.b")}); err != nil || len(disks) != 1 || disks[0] != want {
		t.Fatal(disks, err)
	}
	dev, err := g.Disk(ctx, libvirtx.Serial(id))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := g.Run(ctx, "blockdev --getsize64 "+dev); err != nil || strings.TrimSpace(out) != "1048576" {
		t.Fatal(out, err)
	}
	if err := c.Detach(ctx, d, "ua-virt-cow-nothing"); !errors.Is(err, libvirtx.ErrNoDevice) {
		t.Fatal(err)
	}
	if err := c.Detach(ctx, d, libvirtx.Alias("a.b")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "event device removed", func() bool {
		return rec.saw(func(e libvirtx.Event) bool {
			return e == libvirtx.DeviceRemoved{Domain: d, Alias: libvirtx.Alias("a.b")}
		})
	})
}

// testKilled: the calls of the old connection end, a new one is made.
func testKilled(t *testing.T, h *lab.Host, rec *recorder) {
	old, n := rec.current()
	if err := h.Libvirtd().Stop(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the loss noticed", func() bool { c, _ := rec.current(); return c == nil })
	if _, err := old.Domains(t.Context()); !errors.Is(err, libvirtx.ErrGone) {
		t.Fatal(err)
	}
	if err := h.StartLibvirtd(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a new connection", func() bool { c, m := rec.current(); return c != nil && m == n+1 })
	c, _ := rec.current()
	if list, err := c.Domains(t.Context()); err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
}

// testHung: a call to a libvirtd that does not answer ends with its context and drops the connection.
func testHung(t *testing.T, h *lab.Host, rec *recorder) {
	c, n := rec.current()
	if err := h.Libvirtd().Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := c.Domains(ctx); !errors.Is(err, libvirtx.ErrGone) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if err := h.Libvirtd().Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a new connection", func() bool { c, m := rec.current(); return c != nil && m == n+1 })
}
