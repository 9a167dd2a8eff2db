package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/handover"
	"github.com/virt-cow/virt-cow/internal/store"
)

const (
	deathSize  = 16 << 12
	deathChunk = 4096
)

// migration is one live migration from a to b, step by step, each of which is repeated until it succeeds, by a new engine
// where the last one died.
type migration struct {
	t     *testing.T
	s     *shared
	g     cowfmt.Grant
	wrote map[int64]uint32 // version of each chunk that was acknowledged
}

func newMigration(t *testing.T, s *shared) *migration {
	return &migration{
		t: t, s: s, wrote: map[int64]uint32{},
		g: cowfmt.Grant{ID: uuid.New(), Host: s.b.host, Boot: s.b.boot, HostName: "b"},
	}
}

// retry repeats a step on a host until it succeeds.
func (m *migration) retry(h *site, what string, step func() error) {
	m.t.Helper()
	var last error
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if last = m.alive(h); last == nil {
			if h.v == nil {
				return // it has nothing to say any more
			}
			if last = step(); last == nil {
				return
			}
		}
		if time.Now().After(end) {
			m.t.Fatalf("%s: %s: %v", h.name, what, last)
		}
	}
}

// alive sees to it that an engine runs, unless the volume has left this host.
func (m *migration) alive(h *site) error {
	if h.v != nil && h.dead != nil && h.dead() {
		h.die()
	}
	if h.v != nil {
		return nil
	}
	if h.dead != nil {
		check(m.t, forgetFailedFlush(h.cache))
	}
	if h == m.s.a {
		err := h.open()
		if errors.Is(err, store.ErrOwned) { // by b
			return nil
		}
		return err
	}
	err := h.open(incoming(m.g))
	if errors.Is(err, store.ErrNoGrant) && m.wrote[3] != 0 { // it was being closed
		return nil
	}
	return err
}

func (m *migration) write(h *site, chunk int64, version uint32) {
	m.t.Helper()
	off := chunk * deathChunk
	m.retry(h, "write", func() error {
		return request(h.v, &blockdev.Request{Op: blockdev.OpWrite, Off: off, Buf: filled(off, deathChunk, version)})
	})
	m.wrote[chunk] = version
}

func (m *migration) run() {
	t, a, b := m.t, m.s.a, m.s.b
	m.write(a, 0, 10)
	m.write(a, 1, 11)
	m.retry(a, "flush", func() error { return a.v.Flush() })
	m.retry(a, "grant", func() error { return a.v.Grant(context.Background(), m.g) })
	m.retry(b, "read", func() error { _, err := b.v.ReadAt(make([]byte, deathSize), 0); return err })
	m.write(a, 1, 12)
	m.write(a, 2, 13)
	told := func(h *site, s handover.Guest) { m.retry(h, "guest", func() error { h.guest(s); return nil }) }
	told(a, handover.GuestStopped)
	told(b, handover.GuestRuns)
	done := make(chan error, 1)
	for end := time.Now().Add(time.Minute); ; {
		if time.Now().After(end) {
			t.Fatalf("b does not get to write: a %+v, b %+v", a.v.Handover(), b.v.Handover())
		}
		// The giver may have to be started again for the receiver's write to be done, and the other way round.
		told(a, handover.GuestStopped)
		told(b, handover.GuestRuns)
		v := b.v
		go func() {
			done <- request(v, &blockdev.Request{Op: blockdev.OpWrite, Off: 3 * deathChunk, Buf: filled(3*deathChunk, deathChunk, 14)})
		}()
		var err error
		for waiting := true; waiting; {
			select {
			case err = <-done:
				waiting = false
			case <-time.After(5 * time.Millisecond):
				told(a, handover.GuestStopped)
				told(b, handover.GuestRuns)
			}
		}
		if err == nil {
			break
		}
	}
	m.wrote[3] = 14
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		told(a, handover.GuestStopped)
		told(b, handover.GuestRuns)
		if b.v.CacheMode() == cowfmt.CacheOn && len(b.v.Header().Grants) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("b does not become the owner: %+v", b.v.Handover())
		}
	}
	b.alone()
	if a.v != nil {
		a.is(handover.Given)
		a.close()
	}
	p := make([]byte, deathSize)
	m.retry(b, "read", func() error { _, err := b.v.ReadAt(p, 0); return err })
	for chunk := range int64(deathSize / deathChunk) {
		off := chunk * deathChunk
		if v := m.wrote[chunk]; v != 0 && string(p[off:off+deathChunk]) != string(filled(off, deathChunk, v)) {
			t.Errorf("chunk %d is not version %d, which was acknowledged", chunk, v)
		}
	}
	m.retry(b, "close", func() error {
		err := b.v.Close()
		b.v = nil
		return err
	})
}

// An engine is killed at each operation of its device in a migration; its successor goes on, and so does the migration.
func TestMigrationOutlivesEngines(t *testing.T) {
	for _, victim := range []string{"a", "b"} {
		for n := 1; ; n++ {
			killed := false
			ok := t.Run(fmt.Sprintf("%s %d", victim, n), func(t *testing.T) { killed = killAt(t, victim, n) })
			if !ok || !killed {
				t.Logf("%s: killed at %d operations", victim, n-1)
				break
			}
		}
	}
}

func killAt(t *testing.T, victim string, n int) (killed bool) {
	disk := blockdevtest.NewCrash(memoryStore(t, deathSize, deathChunk, sector, true), blockdevtest.CrashOptions{})
	m := memoryMaster(deathSize, false, 0, deathSize)
	s := newShared(t, nil, func() blockdev.Device { return m.Open(true) }, nil)
	var mu sync.Mutex
	for _, h := range []*site{s.a, s.b} {
		var current *blockdevtest.Crash
		dead := false
		h.store = func() blockdev.Device {
			mu.Lock()
			defer mu.Unlock()
			current, dead = disk.Open(false), false
			if c := current; h.name == victim && !killed {
				c.OnOp = func(at int, _ string, _, _ int64) {
					mu.Lock()
					defer mu.Unlock()
					if at == n && !killed {
						killed, dead = true, true
						if late := c.Kill(); n%2 == 0 {
							late.LandAll()
						} else {
							late.Drop()
						}
					}
				}
			}
			return current
		}
		h.dead = func() bool {
			mu.Lock()
			defer mu.Unlock()
			return dead
		}
	}
	newMigration(t, s).run()
	mu.Lock()
	defer mu.Unlock()
	return killed
}

// A write of one of the hosts fails, whichever it is: the migration goes on, and nothing is lost.
func TestMigrationOutlivesErrors(t *testing.T) {
	for _, victim := range []string{"a", "b"} {
		n := blockdevtest.EachFailure(t, blockdevtest.Rule{Ops: blockdevtest.Writes}, func(n int, f *blockdevtest.Failure) {
			t.Run(fmt.Sprintf("%s %d", victim, n), func(t *testing.T) {
				s := sharedClone(t, deathSize, deathChunk)
				for _, h := range []*site{s.a, s.b} {
					if inner := h.store; h.name == victim {
						h.store = func() blockdev.Device { return blockdevtest.NewFault(inner(), f) }
					}
				}
				newMigration(t, s).run()
			})
		})
		if n < 8 {
			t.Errorf("%s: %d writes failed: too few to prove anything", victim, n)
		}
	}
}
