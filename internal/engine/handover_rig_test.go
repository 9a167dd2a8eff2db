package engine

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/handover"
	"github.com/virt-cow/virt-cow/internal/store"
)

// site is a host: what its engines have in common.
type site struct {
	tb     testing.TB
	name   string
	host   uuid.UUID
	boot   uuid.UUID
	cache  string
	store  func() blockdev.Device // a new opening of the shared disk
	master func() blockdev.Device // nil: none
	origin func() blockdev.Device // nil: none
	mode   cowfmt.CacheMode
	shelf  shelf       // of snapshots; nil: none
	dead   func() bool // nil: never; the engine's process was killed
	v      *Volume
	told   *Volume       // that is told what its domain does
	says   *atomic.Int32 // what
}

// shared is a volume that two hosts see.
type shared struct {
	a, b *site
}

// newShared makes two hosts over what these functions open.
func newShared(tb testing.TB, open, master, origin func() blockdev.Device) *shared {
	dir := cacheDir(tb)
	make := func(name string) *site {
		return &site{
			tb: tb, name: name, host: uuid.New(), boot: uuid.New(), cache: newCachePath(dir), store: open, master: master, origin: origin,
		}
	}
	s := &shared{a: make("a"), b: make("b")}
	tb.Cleanup(func() {
		for _, h := range []*site{s.a, s.b} {
			if h.v != nil {
				h.die()
			}
		}
	})
	return s
}

// sharedClone is a clone of size bytes in memory.
func sharedClone(tb testing.TB, size, chunk int64) *shared {
	tb.Helper()
	dev := memoryStore(tb, size, chunk, sector, true)
	m := memoryMaster(size, true, 0, size)
	return newShared(tb, func() blockdev.Device { return dev.Open(false) }, func() blockdev.Device { return m.Open(true) }, nil)
}

// open has an engine of this host open the volume.
func (h *site) open(change ...func(*Options)) error {
	st, err := store.Open(NewLatch(h.store()))
	if err != nil {
		return err
	}
	o := Options{
		Store: st, Owner: cowfmt.Owner{Host: h.host, Boot: h.boot, HostName: h.name}, CachePath: h.cache, CacheMode: h.mode,
		Claiming: store.Claiming{Shared: true, Wait: time.Millisecond}, CommitEvery: 10 * time.Millisecond, Log: zerolog.Nop(),
	}
	if h.master != nil && !st.Header().CutLoose {
		o.Master = h.master()
	}
	if h.origin != nil {
		o.Origin = NewLatch(h.origin())
	}
	if h.shelf != nil {
		o.OpenSnapshot = h.shelf.open
	}
	for _, f := range change {
		f(&o)
	}
	h.v, err = Open(context.Background(), o)
	if err != nil {
		h.v = nil
	}
	return err
}

func incoming(g cowfmt.Grant) func(*Options) { return func(o *Options) { o.Incoming = g.ID } }

// die ends this host's engine as if it were killed between two requests.
func (h *site) die() {
	_ = h.v.Abandon()
	h.v = nil
}

// busy keeps the goroutine of the engine's hand-overs from doing anything until it is told to go on.
func (h *site) busy() (goOn func()) {
	h.tb.Helper()
	inside, end := make(chan struct{}), make(chan struct{})
	go func(m *mover) {
		_ = m.call(context.Background(), func() error { close(inside); <-end; return nil })
	}(h.v.moving)
	<-inside
	return sync.OnceFunc(func() { close(end) })
}

// close closes this host's volume.
func (h *site) close() {
	h.tb.Helper()
	check(h.tb, h.v.Close())
	h.v = nil
}

// grantTo grants the volume to another host.
func (h *site) grantTo(o *site) cowfmt.Grant {
	h.tb.Helper()
	g := cowfmt.Grant{ID: uuid.New(), Host: o.host, Boot: o.boot, HostName: o.name}
	check(h.tb, h.v.Grant(context.Background(), g))
	return g
}

// guest has the engine told what its domain does, again and again as a daemon does it, until it is told something else or ends.
func (h *site) guest(s handover.Guest) {
	h.tb.Helper()
	v := h.v
	if h.told != v {
		says := new(atomic.Int32)
		h.told, h.says = v, says
		go func() {
			for !v.closed.Load() {
				if at := v.Handover(); at != nil {
					v.SetGuest(handover.Guest(says.Load()), at.Turn, time.Hour)
				}
				time.Sleep(time.Millisecond)
			}
		}()
	}
	h.says.Store(int32(s))
	if at := v.Handover(); at != nil {
		v.SetGuest(s, at.Turn, time.Hour)
	}
}

// is waits until the engine is in a state.
func (h *site) is(s handover.State) {
	h.tb.Helper()
	for end := time.Now().Add(time.Minute); h.state() != s; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			h.tb.Fatalf("after a minute %s is not %v: %+v", h.name, s, h.v.Handover())
		}
	}
}

// state is the engine's; a receiver that became the owner is alone, too.
func (h *site) state() handover.State {
	if at := h.v.Handover(); at != nil {
		return at.State
	}
	return handover.Alone
}

func (h *site) write(off, length int64, version uint32) {
	h.tb.Helper()
	check(h.tb, request(h.v, &blockdev.Request{Op: blockdev.OpWrite, Off: off, Buf: filled(off, length, version)}))
}

// reads says what the volume must have at off.
func (h *site) reads(off, length int64, version uint32) {
	h.tb.Helper()
	p := make([]byte, length)
	check(h.tb, request(h.v, &blockdev.Request{Op: blockdev.OpRead, Off: off, Buf: p}))
	if string(p) != string(filled(off, length, version)) {
		h.tb.Fatalf("%s reads something else than version %d at %d", h.name, version, off)
	}
}

// alone says that a host has the volume to itself, cache on.
func (h *site) alone() {
	h.tb.Helper()
	eventually(h.tb, "cache on at "+h.name, func() bool { return h.v.CacheMode() == cowfmt.CacheOn })
	if now := h.v.Header(); now.Cache != cowfmt.CacheOn || len(now.Grants) != 0 || now.Owner == nil || now.Owner.Host != h.host {
		h.tb.Fatalf("%s: header %+v, owner %+v", h.name, now, now.Owner)
	}
}
