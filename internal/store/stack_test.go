package store

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

func activate(e *cowfmt.StackEntry)   { e.State = cowfmt.StackActive }
func breakEntry(e *cowfmt.StackEntry) { e.State = cowfmt.StackBroken }

// pending is an entry for a snapshot of no particular store.
func pending() cowfmt.StackEntry {
	return entryOf(&cowfmt.Header{UUID: uuid.New(), Generation: 1, Cut: uuid.New()})
}

// states are the states of a volume's stack, as a fresh opening finds them.
func states(t *testing.T, dev blockdev.Device) (out string) {
	t.Helper()
	for _, e := range open(t, dev).Header().Stack {
		out += cowfmt.StackStateName(e.State) + " "
	}
	return strings.TrimSpace(out)
}

// What may become of an entry, each step durable.
func TestStack(t *testing.T) {
	dev := created(t, 1<<20, 4096, 512)
	s := acquired(t, dev.Open(false), host("a"))
	one, two := pending(), pending()
	two.OnError, two.Timeout = cowfmt.OnErrorBreakGuestWrite, 500
	check(t, s.AddSnapshot(one))
	check(t, s.AddSnapshot(two))
	for _, step := range []struct {
		change func(*cowfmt.StackEntry)
		want   string // of the second
	}{
		{func(e *cowfmt.StackEntry) { e.Locator.Address = "/dev/elsewhere" }, "pending"},
		{activate, "active"},
		{func(e *cowfmt.StackEntry) { e.Cursor = 8192 }, "active"},
		{activate, "active"},
		{breakEntry, "broken"},
		{breakEntry, "broken"},
	} {
		check(t, s.SetSnapshot(two.UUID, step.change))
		if got := states(t, dev); got != "pending "+step.want {
			t.Fatalf("the stack is %s", got)
		}
	}
	got := open(t, dev).Header().Stack[1]
	if got.Cursor != 8192 || got.Locator.Address != "/dev/elsewhere" || got.OnError != two.OnError || got.Timeout != two.Timeout {
		t.Errorf("the entry is %+v", got)
	}
	check(t, s.RemoveSnapshot(one.UUID))
	check(t, s.Release())
	if got := states(t, dev); got != "broken" {
		t.Errorf("the stack is %s", got)
	}
	check(t, acquired(t, dev.Open(false), host("b")).RemoveSnapshot(two.UUID))
	if got := states(t, dev); got != "" {
		t.Errorf("the stack is %s", got)
	}
}

// What is refused leaves the device as it was.
func TestStackRefused(t *testing.T) {
	one, gone := pending(), pending()
	set := func(id uuid.UUID, change func(*cowfmt.StackEntry)) func(*Store) error {
		return func(s *Store) error { return s.SetSnapshot(id, change) }
	}
	add := func(change func(*cowfmt.StackEntry)) func(*Store) error {
		e := pending()
		change(&e)
		return func(s *Store) error { return s.AddSnapshot(e) }
	}
	for name, c := range map[string]struct {
		state uint8
		do    func(s *Store) error
		want  error
	}{
		"there already":     {cowfmt.StackPending, func(s *Store) error { return s.AddSnapshot(one) }, ErrSnapshotChange},
		"begins active":     {cowfmt.StackPending, add(activate), ErrSnapshotChange},
		"begins released":   {cowfmt.StackPending, add(func(e *cowfmt.StackEntry) { e.Cursor = 1 }), ErrSnapshotChange},
		"no snapshot":       {cowfmt.StackPending, add(func(e *cowfmt.StackEntry) { e.Kind = cowfmt.StackTracker }), ErrSnapshotChange},
		"nowhere":           {cowfmt.StackPending, add(func(e *cowfmt.StackEntry) { e.Locator = cowfmt.Locator{} }), cowfmt.ErrInvalid},
		"another's":         {cowfmt.StackPending, set(gone.UUID, activate), ErrNoSnapshot},
		"removed":           {cowfmt.StackPending, func(s *Store) error { return s.RemoveSnapshot(gone.UUID) }, ErrNoSnapshot},
		"active to pending": {cowfmt.StackActive, set(one.UUID, func(e *cowfmt.StackEntry) { e.State = cowfmt.StackPending }), ErrSnapshotChange},
		"broken to active":  {cowfmt.StackBroken, set(one.UUID, activate), ErrSnapshotChange},
		"broken to pending": {cowfmt.StackBroken, set(one.UUID, func(e *cowfmt.StackEntry) { e.State = cowfmt.StackPending }), ErrSnapshotChange},
		"cursor back":       {cowfmt.StackActive, set(one.UUID, func(e *cowfmt.StackEntry) { e.Cursor-- }), ErrSnapshotChange},
		"cursor past end":   {cowfmt.StackActive, set(one.UUID, func(e *cowfmt.StackEntry) { e.Cursor = 1<<20 + 1 }), cowfmt.ErrInvalid},
		"no state":          {cowfmt.StackActive, set(one.UUID, func(e *cowfmt.StackEntry) { e.State = 9 }), cowfmt.ErrInvalid},
		"another cut":       {cowfmt.StackActive, set(one.UUID, func(e *cowfmt.StackEntry) { e.CutID = gone.CutID }), ErrSnapshotChange},
		"another policy":    {cowfmt.StackActive, set(one.UUID, func(e *cowfmt.StackEntry) { e.OnError = 1 }), ErrSnapshotChange},
		"full": {cowfmt.StackActive, func(s *Store) error {
			for range cowfmt.MaxStack - 1 {
				check(t, s.AddSnapshot(pending()))
			}
			return s.AddSnapshot(pending())
		}, ErrSnapshotChange},
	} {
		dev := created(t, 1<<20, 4096, 512)
		s := acquired(t, dev.Open(false), host("a"))
		check(t, s.AddSnapshot(one))
		check(t, s.SetSnapshot(one.UUID, func(e *cowfmt.StackEntry) { e.State, e.Cursor = c.state, 4096 }))
		if err := c.do(s); !errors.Is(err, c.want) || !strings.Contains(err.Error(), "disk") {
			t.Errorf("%s: %v", name, err)
		}
		if got := open(t, dev).Header().Stack[0]; got.State != c.state || got.Cursor != 4096 {
			t.Errorf("%s: refused, but it is %v", name, got)
		}
		if err := open(t, dev).AddSnapshot(pending()); !errors.Is(err, ErrNotOwner) {
			t.Errorf("by another than the owner: %v", err)
		}
	}
}

// A power cut amid a change leaves the stack as it was or as it is to be; after the change it is that in both copies.
func TestStackPowerCut(t *testing.T) {
	e := pending()
	a := host("a")
	for name, c := range map[string]struct {
		before []func(*Store) error
		do     func(*Store) error
		was    string
		is     string
	}{
		"add": {nil, func(s *Store) error { return s.AddSnapshot(e) }, "", "pending"},
		"break": {[]func(*Store) error{
			func(s *Store) error { return s.AddSnapshot(e) },
			func(s *Store) error { return s.SetSnapshot(e.UUID, activate) },
		}, func(s *Store) error { return s.SetSnapshot(e.UUID, breakEntry) }, "active", "broken"},
		"remove": {[]func(*Store) error{func(s *Store) error { return s.AddSnapshot(e) }},
			func(s *Store) error { return s.RemoveSnapshot(e.UUID) }, "pending", ""},
	} {
		disk := created(t, 1<<20, 4096, 512)
		dev := blockdevtest.NewCrash(disk, blockdevtest.CrashOptions{})
		s := acquired(t, dev, a)
		for _, f := range c.before {
			check(t, f(s))
		}
		seen := map[string]int{}
		dev.OnOp = func(int, string, int64, int64) {
			for state := range dev.States(50) {
				seen[states(t, state)]++
			}
		}
		check(t, c.do(s))
		if len(seen) != 2 || seen[c.was] == 0 || seen[c.is] == 0 {
			t.Errorf("%s: power cuts amid it left %v", name, seen)
		}
		for state := range dev.States(10) {
			if got, problems := states(t, state), open(t, state).Problems(); got != c.is || problems != [2]error{} {
				t.Errorf("%s: done, but a power cut leaves %q, %v", name, got, problems)
			}
		}
	}
}

// A change that fails is made again, whatever of it was on the device.
func TestStackEachFailure(t *testing.T) {
	for _, torn := range []int{0, 9} {
		blockdevtest.EachFailure(t, blockdevtest.Rule{Ops: blockdevtest.Writes | blockdevtest.Flushes, Torn: torn}, func(n int, f *blockdevtest.Failure) {
			dev, e := created(t, 1<<20, 4096, 512), pending()
			s := acquired(t, dev.Open(false), host("a"))
			s.dev = blockdevtest.NewFault(s.dev, f)
			for _, do := range []func() error{
				func() error { return s.AddSnapshot(e) },
				func() error { return s.SetSnapshot(e.UUID, activate) },
				func() error { return s.SetSnapshot(e.UUID, breakEntry) },
			} {
				if do() != nil {
					check(t, do())
				}
			}
			if got, problems := states(t, dev), open(t, dev).Problems(); got != "broken" || problems != [2]error{} {
				t.Errorf("operation %d: %s, %v", n, got, problems)
			}
		})
	}
}

// A clean hand-over and a clean close leave the stack alone; a forced takeover breaks it, with the very header write
// that makes the new owner, and so does the end of a receiver that may have been writing.
func TestStackOverOwners(t *testing.T) {
	a, b := host("a"), host("b")
	base := created(t, 1<<20, 4096, 512)
	s := acquired(t, base.Open(false), a)
	for range 3 {
		check(t, s.AddSnapshot(pending()))
	}
	stack := s.Header().Stack
	check(t, s.SetSnapshot(stack[0].UUID, breakEntry))
	check(t, s.SetSnapshot(stack[1].UUID, activate))
	const kept, broken = "broken active pending", "broken broken broken"

	closed := base.Fork()
	check(t, acquired(t, closed.Open(false), a).Release())
	if got := states(t, closed); got != kept {
		t.Errorf("closed: %s", got)
	}
	given := base.Fork()
	giver, g := acquired(t, given.Open(false), a), grantTo(b)
	check(t, giver.Grant(g))
	granted := given.Fork()
	check(t, giver.HandOver(g.ID))
	if got := states(t, given); got != kept {
		t.Errorf("handed over: %s", got)
	}
	for name, c := range map[string]struct {
		disk *blockdevtest.Memory
		do   func(dev blockdev.Device) error
		by   func(h *cowfmt.Header) bool // has it
	}{
		"takeover": {base, func(dev blockdev.Device) error {
			s := open(t, dev)
			return s.Takeover(t.Context(), b, DeadOwner(s.Header()), quick())
		}, func(h *cowfmt.Header) bool { return h.Owner.Host == b.Host }},
		"receiver": {granted, func(dev blockdev.Device) error { return acquired(t, dev, a).TakeoverGrant(g.ID) },
			func(h *cowfmt.Header) bool { return len(h.Grants) == 0 }},
	} {
		dev := blockdevtest.NewCrash(c.disk.Fork(), blockdevtest.CrashOptions{})
		dev.OnOp = func(n int, op string, _, _ int64) {
			for state := range dev.States(20) {
				h := open(t, state).Header()
				if got := states(t, state); got != map[bool]string{false: kept, true: broken}[c.by(h)] {
					t.Errorf("%s: at operation %d (%s) the stack is %s, %v", name, n, op, got, h.Owner)
				}
			}
		}
		check(t, c.do(dev))
		if got := states(t, dev); got != broken {
			t.Errorf("%s: %s", name, got)
		}
	}
}
