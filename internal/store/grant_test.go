package store

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// acquired is a store that a host has open, on a device that others may see.
func acquired(t *testing.T, dev blockdev.Device, me cowfmt.Owner) *Store {
	t.Helper()
	s := open(t, dev)
	_, err := s.Acquire(t.Context(), me, quick())
	check(t, err)
	return s
}

func grantTo(to cowfmt.Owner) cowfmt.Grant {
	return cowfmt.Grant{ID: uuid.New(), Host: to.Host, Boot: to.Boot, HostName: to.HostName, Address: "to:1", Slot: 3, Since: 7}
}

// flags are a leaf's flags as a fresh opening of the device finds them.
func flags(t *testing.T, dev blockdev.Device, index int64) []byte {
	t.Helper()
	got := make([]byte, LeafFlags)
	check(t, open(t, dev).ReadLeaf(index, got))
	return got
}

func wantFlags(t *testing.T, dev blockdev.Device, want Leaf, what string) {
	t.Helper()
	if got := flags(t, dev, want.Index); !bytes.Equal(got, want.Flags) {
		t.Errorf("%s: leaf %d has other flags", what, want.Index)
	}
}

// A store goes from one host to another: who may write what, at each step.
func TestHandOver(t *testing.T) {
	dev := created(t, 34<<40, 4096, 4096)
	a, b := host("a"), host("b")
	giver := acquired(t, dev.Open(false), a)
	check(t, giver.WriteLeaves([]Leaf{leaf(0, 1)}))
	g := grantTo(b)
	check(t, giver.Grant(g))
	check(t, giver.Grant(g)) // once more
	if err := giver.Grant(grantTo(host("c"))); !errors.Is(err, ErrGranted) || !strings.Contains(err.Error(), "b (host") {
		t.Errorf("a second grant: %v", err)
	}
	if err := giver.SetCache(cowfmt.CacheOn); !errors.Is(err, ErrGranted) {
		t.Errorf("cache on with a grant: %v", err)
	}
	if err := giver.Release(); !errors.Is(err, ErrGranted) {
		t.Errorf("closed with a grant: %v", err)
	}

	to := open(t, dev.Open(false))
	if _, err := to.Receive(g.ID, b.Host, uuid.New()); !errors.Is(err, ErrNoGrant) {
		t.Errorf("of another boot: %v", err)
	}
	got, err := to.Receive(g.ID, b.Host, b.Boot)
	if check(t, err); got != g {
		t.Errorf("received %v, want %v", got, g)
	}
	if err := to.Update(func(*cowfmt.Header) {}); !errors.Is(err, ErrNotOwner) {
		t.Errorf("a receiver's header write: %v", err)
	}
	check(t, to.WriteLeaves([]Leaf{leaf(0, 1, 2)}))
	far := leaf(groupLeaves, 5)
	if err := to.WriteLeaves([]Leaf{leaf(0, 1, 2, 3), far}); !errors.Is(err, ErrUnready) {
		t.Errorf("a group that is not ready: %v", err)
	}
	wantFlags(t, dev, leaf(0, 1, 2), "nothing of it is written")
	for all := false; !all; {
		all, err = giver.ReadyGroups(1)
		check(t, err)
	}
	check(t, to.WriteLeaves([]Leaf{far})) // it finds by itself that the group is ready now
	if mine, err := to.TakeOwnership(g.ID); mine || err != nil {
		t.Errorf("before the hand-over: %v, %v", mine, err)
	}

	was := open(t, dev).Header()
	check(t, giver.HandOver(g.ID))
	check(t, giver.HandOver(g.ID))
	for what, err := range map[string]error{
		"update": giver.Update(func(*cowfmt.Header) {}), "table": giver.WriteLeaves([]Leaf{leaf(0, 9)}), "close": giver.Release(),
		"grant": giver.Grant(g), "end": giver.EndGrant(g.ID), "cache": giver.SetCache(cowfmt.CacheOn),
	} {
		if !errors.Is(err, ErrNotOwner) {
			t.Errorf("%s after the hand-over: %v", what, err)
		}
	}
	h := open(t, dev).Header()
	if o := h.Owner; o.Host != b.Host || o.Boot != b.Boot || o.Instance != g.ID || o.Address != "to:1" || o.HostName != "b" ||
		h.Epoch != was.Epoch+1 || h.Sequence != was.Sequence+1 || len(h.Grants) > 0 || h.Opens != was.Opens+1 || h.Cache != cowfmt.CacheOff {
		t.Errorf("handed over as %v, %v", h, h.Owner)
	}
	check(t, to.WriteLeaves([]Leaf{leaf(0, 1, 2, 4)})) // not the owner yet, as far as it knows
	mine, err := to.TakeOwnership(g.ID)
	if check(t, err); !mine || !to.Owns() {
		t.Fatal("handed over, but not the owner")
	}
	check(t, to.SetCache(cowfmt.CacheOn))
	check(t, to.WriteLeaves([]Leaf{leaf(0, 1, 2, 4, 5)}))
	wantFlags(t, dev, leaf(0, 1, 2, 4, 5), "the new owner")
	wantFlags(t, dev, far, "the receiver")
	check(t, giver.Reread())
	if giver.Header().Owner.Host != b.Host || giver.Header().Epoch != h.Epoch {
		t.Error("the giver does not see the new owner")
	}
	check(t, to.Release())
	acquired(t, dev.Open(false), a)
}

// A grant that has ended ends what the receiver may write, for good.
func TestEndedGrant(t *testing.T) {
	dev := created(t, 1<<20, 4096, 512)
	a, b := host("a"), host("b")
	giver, g := acquired(t, dev.Open(false), a), grantTo(b)
	check(t, giver.WriteLeaves([]Leaf{leaf(0, 1)}))
	check(t, giver.Grant(g))
	to := open(t, dev.Open(false))
	_, err := to.Receive(g.ID, b.Host, b.Boot)
	check(t, err)
	check(t, giver.EndGrant(g.ID))
	check(t, giver.EndGrant(g.ID))
	for range 2 {
		if err := to.WriteLeaves([]Leaf{leaf(0, 1, 2)}); !errors.Is(err, ErrEpoch) || !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), "a (host") {
			t.Errorf("%v: want ErrEpoch that names the owner", err)
		}
		check(t, giver.Grant(g)) // too late for the old handle
	}
	if mine, err := to.TakeOwnership(g.ID); mine || !errors.Is(err, ErrEpoch) {
		t.Errorf("%v, %v", mine, err)
	}
	wantFlags(t, dev, leaf(0, 1), "an ended grant")
	again := open(t, dev.Open(false))
	if _, err := again.Receive(g.ID, b.Host, b.Boot); err != nil {
		t.Error(err)
	}
}

// The power goes at each operation of a grant, its end and a hand-over. What is found is the header before or after.
func TestHandOverPowerCut(t *testing.T) {
	a, b := host("a"), host("b")
	g := grantTo(b)
	base := created(t, 1<<20, 4096, 512)
	first := acquired(t, base.Open(false), a)
	check(t, first.WriteLeaves([]Leaf{leaf(0, 1)}))
	granted := base.Fork()
	check(t, acquired(t, granted.Open(false), a).Grant(g))
	for name, c := range map[string]struct {
		disk *blockdevtest.Memory
		do   func(s *Store) error
		done func(h *cowfmt.Header) bool
	}{
		"grant": {base, func(s *Store) error { return s.Grant(g) }, func(h *cowfmt.Header) bool { return len(h.Grants) == 1 }},
		"end":   {granted, func(s *Store) error { return s.EndGrant(g.ID) }, func(h *cowfmt.Header) bool { return len(h.Grants) == 0 }},
		"hand over": {granted, func(s *Store) error { return s.HandOver(g.ID) }, func(h *cowfmt.Header) bool {
			if (h.Owner.Host == b.Host) != (len(h.Grants) == 0 && h.Epoch == 2) {
				t.Errorf("half a hand-over: %v, %v", h, h.Owner)
			}
			return h.Owner.Host == b.Host
		}},
	} {
		dev := blockdevtest.NewCrash(c.disk, blockdevtest.CrashOptions{})
		s := acquired(t, dev, a)
		before, after := 0, 0
		look := func() {
			for state := range dev.States(40) {
				wantFlags(t, state, leaf(0, 1), name)
				if c.done(open(t, state).Header()) {
					after++
					continue
				}
				before++
				if err := c.do(acquired(t, state.Open(false), a)); err != nil { // the next engine does it
					t.Errorf("%s: after a power cut: %v", name, err)
				}
				if s := open(t, state); !c.done(s.Header()) || s.Problems() != [2]error{} {
					t.Errorf("%s: not done after a power cut", name)
				}
			}
		}
		dev.OnOp = func(int, string, int64, int64) { look() }
		check(t, c.do(s))
		if before == 0 || after == 0 {
			t.Errorf("%s: %d states before, %d after", name, before, after)
		}
		before = 0
		if look(); before > 0 {
			t.Errorf("%s: not durable", name)
		}
	}
}

// Each operation of a hand-over fails once: nothing is written under the old owner afterwards, and done again it is done.
func TestHandOverEachFailure(t *testing.T) {
	a, b := host("a"), host("b")
	base := created(t, 1<<20, 4096, 512)
	check(t, acquired(t, base.Open(false), a).WriteLeaves([]Leaf{leaf(0, 1)}))
	for _, torn := range []int{0, 5} {
		n := blockdevtest.EachFailure(t, blockdevtest.Rule{Torn: torn}, func(n int, f *blockdevtest.Failure) {
			disk, g := base.Fork(), grantTo(b)
			check(t, acquired(t, disk.Open(false), a).Grant(g))
			s := acquired(t, disk.Open(false), a)
			s.dev = blockdevtest.NewFault(s.dev, f)
			to := open(t, disk.Open(false))
			_, err := to.Receive(g.ID, b.Host, b.Boot)
			check(t, err)
			err = s.HandOver(g.ID)
			mine, terr := to.TakeOwnership(g.ID)
			if check(t, terr); err == nil && !mine {
				t.Errorf("%d: handed over, but not the owner", n)
			}
			if err != nil {
				if n > 4 { // behind its four reads
					if err := s.WriteLeaves([]Leaf{leaf(0, 2)}); !errors.Is(err, ErrNotOwner) {
						t.Errorf("%d: writes after a failed hand-over: %v", n, err)
					}
				}
				check(t, s.HandOver(g.ID))
			}
			halfPatience = 0
			mine, err = to.TakeOwnership(g.ID)
			halfPatience = 10 * time.Second
			if check(t, err); !mine {
				t.Errorf("%d: not the owner", n)
			}
			check(t, to.Update(func(*cowfmt.Header) {}))
			if s := open(t, disk); s.Header().Owner.Instance != g.ID || s.Problems() != [2]error{} {
				t.Errorf("%d: %v, %v", n, s.Header().Owner, s.Problems())
			}
		})
		if n < 8 {
			t.Errorf("only %d operations", n)
		}
	}
}

// A receiver leaves the header alone while its giver still has a copy to write.
func TestHalfHandOver(t *testing.T) {
	disk := created(t, 1<<20, 4096, 512)
	a, b := host("a"), host("b")
	g := grantTo(b)
	slow := blockdevtest.NewDelay(disk.Open(false))
	giver := acquired(t, slow, a)
	check(t, giver.Grant(g))
	to := open(t, disk.Open(false))
	_, err := to.Receive(g.ID, b.Host, b.Boot)
	check(t, err)
	n := 0
	slow.HoldIf(func(string, int64, int64) bool { n++; return n == 2 })
	done := make(chan error)
	go func() { done <- giver.HandOver(g.ID) }()
	slow.WaitHeld(1)
	if mine, err := to.TakeOwnership(g.ID); mine || err != nil {
		t.Errorf("with one copy: %v, %v", mine, err)
	}
	if open(t, disk).Header().Owner.Host != b.Host {
		t.Error("the first copy is not there")
	}
	check(t, slow.Release())
	check(t, <-done)
	if mine, err := to.TakeOwnership(g.ID); !mine || err != nil {
		t.Errorf("with both: %v, %v", mine, err)
	}
}

// Slots are found again as they were written, and counted on by whoever has them next.
func TestMigrationSlots(t *testing.T) {
	dev := created(t, 1<<20, 4096, 4096)
	s, me := open(t, dev.Open(false)), host("a")
	m := cowfmt.MigrationSlot{Host: me.Host, HostName: "a", State: cowfmt.SlotOpen, Epoch: 1, Grant: uuid.New(), Time: 5}
	for want := uint64(1); want < 4; want++ {
		check(t, s.WriteSlot(9, &m))
		got, used, err := open(t, dev).ReadSlot(9)
		m.Sequence = want
		if check(t, err); !used || got != m {
			t.Errorf("%v, want %v", got, m)
		}
		if want == 2 {
			s = open(t, dev.Open(false))
		}
	}
	all, err := s.Slots()
	if check(t, err); len(all) != 1 || all[0].Slot != 9 || all[0].MigrationSlot != m {
		t.Errorf("%+v", all)
	}
	check(t, s.WriteSlot(9, nil))
	if _, used, err := s.ReadSlot(9); used || err != nil {
		t.Errorf("freed: %v, %v", used, err)
	}
	check(t, s.WriteSlot(9, &m))
	if got, _, _ := s.ReadSlot(9); got.Sequence != 4 {
		t.Errorf("sequence %d after it was free", got.Sequence)
	}
	p := bytes.Repeat([]byte{7}, cowfmt.SlotSize)
	_, err = dev.WriteAt(p, cowfmt.MigrationOffset+5*cowfmt.SlotSize)
	check(t, err)
	if _, _, err := s.ReadSlot(5); !errors.Is(err, cowfmt.ErrCorrupt) {
		t.Errorf("damaged: %v", err)
	}
	check(t, s.WriteSlot(5, &m))
	for _, slot := range []int{-1, cowfmt.MigrationSlots} {
		if err := s.WriteSlot(slot, &m); !errors.Is(err, cowfmt.ErrInvalid) {
			t.Errorf("slot %d: %v", slot, err)
		}
	}
	m.State = 99
	if err := s.WriteSlot(9, &m); !errors.Is(err, cowfmt.ErrInvalid) {
		t.Error(err)
	}
}

// A slot's write is whole or not there after a power cut, and there once it was written.
func TestSlotPowerCut(t *testing.T) {
	dev := blockdevtest.NewCrash(created(t, 1<<20, 4096, 512), blockdevtest.CrashOptions{})
	s := open(t, dev)
	m := cowfmt.MigrationSlot{Host: uuid.New(), State: cowfmt.SlotOpen}
	check(t, s.WriteSlot(2, &m))
	low, states := uint64(1), 0
	look := func() {
		for state := range dev.States(30) {
			states++
			got, used, err := open(t, state).ReadSlot(2)
			if check(t, err); !used || got.Sequence < low {
				t.Errorf("found %v, wrote %d", got, low)
			}
		}
	}
	dev.OnOp = func(int, string, int64, int64) { look() }
	for i := range uint64(4) {
		check(t, s.WriteSlot(2, &m))
		low = i + 2
		look()
	}
	if states < 50 {
		t.Errorf("%d states", states)
	}
}

// Both hosts of a hand-over get slots of their own, the same as the last time, also when all are in use.
func TestChooseSlots(t *testing.T) {
	dev := created(t, 1<<20, 4096, 512)
	a := host("a")
	s := acquired(t, dev.Open(false), a)
	hosts := hostsOfSlot(cowfmt.MigrationSlots + 6) // they all want the same one
	slots := map[uuid.UUID]int{}
	for _, h := range hosts {
		my, their, err := s.ChooseSlots(a.Host, h)
		if check(t, err); my == their {
			t.Fatalf("both have slot %d", my)
		}
		for id, slot := range map[uuid.UUID]int{a.Host: my, h: their} {
			check(t, s.WriteSlot(slot, &cowfmt.MigrationSlot{Host: id, State: cowfmt.SlotIdle}))
			slots[id] = slot
		}
		my2, their2, err := s.ChooseSlots(a.Host, h)
		if check(t, err); my2 != my || their2 != their {
			t.Errorf("then %d and %d, now %d and %d", my, their, my2, their2)
		}
	}
	if slots[a.Host] != firstSlot(a.Host) && slots[a.Host] != firstSlot(a.Host)+1 {
		t.Errorf("the owner's slot is %d", slots[a.Host])
	}
	g := cowfmt.Grant{ID: uuid.New(), Host: hosts[len(hosts)-1], Boot: uuid.New(), Slot: uint16(slots[hosts[len(hosts)-1]])}
	check(t, s.Grant(g))
	for range 70 {
		_, their, err := s.ChooseSlots(a.Host, uuid.New())
		if check(t, err); their == int(g.Slot) {
			t.Fatal("a slot that a grant names was given away")
		}
		check(t, s.WriteSlot(their, &cowfmt.MigrationSlot{Host: uuid.New(), State: cowfmt.SlotIdle}))
	}
	if _, _, err := open(t, dev).ChooseSlots(a.Host, hosts[0]); !errors.Is(err, ErrNotOwner) {
		t.Errorf("not the owner: %v", err)
	}
}
