package store

import (
	"errors"
	"testing"

	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// A power cut while a store is erased leaves it or none, and what is left can be erased.
func TestErasePowerCut(t *testing.T) {
	dev := blockdevtest.NewCrash(created(t, 1<<20, 4096, 512), blockdevtest.CrashOptions{})
	me, states := host("a"), 0
	dev.OnOp = func(n int, op string, _, _ int64) {
		for state := range dev.States(40) {
			states++
			s, err := Open(state)
			if err == nil {
				err = s.Erase(t.Context(), me, quick())
				if _, left := Open(state); err != nil || !errors.Is(left, cowfmt.ErrNotStore) {
					t.Errorf("at operation %d (%s): erased again: %v, %v", n, op, err, left)
				}
			} else if !errors.Is(err, cowfmt.ErrNotStore) {
				t.Errorf("at operation %d (%s): %v", n, op, err)
			}
		}
	}
	check(t, open(t, dev).Erase(t.Context(), me, quick()))
	if _, err := Open(dev); !errors.Is(err, cowfmt.ErrNotStore) || states == 0 {
		t.Errorf("%v after %d states", err, states)
	}
}

// A store that somebody needs stays as it is.
func TestEraseRefused(t *testing.T) {
	me, other := host("a"), host("b")
	for name, change := range map[string]func(h *cowfmt.Header){
		"owned elsewhere": func(h *cowfmt.Header) { h.Owner = &other },
		"granted":         func(h *cowfmt.Header) { h.Grants = []cowfmt.Grant{{ID: me.Host, Host: other.Host, Boot: other.Boot}} },
		"snapshot": func(h *cowfmt.Header) {
			h.Stack = []cowfmt.StackEntry{{
				Kind: cowfmt.StackSnapshot, State: cowfmt.StackActive, UUID: me.Host, CutID: me.Host, Generation: 1,
				Locator: cowfmt.Locator{Kind: cowfmt.LocatorRaw, Address: "/snap"},
			}}
		},
	} {
		dev := created(t, 1<<20, 4096, 512)
		s := open(t, dev)
		check(t, s.Update(change))
		if err := s.Erase(t.Context(), me, quick()); err == nil {
			t.Errorf("%s: erased", name)
		}
		if raised(t, open(t, dev)) != 0 {
			t.Errorf("%s: a claim is up", name)
		}
	}
	dev := created(t, 1<<20, 4096, 512)
	s := open(t, dev)
	claimed := cowfmt.ClaimSlot{Host: other.Host, Boot: other.Boot, Instance: other.Instance, Nonce: 1}
	check(t, s.writeSlot(3, &claimed))
	if err := s.Erase(t.Context(), me, quick()); !errors.Is(err, ErrClaimed) {
		t.Errorf("another host is opening it: %v", err)
	}
	open(t, dev)
}
