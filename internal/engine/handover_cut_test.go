package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/handover"
	"github.com/virt-cow/virt-cow/internal/store"
)

// mayHave is what each chunk may have after a power cut: what was flushed last, or anything that was written since.
type mayHave struct {
	mu    sync.Mutex
	may   [deathSize / deathChunk][]uint32
	acked [deathSize / deathChunk]uint32
}

func (m *mayHave) issue(chunk int64, version uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.may[chunk] = append(m.may[chunk], version)
}

// flushed says that what was acknowledged survives from now on.
func (m *mayHave) flushed() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for chunk, v := range m.acked {
		if v != 0 {
			m.may[chunk] = []uint32{v}
		}
	}
}

func (m *mayHave) allows(p []byte) error {
	for chunk := range m.may {
		off, ok := int64(chunk*deathChunk), false
		for i := int64(0); i < deathChunk; i += sector {
			ok = false
			for _, v := range m.may[chunk] {
				ok = ok || string(p[off+i:off+i+sector]) == string(filled(off+i, sector, v))
			}
			if !ok {
				return fmt.Errorf("chunk %d, byte %d: none of versions %v", chunk, i, m.may[chunk])
			}
		}
	}
	return nil
}

// The power of the shared disk, and of both hosts, is cut at every operation of a migration: afterwards exactly one of them is
// the owner, gets to write without the other, and has everything that was flushed.
func TestPowerCutInMigration(t *testing.T) {
	const states = 4
	disk := blockdevtest.NewCrash(memoryStore(t, deathSize, deathChunk, sector, true), blockdevtest.CrashOptions{})
	master := memoryMaster(deathSize, false, 0, deathSize)
	openMaster := func() blockdev.Device { return master.Open(true) }
	s := newShared(t, nil, openMaster, nil)
	m := new(mayHave)
	for chunk := range m.may {
		m.may[chunk] = []uint32{0}
	}
	var one sync.Mutex
	cuts, owners := 0, map[string]int{}
	for _, h := range []*site{s.a, s.b} {
		h.store = func() blockdev.Device {
			c := disk.Open(false)
			c.OnOp = func(n int, op string, off, length int64) {
				one.Lock()
				defer one.Unlock()
				m.mu.Lock()
				defer m.mu.Unlock()
				for state := range c.States(states) {
					cuts++
					name, err := afterCut(t, s, state, m)
					if err != nil {
						t.Errorf("%s, operation %d, %s at %d: %v", h.name, n, op, off, err)
						return
					}
					owners[name]++
				}
			}
			return c
		}
	}
	write := func(h *site, chunk int64, version uint32) {
		t.Helper()
		m.issue(chunk, version)
		h.write(chunk*deathChunk, deathChunk, version)
		m.mu.Lock()
		m.acked[chunk] = version
		m.mu.Unlock()
	}
	check(t, s.a.open())
	write(s.a, 0, 10)
	write(s.a, 1, 11)
	check(t, s.a.v.Flush())
	m.flushed()
	write(s.a, 1, 12)
	g := s.a.grantTo(s.b)
	check(t, s.b.open(incoming(g)))
	write(s.a, 2, 13)
	s.a.guest(handover.GuestStopped)
	s.a.is(handover.Sealed)
	m.flushed()
	write(s.a, 4, 14) // the guest is back, and stops again
	s.a.guest(handover.GuestStopped)
	s.a.is(handover.Sealed)
	m.flushed()
	s.b.guest(handover.GuestRuns)
	write(s.b, 3, 15)
	write(s.b, 1, 16)
	check(t, s.b.v.Flush())
	m.flushed()
	s.b.is(handover.Owner)
	s.a.is(handover.Given)
	write(s.b, 5, 17)
	s.b.alone()
	s.a.close()
	s.b.close()
	m.flushed()
	t.Logf("%d power cuts; the owner then: %v", cuts, owners)
	if cuts < 200 || owners["a"] == 0 || owners["b"] == 0 {
		t.Errorf("too few to prove anything")
	}
}

// afterCut boots both hosts on what a power cut left, and says which of them had the volume.
func afterCut(t *testing.T, s *shared, state *blockdevtest.Memory, m *mayHave) (string, error) {
	st, err := store.Open(state)
	if err != nil {
		return "", err
	}
	h := s.a
	// Nobody's after b's clean close, whose claim may be up still: that is b's to take back.
	if o := st.Header().Owner; o != nil && o.Host == s.b.host || o == nil && st.Header().Epoch > 1 {
		h = s.b
	}
	for range 2 {
		again := &site{
			tb: t, name: h.name, host: h.host, boot: uuid.New(), cache: newCachePath(t.TempDir()), master: h.master,
			store: func() blockdev.Device { return state.Open(false) },
		}
		if err := again.open(); err != nil {
			if errors.Is(err, store.ErrOwned) && h == s.a { // it was handed over when a was back: b had been active
				h = s.b
				continue
			}
			return "", fmt.Errorf("%s: %w", h.name, err)
		}
		if now := again.v.Header(); len(now.Grants) > 0 {
			err := again.v.EndGrant(context.Background(), now.Grants[0].ID, true) // b's engine is gone for sure
			if err != nil && again.state() == handover.Given {
				if err := again.v.Close(); err != nil {
					return "", err
				}
				h = s.b
				continue
			}
			if err != nil {
				return "", err
			}
		} else if now.Owner.Host != h.host { // handed over, whether or not the engine is in that state yet
			if err := again.v.Close(); err != nil {
				return "", err
			}
			h = s.b
			continue
		}
		p := make([]byte, deathSize)
		if _, err := again.v.ReadAt(p, 0); err != nil {
			return "", err
		}
		if err := m.allows(p); err != nil {
			return "", fmt.Errorf("%s: %w", h.name, err)
		}
		if _, err := again.v.WriteAt(filled(0, deathChunk, 99), 0); err != nil {
			return "", err
		}
		if err := again.v.Close(); err != nil {
			return "", err
		}
		return h.name, nil
	}
	return "", errors.New("neither host is the owner")
}
