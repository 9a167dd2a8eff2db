package store

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// taker is an engine that takes the store over from a dead owner, and sets a flag.
func taker(dead Dead, flag int) func(h *modelHost, dev blockdev.Device) error {
	return func(h *modelHost, dev blockdev.Device) error {
		h.started = true
		s, err := Open(dev)
		if err != nil {
			return err
		}
		if err := s.Takeover(context.Background(), h.me, dead, h.claiming()); err != nil {
			return err
		}
		if h.m.holder != nil {
			h.m.fail("%s owns the store while %s does", h.me.HostName, h.m.holder.me.HostName)
		}
		h.m.holder, h.owner = h, true
		return addFlag(s, flag)
	}
}

// rebooted is the dead owner's host, up again, which opens the store.
func rebooted(flag int) func(h *modelHost, dev blockdev.Device) error {
	return func(h *modelHost, dev blockdev.Device) error {
		h.started, h.me.Boot = true, uuid.New()
		s, err := Open(dev)
		if err != nil {
			return err
		}
		if _, err := s.Acquire(context.Background(), h.me, h.claiming()); err != nil {
			return err
		}
		if h.m.holder != nil {
			h.m.fail("%s owns the store while %s does", h.me.HostName, h.m.holder.me.HostName)
		}
		h.m.holder, h.owner = h, true
		return addFlag(s, flag)
	}
}

func addFlag(s *Store, flag int) error {
	l := leaf(0)
	if err := s.ReadLeaf(0, l.Flags); err != nil {
		return err
	}
	l.Flags[flag/8] |= 1 << (flag % 8)
	return s.WriteLeaves([]Leaf{l})
}

// deadStore is a store whose owner, the first of hosts, died with a flag set.
func deadStore(t *testing.T, host uuid.UUID) (*blockdevtest.Memory, Dead) {
	disk := created(t, 1<<20, 4096, 512)
	s := acquired(t, disk.Open(false), cowfmt.Owner{Host: host, Boot: host, Instance: uuid.New(), HostName: "h0"})
	check(t, s.WriteLeaves([]Leaf{leaf(0, 1)}))
	return disk, DeadOwner(s.Header())
}

// Two hosts have proof of an owner's death while its host is up again and opens the store; one of them may die. At most
// one gets it, and nothing is lost.
func TestTakeoverModel(t *testing.T) {
	hosts := hostsOfSlot(3)
	fresh, dead := deadStore(t, hosts[0])
	won := map[string]int{}
	for seed := range uint64(*claimSeeds) {
		rng := rand.New(rand.NewPCG(seed, 4))
		m := newModel(t, fresh, func(n int) int { return rng.IntN(n) }, hosts[:seed%4]...)
		if seed%2 == 1 {
			m.crash, m.all = 1, true
		}
		m.start(hosts[0], rebooted(10))
		m.start(hosts[1], taker(dead, 11))
		m.start(hosts[2], taker(dead, 12))
		m.run()
		for _, h := range m.hosts {
			switch {
			case h.result == nil:
				won[h.me.HostName]++
			case errors.Is(h.result, ErrOwned), errors.Is(h.result, ErrClaimed), errors.Is(h.result, ErrNotDead):
				won["refused"]++
			case errors.Is(h.result, errDied):
				won["died"]++
			default:
				t.Fatalf("seed %d: %v", seed, h.result)
			}
		}
		if err := m.verdict(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		got := flags(t, m.disk, 0)
		for i, h := range m.hosts {
			if bit := 10 + i; got[0]&2 == 0 || h.result == nil && got[bit/8]>>(bit%8)&1 == 0 {
				t.Fatalf("seed %d: a flag is lost: %x", seed, got[:4])
			}
		}
	}
	t.Log(won)
	for _, what := range []string{"h0", "h1", "h2", "refused", "died"} {
		if won[what] == 0 {
			t.Errorf("%s never", what)
		}
	}
}

// watched tells of a write to a header copy that was done.
type watched struct {
	blockdev.Device
	header func()
}

func (d watched) WriteAt(p []byte, off int64) (int, error) {
	n, err := d.Device.WriteAt(p, off)
	if len(p) == cowfmt.HeaderSize {
		d.header()
	}
	return n, err
}

// The owner lives after all, and goes on writing while it is taken over: in whatever order their steps come, the header
// is the new owner's in the end, what the old one had committed before is there, what the new one commits stays, and
// the old one has stopped.
func TestTakeoverOfALivingOwner(t *testing.T) {
	hosts := hostsOfSlot(2)
	before := 0
	for seed := range uint64(*claimSeeds / 3) {
		rng := rand.New(rand.NewPCG(seed, 5))
		disk := created(t, 1<<20, 4096, 512)
		living := acquired(t, disk.Open(false), cowfmt.Owner{Host: hosts[0], Boot: hosts[0], Instance: uuid.New(), HostName: "h0"})
		check(t, living.WriteLeaves([]Leaf{leaf(0, 1)}))
		m := newModel(t, disk, func(n int) int { return rng.IntN(n) }, hosts...)
		dead, begun, done := DeadOwner(living.Header()), false, false
		var committed []int
		m.start(hosts[0], func(h *modelHost, dev blockdev.Device) error {
			h.started, living.dev = true, dev
			for flag, set := 20, []int{1}; ; flag++ {
				set = append(set, flag)
				var err error
				if flag%3 == 0 {
					err = living.Update(func(h *cowfmt.Header) { h.Opens += 100 })
				} else if err = living.WriteLeaves([]Leaf{leaf(0, set...)}); err == nil && !begun {
					committed = append(committed, flag)
				}
				if err != nil {
					return err
				}
				if flag > 200 {
					return errors.New("the old owner never stops")
				}
			}
		})
		m.start(hosts[1], func(h *modelHost, dev blockdev.Device) error {
			err := taker(dead, 5)(h, watched{dev, func() { begun = true }})
			done = err == nil
			return err
		})
		m.run()
		if err := m.hosts[0].result; !errors.Is(err, ErrEpoch) && done {
			t.Fatalf("seed %d: the old owner: %v", seed, err)
		}
		if !done {
			t.Fatalf("seed %d: the new owner: %v", seed, m.hosts[1].result)
		}
		if h := open(t, m.disk).Header(); h.Owner.Host != hosts[1] || h.Epoch != 2 {
			t.Fatalf("seed %d: %v, owner %v", seed, h, h.Owner)
		}
		got := flags(t, m.disk, 0)
		for _, bit := range append(committed, 1, 5) {
			if got[bit/8]>>(bit%8)&1 == 0 {
				t.Fatalf("seed %d: flag %d is lost", seed, bit)
			}
		}
		before += len(committed)
	}
	if t.Logf("%d commits before the takeovers", before); before == 0 {
		t.Error("the old owner never committed")
	}
}
