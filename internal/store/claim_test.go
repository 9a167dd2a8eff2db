package store

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

func host(name string) cowfmt.Owner {
	return cowfmt.Owner{Host: uuid.New(), Boot: uuid.New(), Instance: uuid.New(), HostName: name, Since: 1}
}

// quick claims without waiting, and tries once.
func quick() Claiming {
	return Claiming{Shared: true, Wait: time.Hour, Patience: 1, sleep: func(context.Context, time.Duration) error { return nil }}
}

func raised(t *testing.T, s *Store) (n int) {
	t.Helper()
	claims, err := s.Claims()
	check(t, err)
	for _, c := range claims {
		if c.Err != nil || c.Nonce != 0 {
			n++
		}
	}
	return n
}

// Every read, write and flush of an open and of a close fails once. Whatever is left, the host itself gets in, nobody
// else does while it has it, and in the end no claim is up.
func TestClaimFailures(t *testing.T) {
	fresh := created(t, 1<<20, 4096, 512)
	a, b := host("a"), host("b")
	n := blockdevtest.EachFailure(t, blockdevtest.Rule{Torn: 3}, func(n int, f *blockdevtest.Failure) {
		disk := fresh.Fork()
		s, err := Open(blockdevtest.NewFault(disk, f))
		if err == nil {
			if _, err = s.Acquire(t.Context(), a, quick()); err == nil {
				err = s.Release()
			}
		}
		if (err == nil) != (f.Fired() == 0) && open(t, disk).Header().Owner != nil {
			t.Errorf("%d: %d failures, %v", n, f.Fired(), err)
		}
		// The engine's next attempt: a new process.
		again := open(t, disk.Open(false))
		if _, err := again.Acquire(t.Context(), a, quick()); err != nil {
			t.Fatalf("%d: after a failure the host itself is kept out: %v", n, err)
		}
		if _, err := open(t, disk.Open(false)).Acquire(t.Context(), b, quick()); !errors.Is(err, ErrOwned) && !errors.Is(err, ErrClaimed) {
			t.Fatalf("%d: another host: %v", n, err)
		}
		check(t, again.Release())
		last := open(t, disk.Open(false))
		if _, err := last.Acquire(t.Context(), b, quick()); err != nil {
			t.Fatalf("%d: another host, once it is closed: %v", n, err)
		}
		if left := raised(t, last); left != 0 {
			t.Errorf("%d: %d claims are up", n, left)
		}
	})
	if n < 20 {
		t.Errorf("only %d operations", n)
	}
}

// All slots are kept by other hosts: a host takes one of them, and their own next one.
func TestNoFreeSlot(t *testing.T) {
	dev := created(t, 1<<20, 4096, 512)
	var hosts []cowfmt.Owner
	for range cowfmt.ClaimSlots + 5 {
		hosts = append(hosts, host("h"))
	}
	for round := range 2 {
		for _, h := range hosts {
			s := open(t, dev.Open(false))
			if _, err := s.Acquire(t.Context(), h, quick()); err != nil {
				t.Fatal(err)
			}
			check(t, s.Release())
		}
		claims, err := open(t, dev).Claims()
		if check(t, err); len(claims) != cowfmt.ClaimSlots {
			t.Errorf("round %d: %d slots are kept", round, len(claims))
		}
	}
}

// A host waits a second before it trusts a slot that it takes, not one that it keeps.
func TestSlotIsKept(t *testing.T) {
	dev, me, waits := created(t, 1<<20, 4096, 512), host("a"), 0
	how := quick()
	how.sleep = func(_ context.Context, d time.Duration) error {
		if d == how.Wait {
			waits++
		}
		return nil
	}
	for want := range 3 {
		s := open(t, dev.Open(false))
		if _, err := s.Acquire(t.Context(), me, how); err != nil {
			t.Fatal(err)
		}
		check(t, s.Release())
		if waits != 1 {
			t.Errorf("open %d: waited %d times", want, waits)
		}
	}
}

// A host whose I/O took too long between its claim and its write of the header looks again, and again afterwards.
func TestLateClaim(t *testing.T) {
	me, other := host("a"), host("b")
	for _, stolen := range []bool{false, true} {
		dev, waits := created(t, 1<<20, 4096, 512), 0
		s := open(t, dev.Open(false))
		how := Claiming{Shared: true, Wait: 2, Patience: 1} // nanoseconds: whatever it does is late
		how.sleep = func(context.Context, time.Duration) error {
			if waits++; waits == 2 && stolen { // after the write of the header
				thief := open(t, dev.Open(false))
				check(t, thief.change(func(h *cowfmt.Header) { h.Owner = &other }))
			}
			return nil
		}
		_, err := s.Acquire(t.Context(), me, how)
		if waits != 2 || stolen != errors.Is(err, ErrClaimed) || !stolen && err != nil {
			t.Errorf("stolen %v: waited %d times, %v", stolen, waits, err)
		}
		if left := raised(t, open(t, dev)); left != 0 {
			t.Errorf("stolen %v: the claim is up", stolen)
		}
	}
}

// On a disk that no other host can see nothing is written, but a claim counts.
func TestClaimOnALocalDisk(t *testing.T) {
	dev := created(t, 1<<20, 4096, 512)
	local := Claiming{Patience: 1}
	s := open(t, dev.Open(false))
	_, err := s.Acquire(t.Context(), host("a"), local)
	check(t, err)
	check(t, s.Release())
	claims, err := s.Claims()
	if check(t, err); len(claims) != 0 {
		t.Errorf("%+v", claims)
	}
	c := claim{mine: cowfmt.ClaimSlot{Host: uuid.New(), Boot: uuid.New(), Instance: uuid.New(), Nonce: 1, HostName: "dead"}}
	check(t, s.writeSlot(5, &c.mine))
	if _, err := open(t, dev).Acquire(t.Context(), host("a"), local); !errors.Is(err, ErrClaimed) {
		t.Errorf("%v: want ErrClaimed", err)
	}
	if _, err := s.ClearClaims(func(o SlotClaim) bool { return o.Host == c.mine.Host }); err != nil {
		t.Fatal(err)
	}
	_, err = open(t, dev).Acquire(t.Context(), host("a"), local)
	check(t, err)
}
