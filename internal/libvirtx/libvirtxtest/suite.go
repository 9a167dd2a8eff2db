// Package libvirtxtest holds what every driver of libvirtx must do. Suite runs it against a real libvirtd and a
// few guests of test/lab: every call, every sentinel, every event, and every fault of libvirtd that can be had
// on one machine.
package libvirtxtest

import (
	"context"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/test/lab"
)

// Dial is a driver.
type Dial func(ctx context.Context, address string, k libvirtx.Keepalive) (libvirtx.Conn, error)

// patient never drops a libvirtd on a busy machine; quick finds one that hangs soon.
var (
	patient = libvirtx.Keepalive{Interval: time.Second, Timeout: time.Minute}
	quick   = libvirtx.Keepalive{Interval: time.Second, Timeout: 2 * time.Second}
)

// Main is TestMain's body for a driver's tests.
func Main(m *testing.M) {
	lab.Main()
	os.Exit(m.Run())
}

// rig is one libvirtd and a connection that is kept to it.
type rig struct {
	dial Dial
	h    *lab.Host
	rec  *recorder
}

// Suite holds a driver to the contract. The driver's TestMain calls Main.
func Suite(t *testing.T, dial Dial) {
	h := lab.For(t, lab.Config{Log: t.Output()})
	r := keep(t, dial, h, patient)
	t.Run("domains", r.domains)
	t.Run("life", r.life)
	t.Run("transient", r.transient)
	t.Run("metadata", r.metadata)
	t.Run("no slot", r.noSlot)
	t.Run("devices", r.devices)
	t.Run("I-O error", r.ioError)
	t.Run("define", r.defineUndefine)
	t.Run("freeze", r.freeze)
	t.Run("no agent", r.noAgent)
	t.Run("pools", r.pools)
	t.Run("a reader that is slow", r.slowReader)
	t.Run("a close amid events", r.closeAmidEvents)
	t.Run("what only a proxy can send", r.injected)
	t.Run("a domain that hangs", r.hungDomain)
	t.Run("a libvirtd that was restarted", func(t *testing.T) { r.restarted(t, stopTerm) })
	t.Run("a libvirtd that was killed", func(t *testing.T) { r.restarted(t, stopKill) })
	t.Run("a libvirtd that hangs", r.hung)
	t.Run("a connection that never lasts", r.flapping)
}

// keep keeps a connection for as long as the test runs.
func keep(t *testing.T, dial Dial, h *lab.Host, k libvirtx.Keepalive) *rig {
	r := &rig{dial: dial, h: h, rec: &recorder{}}
	ctx, stop := context.WithCancel(context.Background())
	var kept sync.WaitGroup
	kept.Go(func() {
		libvirtx.Keep(ctx, func(ctx context.Context) (libvirtx.Conn, error) { return dial(ctx, h.LibvirtSocket(), k) },
			r.rec, libvirtx.Backoff{Min: 50 * time.Millisecond, Max: time.Second}, zerolog.New(t.Output()))
	})
	t.Cleanup(kept.Wait)
	t.Cleanup(stop)
	r.conn(t)
	return r
}

// conn waits for a connection.
func (r *rig) conn(t *testing.T) libvirtx.Conn {
	t.Helper()
	var c libvirtx.Conn
	eventually(t, "a connection", func() bool { c, _ = r.rec.current(); return c != nil })
	return c
}

// define makes a domain that is off.
func (r *rig) define(t *testing.T, c lab.GuestConfig) (*lab.Guest, libvirtx.Domain) {
	t.Helper()
	g, err := r.h.Define(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	d, err := r.conn(t).Lookup(t.Context(), c.Name)
	if err != nil {
		t.Fatal(err)
	}
	return g, d
}

func (r *rig) virsh(t *testing.T, args ...string) string {
	t.Helper()
	out, err := r.h.Virsh(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// sees waits for events, in whatever order they come.
func (r *rig) sees(t *testing.T, events ...libvirtx.Event) {
	t.Helper()
	for _, want := range events {
		eventually(t, "an event", func() bool { return r.rec.saw(want) }, want)
	}
}

// recorder keeps what Keep tells it.
type recorder struct {
	mu     sync.Mutex
	conn   libvirtx.Conn
	conns  int
	lost   error
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

func (r *recorder) Disconnected(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conn, r.lost = nil, err
}

func (r *recorder) saw(e libvirtx.Event) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.events, e)
}

func (r *recorder) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = nil
}

func (r *recorder) current() (c libvirtx.Conn, conns int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conn, r.conns
}

func eventually(t *testing.T, what string, f func() bool, args ...any) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not after two minutes: %s %+v", what, args)
		}
	}
}
