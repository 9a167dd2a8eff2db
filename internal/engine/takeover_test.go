package engine

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/handover"
	"github.com/virt-cow/virt-cow/internal/store"
)

// proof is what an operator says of the owner that a volume's header names.
func proof(v *Volume) store.Dead {
	h := v.Header()
	return store.Dead{Host: h.Owner.Host, Instance: h.Owner.Instance, Epoch: h.Epoch}
}

// A volume is taken over from a host that is called dead and comes back with writes of its table: they hit nothing, and all
// it does from then on fails.
func TestTakeoverFromOneWhoReturns(t *testing.T) {
	mem := memoryStore(t, deathSize, deathChunk, sector, true)
	master := memoryMaster(deathSize, false, 0, deathSize)
	s := newShared(t, func() blockdev.Device { return mem.Open(false) }, func() blockdev.Device { return master.Open(true) }, nil)
	delay := blockdevtest.NewDelay(mem.Open(false))
	s.a.store = func() blockdev.Device { return delay }
	check(t, s.a.open(func(o *Options) { o.CommitEvery = -1 }))
	back := s.a.busy() // it does not look at the header by itself
	defer back()
	s.a.write(0, deathChunk, 3)
	check(t, s.a.v.Flush())
	s.a.write(deathChunk, deathChunk, 4) // its flag is in memory only
	layout := s.a.v.Header().Layout
	delay.HoldIf(func(_ string, off, _ int64) bool { return off >= layout.Table[0] && off < layout.Data })
	flushed := start(s.a.v, &blockdev.Request{Op: blockdev.OpFlush})
	delay.WaitHeld(1)
	dead := proof(s.a.v)

	wrong := dead
	wrong.Epoch++
	if err := s.b.open(func(o *Options) { o.Dead = &wrong }); !errors.Is(err, store.ErrOwned) {
		t.Errorf("taken over with the proof of another's death: %v", err)
	}
	check(t, s.b.open(func(o *Options) { o.Dead = &dead }))
	s.b.reads(0, deathChunk, 3)
	s.b.write(2*deathChunk, deathChunk, 5)
	check(t, s.b.v.Flush())
	check(t, delay.Release()) // the late write
	<-flushed                 // it was on its way: nothing stops it, nor makes it true
	check(t, s.b.v.Flush())
	s.b.reads(deathChunk, deathChunk, 0)
	s.b.reads(2*deathChunk, deathChunk, 5)
	s.b.close()
	check(t, s.b.open())
	s.b.reads(0, deathChunk, 3)
	s.b.reads(deathChunk, deathChunk, 0)
	s.b.reads(2*deathChunk, deathChunk, 5)

	s.a.write(3*deathChunk, deathChunk, 6)
	if err := s.a.v.Flush(); !errors.Is(err, unix.EIO) {
		t.Errorf("a FLUSH of the old owner: %v", err)
	}
	back()
	eventually(t, "lost", func() bool { return s.a.v.Err() != nil })
	if err := s.a.v.Err(); !errors.Is(err, store.ErrEpoch) || !strings.Contains(err.Error(), "b (host") {
		t.Errorf("says %v", err)
	}
	for _, op := range []blockdev.Op{blockdev.OpRead, blockdev.OpWrite, blockdev.OpFlush, blockdev.OpTrim} {
		r := &blockdev.Request{Op: op}
		if op != blockdev.OpFlush {
			r.Buf = filled(0, deathChunk, 7)
		}
		if err := request(s.a.v, r); !errors.Is(err, unix.EIO) {
			t.Errorf("%v of the old owner: %v", op, err)
		}
	}
	before := string(contents(t, mem, mem.Info().Size))
	s.a.close()
	if string(contents(t, mem, mem.Info().Size)) != before {
		t.Error("the old owner's end wrote something")
	}
	s.b.close()
}

// The giver dies unsealed: the receiver's first write waits for the proof of that, and then everything goes on.
func TestGiverDies(t *testing.T) {
	s := sharedClone(t, deathSize, deathChunk)
	check(t, s.a.open())
	g := s.a.grantTo(s.b)
	check(t, s.b.open(incoming(g)))
	s.a.write(0, deathChunk, 3)
	dead := proof(s.a.v)
	s.a.die()
	s.b.guest(handover.GuestRuns)
	held := start(s.b.v, &blockdev.Request{Op: blockdev.OpWrite, Off: deathChunk, Buf: filled(deathChunk, deathChunk, 4)})
	eventually(t, "says for what it waits", func() bool {
		return strings.Contains(s.b.v.Handover().Waits, "a has not stopped writing; if it is dead: virt-cow host fenced a")
	})
	select {
	case err := <-held:
		t.Fatalf("answered while the giver may write: %v", err)
	default:
	}
	wrong := dead
	wrong.Instance = uuid.New()
	if err := s.b.v.PeerDead(context.Background(), wrong); !errors.Is(err, store.ErrNotDead) {
		t.Errorf("with a proof of another's death: %v", err)
	}
	check(t, s.b.v.PeerDead(context.Background(), dead))
	check(t, <-held)
	s.b.is(handover.Owner)
	s.b.reads(0, deathChunk, 3)
	s.b.reads(deathChunk, deathChunk, 4)
	s.b.alone()
	s.b.close()
}

// The receiver dies while it waits to write, and is proven dead: the giver goes on.
func TestReceiverDies(t *testing.T) {
	s := sharedClone(t, deathSize, deathChunk)
	check(t, s.a.open())
	g := s.a.grantTo(s.b)
	check(t, s.b.open(incoming(g)))
	s.b.guest(handover.GuestRuns)
	held := start(s.b.v, &blockdev.Request{Op: blockdev.OpWrite, Off: deathChunk, Buf: filled(deathChunk, deathChunk, 4)})
	s.b.is(handover.Active)
	s.b.die()
	if err := <-held; err == nil {
		t.Error("written before the giver was sealed")
	}
	if err := s.a.v.EndGrant(context.Background(), g.ID, false); !errors.Is(err, ErrGranted) {
		t.Errorf("ended under a receiver that may live: %v", err)
	}
	check(t, s.a.v.PeerDead(context.Background(), store.Dead{Host: s.b.host, Instance: g.ID}))
	s.a.alone()
	s.a.write(0, deathChunk, 5)
	s.a.close()
	check(t, s.a.open())
	s.a.reads(0, deathChunk, 5)
	s.a.reads(deathChunk, deathChunk, 0)
	s.a.close()
}

// A giver's host boots again while the grant is open: it goes on where its slot says that it stood.
func TestGiverBootsAgain(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		s := sharedClone(t, deathSize, deathChunk)
		check(t, s.a.open())
		g := s.a.grantTo(s.b)
		check(t, s.b.open(incoming(g)))
		s.a.write(0, deathChunk, 3)
		want := handover.Open
		if sealed {
			s.a.guest(handover.GuestStopped)
			s.a.is(handover.Sealed)
			want = handover.Sealed
		}
		s.a.die()
		s.a.boot, s.a.cache = uuid.New(), newCachePath(t.TempDir())
		check(t, s.a.open())
		if got := s.a.v.Handover(); got.State != want || got.Grant != g.ID {
			t.Errorf("sealed %v: goes on as %v", sealed, got.State)
		}
		s.b.guest(handover.GuestRuns)
		held := start(s.b.v, &blockdev.Request{Op: blockdev.OpWrite, Off: deathChunk, Buf: filled(deathChunk, deathChunk, 4)})
		if !sealed {
			s.b.is(handover.Active)
			s.a.v.SetClients(func() int { return 0 }) // no guest is left there
			s.a.v.moving.wake()
		}
		check(t, <-held)
		s.b.is(handover.Owner)
		s.a.is(handover.Given)
		s.a.close()
		s.b.reads(0, deathChunk, 3)
		s.b.alone()
		s.b.close()
	}
}

// A volume of which nothing is committed is found out to be taken, too, as long as its guest does something.
func TestRewritesFindOut(t *testing.T) {
	s := sharedClone(t, deathSize, deathChunk)
	check(t, s.a.open())
	s.a.write(0, deathChunk, 3)
	check(t, s.a.v.Flush())
	dead := proof(s.a.v)
	check(t, s.b.open(func(o *Options) { o.Dead = &dead }))
	eventually(t, "lost", func() bool {
		_ = request(s.a.v, &blockdev.Request{Op: blockdev.OpRead, Buf: make([]byte, sector)})
		time.Sleep(10 * time.Millisecond)
		return s.a.v.Err() != nil
	})
	s.a.close()
	s.b.close()
}
