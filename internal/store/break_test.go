package store

import (
	"context"
	"errors"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// A snapshot of a store that nobody has open is broken, or dropped: also one that an engine left which died, in this boot or an
// earlier one, whose record stays as it was. A power cut leaves it done or not, and it can be done again.
func TestStepIn(t *testing.T) {
	me := host("a")
	later := me
	later.Boot = host("a").Boot
	for name, c := range map[string]struct {
		closed bool
		by     cowfmt.Owner
	}{"closed": {true, host("b")}, "died in this boot": {false, me}, "died in an earlier boot": {false, later}} {
		for want, do := range map[string]func(*Store, context.Context, cowfmt.Owner, uuid.UUID, Claiming) error{
			"broken": (*Store).BreakSnapshot, "": (*Store).DropSnapshot,
		} {
			t.Run(name+" "+want, func(t *testing.T) {
				m, e := created(t, 1<<20, 4096, 512), pending()
				s := acquired(t, m, me)
				check(t, s.AddSnapshot(e))
				check(t, s.SetSnapshot(e.UUID, activate))
				if c.closed {
					check(t, s.Release())
				}
				was := open(t, m).Header()
				dev := blockdevtest.NewCrash(m, blockdevtest.CrashOptions{})
				cuts := 0
				dev.OnOp = func(n int, op string, _, _ int64) {
					for state := range dev.States(20) {
						cuts++
						if got := states(t, state); got != "active" && got != want {
							t.Fatalf("operation %d (%s): %q", n, op, got)
						}
						err := do(open(t, state), t.Context(), c.by, e.UUID, quick())
						if want == "" && errors.Is(err, ErrNoSnapshot) {
							continue // it is, and who opens the store mends what is left of the header's other copy
						}
						check(t, err)
						if got := states(t, state); got != want || raised(t, open(t, state)) != 0 {
							t.Fatalf("operation %d (%s): once more it is %q, %d claims", n, op, got, raised(t, open(t, state)))
						}
					}
				}
				check(t, do(open(t, dev), t.Context(), c.by, e.UUID, quick()))
				is := open(t, dev).Header()
				if got := states(t, dev); got != want || cuts == 0 || raised(t, open(t, dev)) != 0 {
					t.Errorf("%q after %d power cuts", got, cuts)
				}
				if is.Epoch != was.Epoch || is.Opens != was.Opens || (is.Owner == nil) != c.closed || !c.closed && *is.Owner != *was.Owner {
					t.Errorf("%+v, was %+v", is, was)
				}
			})
		}
	}
}

// What another host has is left alone, and what is not there is said.
func TestStepInRefused(t *testing.T) {
	me, other, e := host("a"), host("b"), pending()
	for name, c := range map[string]struct {
		change func(s *Store) error
		want   error
	}{
		"owned elsewhere": {func(s *Store) error { return nil }, ErrOwned},
		"granted": {func(s *Store) error {
			return s.Update(func(h *cowfmt.Header) { h.Owner, h.Grants = &me, []cowfmt.Grant{grantTo(other)} })
		}, ErrGranted},
		"being opened": {func(s *Store) error {
			return errors.Join(s.Release(), s.writeSlot(3, &cowfmt.ClaimSlot{Host: other.Host, Boot: other.Boot, Instance: other.Instance, Nonce: 1}))
		}, ErrClaimed},
		"not there": {func(s *Store) error { return errors.Join(s.RemoveSnapshot(e.UUID), s.Release()) }, ErrNoSnapshot},
	} {
		m := created(t, 1<<20, 4096, 512)
		s := acquired(t, m, other)
		check(t, s.AddSnapshot(e))
		check(t, c.change(s))
		claims := raised(t, open(t, m))
		err := open(t, m).BreakSnapshot(t.Context(), me, e.UUID, quick())
		if got := states(t, m); !errors.Is(err, c.want) || got == "broken" || raised(t, open(t, m)) != claims {
			t.Errorf("%s: %v, %q", name, err, got)
		}
	}
}
