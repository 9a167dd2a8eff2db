package store

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// takeover is a host's that has proof that the present owner is dead.
func takeover(t *testing.T, dev blockdev.Device, me cowfmt.Owner) *Store {
	t.Helper()
	s := open(t, dev)
	check(t, s.Takeover(t.Context(), me, DeadOwner(s.Header()), quick()))
	return s
}

// A dead host's store is taken over, to and fro: the flags stay, in the other area and under the next epoch.
func TestTakeover(t *testing.T) {
	dev := created(t, 34<<40, 4096, 512)
	hosts := []cowfmt.Owner{host("a"), host("b"), host("c")}
	want := []Leaf{leaf(0, 1, 2), leaf(7, 9), leaf(groupLeaves+3, 4)}
	s := acquired(t, dev.Open(false), hosts[0])
	check(t, s.WriteLeaves(want))
	check(t, s.WriteLeaves([]Leaf{leaf(2*groupLeaves + 1)})) // ready, without a flag
	for i := range 5 {
		me := hosts[(i+1)%3]
		was := open(t, dev).Header()
		s = takeover(t, dev.Open(false), me)
		h := open(t, dev).Header()
		if *h.Owner != me || h.Epoch != was.Epoch+1 || h.TableEpoch != h.Epoch || h.ActiveTable != 1-was.ActiveTable ||
			h.Progress.Kind != 0 || h.Opens != was.Opens+1 || h.Cache != cowfmt.CacheOn || h.Sequence <= was.Sequence {
			t.Fatalf("%d: taken over as %+v", i, h)
		}
		if !h.GroupReady(0) || !h.GroupReady(1) || h.GroupReady(2) {
			t.Error("other groups are ready than those with a flag")
		}
		want = append(want, leaf(int64(20+i), i))
		check(t, s.WriteLeaves(want[len(want)-1:]))
		for _, l := range want {
			wantFlags(t, dev, l, "taken over")
		}
		if left := raised(t, s); left > 0 {
			t.Errorf("%d claims are up", left)
		}
	}
	check(t, s.Release())
}

// Without a table only the header changes.
func TestTakeoverWithoutTable(t *testing.T) {
	state := &cowfmt.Header{
		UUID: uuid.New(), Name: "raw", Role: cowfmt.RoleState, Size: 1 << 20, ChunkSize: 4096, Epoch: 1, Sequence: 1, Cache: cowfmt.CacheOn,
		Origin: &cowfmt.Locator{Kind: cowfmt.LocatorRaw, Address: "/raw"},
	}
	loose := header(t, 1<<20, 4096)
	loose.CutLoose = true
	for _, h := range []*cowfmt.Header{state, loose} {
		disk := memory(h, 512)
		check(t, Create(disk, h))
		acquired(t, disk.Open(false), host("a"))
		crash := blockdevtest.NewCrash(disk, blockdevtest.CrashOptions{})
		crash.OnOp = func(_ int, op string, off, _ int64) {
			if off >= cowfmt.MetadataSize {
				t.Errorf("%v: %s at %d", h.Role, op, off)
			}
		}
		b := host("b")
		s := takeover(t, crash, b)
		check(t, s.Update(func(*cowfmt.Header) {}))
		if got := open(t, crash).Header(); *got.Owner != b || got.Epoch != 2 || got.ActiveTable != 0 || got.Progress.Kind != 0 {
			t.Errorf("%v: %+v", h.Role, got)
		}
	}
}

// What is not proved, or can't be read, is refused, and nothing has changed.
func TestTakeoverRefused(t *testing.T) {
	a, b, c := host("a"), host("b"), host("c")
	disk := created(t, 1<<20, 4096, 512)
	s := acquired(t, disk.Open(false), a)
	check(t, s.WriteLeaves([]Leaf{leaf(0, 1)}))
	dead := DeadOwner(s.Header())
	for name, d := range map[string]struct {
		change func(disk *blockdevtest.Memory, d *Dead)
		want   error
	}{
		"another host":       {func(_ *blockdevtest.Memory, d *Dead) { d.Host = c.Host }, ErrNotDead},
		"another boot":       {func(_ *blockdevtest.Memory, d *Dead) { d.Boot = c.Boot }, ErrNotDead},
		"another engine":     {func(_ *blockdevtest.Memory, d *Dead) { d.Instance = c.Boot }, ErrNotDead},
		"another epoch":      {func(_ *blockdevtest.Memory, d *Dead) { d.Epoch++ }, ErrNotDead},
		"nobody":             {func(disk *blockdevtest.Memory, _ *Dead) { check(t, acquired(t, disk.Open(false), a).Release()) }, ErrNotDead},
		"taken over already": {func(disk *blockdevtest.Memory, _ *Dead) { takeover(t, disk.Open(false), c) }, ErrNotDead},
		"granted to a third": {func(disk *blockdevtest.Memory, _ *Dead) { check(t, acquired(t, disk.Open(false), a).Grant(grantTo(c))) }, ErrGranted},
		"being opened": {func(disk *blockdevtest.Memory, _ *Dead) {
			check(t, open(t, disk).writeSlot(3, &cowfmt.ClaimSlot{Host: c.Host, Boot: c.Boot, Instance: c.Instance, Nonce: 1}))
		}, ErrClaimed},
		"a damaged sector": {func(disk *blockdevtest.Memory, _ *Dead) {
			_, err := disk.WriteAt(make([]byte, 512), s.Header().Layout.Table[0])
			check(t, err)
		}, cowfmt.ErrCorrupt},
	} {
		disk, d2 := disk.Fork(), dead
		d.change(disk, &d2)
		was := open(t, disk).Header()
		st := open(t, disk.Open(false))
		err := st.Takeover(t.Context(), b, d2, quick())
		if !errors.Is(err, d.want) || !strings.Contains(err.Error(), "disk") {
			t.Errorf("%s: %v, want %v", name, err, d.want)
		}
		if now := open(t, disk).Header(); now.Epoch != was.Epoch || now.Sequence != was.Sequence || st.Owns() {
			t.Errorf("%s: it was written to", name)
		}
	}
	// What the dead had raised when they died doesn't count, and goes.
	check(t, s.Grant(grantTo(c)))
	check(t, s.writeSlot(3, &cowfmt.ClaimSlot{Host: a.Host, Boot: a.Boot, Instance: a.Instance, Nonce: 1}))
	st := open(t, disk.Open(false))
	dead = DeadOwner(st.Header())
	dead.Receivers = []uuid.UUID{c.Host}
	check(t, st.Takeover(t.Context(), b, dead, quick()))
	if raised(t, st) > 0 || len(st.Header().Grants) > 0 {
		t.Errorf("%v, %d claims", st.Header().Grants, raised(t, st))
	}
}

// Who was taken over finds out before it writes, says by whom, and stays stopped.
func TestEpoch(t *testing.T) {
	dev := created(t, 1<<20, 4096, 512)
	old := acquired(t, dev.Open(false), host("a"))
	check(t, old.WriteLeaves([]Leaf{leaf(0, 1)}))
	idle := open(t, dev.Open(false)) // a copy of what was, to put back
	s := takeover(t, dev.Open(false), host("b"))
	check(t, s.WriteLeaves([]Leaf{leaf(0, 1, 2)}))
	moved := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, ErrEpoch) || !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), "b (host") {
			t.Errorf("%s: %v", what, err)
		}
	}
	moved("table", old.WriteLeaves([]Leaf{leaf(0, 1, 3)}))
	moved("header", old.Update(func(h *cowfmt.Header) { h.Generation++ }))
	back, err := idle.Header().Encode()
	check(t, err)
	for i := range cowfmt.HeaderOffsets {
		check(t, writeHeader(dev, i, back))
	}
	moved("table, though the header is as it was", old.WriteLeaves([]Leaf{leaf(0, 1, 3)}))
	moved("close", old.Release())
	_, err = old.Acquire(t.Context(), host("a"), quick())
	moved("open", err)
}

// On a device that only this host sees nothing is read before a write; on another one the first blocks of the header.
func TestEpochCost(t *testing.T) {
	for _, shared := range []bool{false, true} {
		reads := blockdevtest.NewFailure(blockdevtest.Rule{Ops: blockdevtest.Reads})
		s := open(t, blockdevtest.NewFault(created(t, 1<<20, 4096, 512), reads))
		_, err := s.Acquire(t.Context(), host("a"), Claiming{Patience: 1})
		check(t, err)
		s.SetClaiming(Claiming{Shared: shared})
		check(t, s.WriteLeaves([]Leaf{leaf(0, 1)}))
		before := reads.Seen()
		check(t, s.WriteLeaves([]Leaf{leaf(0, 1, 2)}))
		if got := reads.Seen() - before; got != map[bool]int{false: 0, true: 2}[shared] {
			t.Errorf("shared %v: %d reads", shared, got)
		}
	}
}

// One header copy that can't be read, or is damaged, costs nothing; two stop writing, for as long as it lasts.
func TestEpochUnreadable(t *testing.T) {
	disk := created(t, 1<<20, 4096, 512)
	a := host("a")
	for _, which := range [][]int{{0}, {1}, {0, 1}} {
		fork := disk.Fork()
		s := acquired(t, fork.Open(false), a)
		check(t, s.WriteLeaves([]Leaf{leaf(0, 1)}))
		device := s.dev
		for _, i := range which {
			s.dev = blockdevtest.NewFault(s.dev, blockdevtest.NewFailure(blockdevtest.Rule{
				Ops: blockdevtest.Reads, Off: cowfmt.HeaderOffsets[i], Length: cowfmt.HeaderSize, N: 1, Forever: true,
			}))
		}
		if err := s.WriteLeaves([]Leaf{leaf(0, 1, 2)}); (err == nil) != (len(which) == 1) || errors.Is(err, ErrEpoch) {
			t.Errorf("unreadable %v: %v", which, err)
		}
		s.dev = device
		check(t, s.WriteLeaves([]Leaf{leaf(0, 1, 2)}))
		for _, i := range which {
			_, err := s.dev.WriteAt(make([]byte, 512), cowfmt.HeaderOffsets[i])
			check(t, err)
		}
		if err := s.WriteLeaves([]Leaf{leaf(0, 1, 2, 3)}); (err == nil) != (len(which) == 1) {
			t.Errorf("damaged %v: %v", which, err)
		}
		if len(which) == 2 {
			continue
		}
		check(t, s.Update(func(*cowfmt.Header) {}))
		if p := open(t, fork).Problems(); p != [2]error{} {
			t.Errorf("not mended: %v", p)
		}
	}
}

// A takeover whose first header write was cut off stops the owner that lives; opening the store again mends it.
func TestTornTakeover(t *testing.T) {
	disk := created(t, 1<<20, 4096, 512)
	a, b := host("a"), host("b")
	b.Address = strings.Repeat("x", 500) // or its header would fit into the sector that is written
	old := acquired(t, disk.Open(false), a)
	check(t, old.WriteLeaves([]Leaf{leaf(0, 1)}))
	for copy := range cowfmt.HeaderOffsets {
		h := old.Header().Clone()
		h.Epoch, h.Owner = h.Epoch+1, &b
		encoded, err := h.Encode()
		check(t, err)
		_, err = disk.WriteAt(encoded[:512], cowfmt.HeaderOffsets[copy])
		check(t, err)
		if err := old.WriteLeaves([]Leaf{leaf(0, 1, 2)}); !errors.Is(err, ErrEpoch) {
			t.Errorf("copy %d: %v", copy, err)
		}
		old = open(t, disk.Open(false))
		resumed, err := old.Acquire(t.Context(), a, quick())
		if check(t, err); !resumed {
			t.Error("not resumed")
		}
		check(t, old.WriteLeaves([]Leaf{leaf(0, 1)}))
	}
}

// cutTakeover is a takeover by b of what a left, on a device of which look sees every state a power cut may leave.
func cutTakeover(t *testing.T, do func(s *Store) error, base *blockdevtest.Memory, look func(n int, state *blockdevtest.Memory)) {
	dev := blockdevtest.NewCrash(base, blockdevtest.CrashOptions{})
	s := open(t, dev)
	dev.OnOp = func(n int, _ string, _, _ int64) {
		for state := range dev.States(25) {
			look(n, state)
		}
	}
	check(t, do(s))
	for state := range dev.States(25) {
		look(0, state)
	}
}

// The power goes at each operation of a takeover. Whoever comes next finds a whole store, with every flag, and takes it:
// the old owner, the new one by opening it, a third one by another takeover.
func TestTakeoverPowerCut(t *testing.T) {
	a, b, c := host("a"), host("b"), host("c")
	base := created(t, 1<<20, 4096, 512)
	want := leaf(0, 1, 100, 200)
	check(t, acquired(t, base.Open(false), a).WriteLeaves([]Leaf{want}))
	base2 := base.Fork() // both areas have been used
	takeover(t, base2.Open(false), c)
	a2 := a
	check(t, takeover(t, base2.Open(false), a2).WriteLeaves([]Leaf{want}))
	stages := map[string]int{}
	for _, disk := range []*blockdevtest.Memory{base, base2} {
		cutTakeover(t, func(s *Store) error { return s.Takeover(t.Context(), b, DeadOwner(s.Header()), quick()) }, disk,
			func(n int, state *blockdevtest.Memory) {
				wantFlags(t, state, want, "after a power cut")
				h := open(t, state).Header()
				stage := h.Owner.HostName
				if h.Progress.Kind != 0 {
					stage += " begun"
				}
				stages[stage]++
				if n == 0 && stage != "b" {
					t.Errorf("done, but found %s", stage)
				}
				_, err := state.Open(false).WriteAt(make([]byte, cowfmt.ClaimSlots*cowfmt.SlotSize), cowfmt.ClaimOffset) // the operator's word
				check(t, err)
				third := state.Fork()
				after := takeover(t, third.Open(false), c)
				check(t, after.WriteLeaves([]Leaf{leaf(0, 1, 100, 200, 250)}))
				wantFlags(t, third, leaf(0, 1, 100, 200, 250), "a third host")
				next := b
				if stage == "a" {
					next = a
				}
				for _, boot := range []uuid.UUID{next.Boot, uuid.New()} {
					fork := state.Fork()
					next.Boot = boot
					s := acquired(t, fork.Open(false), next)
					if h := s.Header(); h.Progress.Kind != 0 || stage == "b begun" && h.TableEpoch != 3 && h.TableEpoch != 5 {
						t.Errorf("%s, opened: %+v", stage, h)
					}
					check(t, s.WriteLeaves([]Leaf{leaf(0, 1, 100, 200, 250)}))
					wantFlags(t, fork, leaf(0, 1, 100, 200, 250), "opened")
				}
			})
	}
	t.Log(stages)
	if stages["a"] == 0 || stages["b begun"] == 0 || stages["b"] == 0 {
		t.Error("not all stages were seen")
	}
}

// The same for an owner that drops a receiver which may have been writing.
func TestTakeoverGrantPowerCut(t *testing.T) {
	a, b := host("a"), host("b")
	g := grantTo(b)
	base := created(t, 1<<20, 4096, 512)
	s := acquired(t, base.Open(false), a)
	want := leaf(0, 1, 100, 200)
	check(t, s.WriteLeaves([]Leaf{want}))
	check(t, s.Grant(g))
	stages := map[string]int{}
	cutTakeover(t, func(s *Store) error {
		_, err := s.Acquire(t.Context(), a, quick())
		check(t, err)
		return s.TakeoverGrant(g.ID)
	}, base, func(_ int, state *blockdevtest.Memory) {
		wantFlags(t, state, want, "after a power cut")
		s := acquired(t, state.Open(false), a)
		h := s.Header()
		switch {
		case len(h.Grants) == 0:
			stages["without"]++
			if h.TableEpoch != h.Epoch || h.ActiveTable != 1 || h.Epoch > 3 {
				t.Errorf("%+v", h)
			}
		default:
			stages["granted"]++
			check(t, s.TakeoverGrant(g.ID))
		}
		wantFlags(t, state, want, "opened")
		if s.Header().Progress.Kind != 0 {
			t.Error("not finished")
		}
	})
	if stages["granted"] == 0 || stages["without"] == 0 {
		t.Errorf("%v", stages)
	}
}

// Each operation of a takeover fails once. Done again it is done, and until it is nothing else writes to the table.
func TestTakeoverEachFailure(t *testing.T) {
	a, b := host("a"), host("b")
	base := created(t, 1<<20, 4096, 512)
	check(t, acquired(t, base.Open(false), a).WriteLeaves([]Leaf{leaf(0, 1)}))
	g := grantTo(b)
	granted := base.Fork()
	check(t, acquired(t, granted.Open(false), a).Grant(g))
	b.Instance = g.ID
	for name, c := range map[string]struct {
		open func(dev blockdev.Device) *Store
		do   func(s *Store, dead Dead) error
	}{
		"takeover": {func(dev blockdev.Device) *Store { return open(t, dev) },
			func(s *Store, dead Dead) error { return s.Takeover(t.Context(), b, dead, quick()) }},
		"by the receiver": {func(dev blockdev.Device) *Store {
			s := open(t, dev)
			_, err := s.Receive(g.ID, b.Host, b.Boot)
			check(t, err)
			return s
		}, func(s *Store, dead Dead) error { return s.Takeover(t.Context(), b, dead, quick()) }},
		"grant": {func(dev blockdev.Device) *Store { return acquired(t, dev, a) },
			func(s *Store, _ Dead) error { return s.TakeoverGrant(g.ID) }},
	} {
		for _, torn := range []int{0, 5} {
			n := blockdevtest.EachFailure(t, blockdevtest.Rule{Torn: torn}, func(n int, f *blockdevtest.Failure) {
				disk := base.Fork()
				if name != "takeover" {
					disk = granted.Fork()
				}
				s := c.open(disk.Open(false))
				dead := DeadOwner(s.Header())
				s.dev = blockdevtest.NewFault(s.dev, f)
				err := c.do(s, dead)
				s.dev = disk.Open(false)
				if err != nil && f.Fired() == 0 {
					t.Fatalf("%s, %d: %v", name, n, err)
				}
				if err != nil {
					begun := open(t, disk).Header().Progress.Kind != 0
					if name == "grant" { // which goes on in the old area, the active one still, if it does not know
						begun = s.Header().Progress.Kind != 0
					}
					if begun && s.WriteLeaves([]Leaf{leaf(0, 1, 9)}) == nil {
						t.Errorf("%s, %d: writes to the table after %v", name, n, err)
					}
					if err := c.do(s, dead); err != nil {
						t.Fatalf("%s, %d: once more: %v", name, n, err)
					}
				}
				check(t, s.WriteLeaves([]Leaf{leaf(0, 1, 2)}))
				wantFlags(t, disk, leaf(0, 1, 2), name)
				h := open(t, disk).Header()
				if h.Progress.Kind != 0 || h.Epoch < 2 || h.TableEpoch < 2 || len(h.Grants) > 0 {
					t.Errorf("%s, %d: %+v", name, n, h)
				}
				if left := raised(t, s); left > 0 {
					t.Errorf("%s, %d: %d claims are up", name, n, left)
				}
			})
			if n < 12 {
				t.Errorf("%s: only %d operations", name, n)
			}
		}
	}
}

// What a dead owner's last header write does when it lands late: nothing, whichever copy it hits, also when the power
// goes while the new owner writes the next header.
func TestLateHeaderWrite(t *testing.T) {
	a, b := host("a"), host("b")
	for copy := range 2 {
		disk := created(t, 1<<20, 4096, 512)
		slow := blockdevtest.NewDelay(disk.Open(false))
		old := acquired(t, slow, a)
		check(t, old.WriteLeaves([]Leaf{leaf(0, 1)}))
		n := 0
		slow.HoldIf(func(string, int64, int64) bool { n++; return n == copy+1 })
		done := make(chan error)
		go func() { done <- old.Update(func(h *cowfmt.Header) { h.Opens = 99 }) }()
		slow.WaitHeld(1)
		slow.Detach()
		if err := <-done; !errors.Is(err, blockdevtest.ErrDetached) {
			t.Fatal(err)
		}
		crash := blockdevtest.NewCrash(disk, blockdevtest.CrashOptions{}) // the same as the slow device's disk
		late := make([]byte, cowfmt.HeaderSize)
		s := takeover(t, crash.Open(false), b)
		check(t, slow.Release())
		_, err := disk.ReadAt(late, cowfmt.HeaderOffsets[copy])
		check(t, err)
		_, err = crash.WriteAt(late, cowfmt.HeaderOffsets[copy])
		check(t, err)
		if h := open(t, crash).Header(); *h.Owner != b || h.Opens == 100 && copy == 0 {
			t.Fatalf("copy %d: the dead owner is back: %+v", copy, h)
		}
		states := 0
		writer := crash.Open(false)
		writer.OnOp = func(int, string, int64, int64) {
			for state := range crash.States(40) {
				states++
				if h := open(t, state).Header(); h.Owner.Host != b.Host || h.Epoch != 2 {
					t.Errorf("copy %d: after a power cut: %+v", copy, h)
				}
			}
		}
		s.dev = writer
		check(t, s.WriteLeaves([]Leaf{leaf(0, 1, 2)}))
		check(t, s.Update(func(h *cowfmt.Header) { h.Opens++ }))
		if p := open(t, crash).Problems(); p != [2]error{} || states == 0 {
			t.Errorf("copy %d: %v, %d states", copy, p, states)
		}
	}
}

// What a dead owner's table write does when it lands late: nothing; and if its area is in use again by then, it is
// refused, and never believed.
func TestLateTableWrite(t *testing.T) {
	a, b, c := host("a"), host("b"), host("c")
	disk := created(t, 1<<20, 4096, 512)
	slow := blockdevtest.NewDelay(disk.Open(false))
	old := acquired(t, slow, a)
	check(t, old.WriteLeaves([]Leaf{leaf(0, 1)}))
	slow.Hold()
	done := make(chan error)
	go func() { done <- old.WriteLeaves([]Leaf{leaf(0, 1, 2)}) }()
	slow.WaitHeld(1)
	slow.Detach()
	if err := <-done; !errors.Is(err, blockdevtest.ErrDetached) {
		t.Fatal(err)
	}
	s := takeover(t, disk.Open(false), b)
	check(t, s.WriteLeaves([]Leaf{leaf(0, 1, 5)}))
	twice := disk.Fork()
	before := slices.Concat(flags(t, disk, 0))
	area := make([]byte, LeafBytes)
	check(t, slow.Release())
	if _, err := disk.ReadAt(area, s.Header().Layout.Table[0]); err != nil || area[0] != 1<<1|1<<2 {
		t.Fatalf("the late write is not there: %x, %v", area[:2], err)
	}
	if string(flags(t, disk, 0)) != string(before) {
		t.Error("a late table write changed a flag")
	}
	takeover(t, twice.Open(false), c) // back in the first area
	_, err := twice.WriteAt(area, s.Header().Layout.Table[0])
	check(t, err)
	if err := open(t, twice).ReadLeaf(0, make([]byte, LeafFlags)); !errors.Is(err, cowfmt.ErrStale) {
		t.Errorf("a late write into an area in use: %v", err)
	}
}

// The late write of a takeover that was cut off has an epoch that a later takeover does not use.
func TestLateWriteOfATakeover(t *testing.T) {
	a, b, c := host("a"), host("b"), host("c")
	disk := created(t, 1<<20, 4096, 512)
	check(t, acquired(t, disk.Open(false), a).WriteLeaves([]Leaf{leaf(0, 1)}))
	slow := blockdevtest.NewDelay(disk.Open(false))
	s := open(t, slow)
	slow.HoldIf(func(_ string, off, _ int64) bool { return off >= cowfmt.MetadataSize })
	done := make(chan error)
	go func() { done <- s.Takeover(context.Background(), b, DeadOwner(s.Header()), quick()) }()
	slow.WaitHeld(1)
	slow.Detach()
	if err := <-done; !errors.Is(err, blockdevtest.ErrDetached) {
		t.Fatal(err)
	}
	third := takeover(t, disk.Open(false), c)
	check(t, third.WriteLeaves([]Leaf{leaf(0, 1, 2)}))
	check(t, slow.Release())
	if err := open(t, disk).ReadLeaf(0, make([]byte, LeafFlags)); !errors.Is(err, cowfmt.ErrStale) {
		t.Errorf("flags that were set since are lost: %v", err)
	}
}
