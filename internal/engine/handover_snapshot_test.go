package engine

import (
	"bytes"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/handover"
)

// sharedSnapped is a volume that two hosts see, open on a, with the first chunks written and a snapshot of it.
func sharedSnapped(t *testing.T, change ...func(*blockdevtest.Memory, *cowfmt.StackEntry) blockdev.Device) (s *shared, snapshot *blockdevtest.Memory, id uuid.UUID, want []byte) {
	s = sharedClone(t, snapSize, 4096)
	s.a.shelf = shelf{}
	s.b.shelf = s.a.shelf
	check(t, s.a.open())
	s.a.write(0, 10<<12, 1)
	want = contents(t, s.a.v, snapSize)
	snapshot, id = snap(t, s.a.v, s.a.shelf, 0, change...)
	return s, snapshot, id, want
}

// moves has the guest go from a to b, until b may write.
func (s *shared) moves(t *testing.T, g cowfmt.Grant) {
	t.Helper()
	s.a.guest(handover.GuestStopped)
	s.a.is(handover.Sealed)
	s.b.guest(handover.GuestRuns)
}

// A cut waits for the end of a grant, and a grant for the end of a cut; what the giver does to its snapshots while the grant is
// open the receiver goes by.
func TestHandOverOfTheStack(t *testing.T) {
	s, snapshot, id, want := sharedSnapped(t)
	s.a.write(0, 512, 2)
	second, removed := snap(t, s.a.v, s.a.shelf, 0)
	cut := uuid.New()
	pending, e, err := newSnapshotStore(s.a.v.Header(), 0, sector, cut)
	check(t, err)
	s.a.shelf[e.UUID] = func() (blockdev.Device, error) { return pending, nil }
	check(t, s.a.v.AddSnapshot(t.Context(), e))
	check(t, s.a.v.Cut(t.Context(), cut, time.Minute))
	refused := cowfmt.Grant{ID: uuid.New(), Host: s.b.host, Boot: s.b.boot}
	if err := s.a.v.Grant(t.Context(), refused); !errors.Is(err, ErrSuspended) {
		t.Errorf("granted in the middle of a cut: %v", err)
	}
	check(t, s.a.v.EndCut(t.Context(), cut, false))
	check(t, s.a.v.AddSnapshot(t.Context(), e))
	g := s.a.grantTo(s.b)
	if err := s.a.v.Cut(t.Context(), cut, time.Minute); !errors.Is(err, ErrGranted) {
		t.Errorf("cut while a grant is open: %v", err)
	}
	check(t, s.b.open(incoming(g)))
	s.a.guest(handover.GuestLeaves)
	s.a.write(4096, 512, 2)
	check(t, s.a.v.SetCursor(t.Context(), id, 4096))
	check(t, s.a.v.RemoveSnapshot(t.Context(), removed))
	saved := contents(t, second, second.Info().Size)
	s.moves(t, g)
	s.b.write(2<<12, 512, 3)
	s.b.alone()
	s.b.write(0, 512, 3) // released
	if err := s.a.v.SetCursor(t.Context(), id, 8192); err == nil {
		t.Error("the giver moves a cursor in a header that is another host's")
	}
	s.a.close()
	stack := s.b.v.Stack()
	if len(stack) != 1 || stack[0].ID != id || stack[0].Cursor != 4096 || stack[0].State != cowfmt.StackActive || len(s.b.v.Header().Stack) != 1 {
		t.Fatalf("%+v", stack)
	}
	if got := asOfCut(t, s.b.v, s.b.master(), snapshot); !bytes.Equal(got[4096:], want[4096:]) {
		t.Error("the snapshot reads something else")
	}
	if !bytes.Equal(saved, contents(t, second, second.Info().Size)) {
		t.Error("written to a snapshot that was removed")
	}
	s.b.close()
}

// A receiver that may write, but not the header, and can't save: the guest's write waits until the header is this
// host's, and then the snapshot is broken.
func TestReceiverBreaks(t *testing.T) { synctest.Test(t, receiverBreaks) }

func receiverBreaks(t *testing.T) {
	fail := blockdevtest.NewFailure(blockdevtest.Rule{N: 1, Forever: true, Ops: blockdevtest.Writes})
	sick := new(spell)
	s, _, _, _ := sharedSnapped(t, func(m *blockdevtest.Memory, e *cowfmt.StackEntry) blockdev.Device {
		sick.Device, sick.well = blockdevtest.NewFault(m, fail), m
		sick.over.Store(true)
		e.Timeout = 2000
		return sick
	})
	s.a.close()
	// The giver can't hand over: its header writes fail.
	inner := s.a.store()
	header := blockdevtest.NewFailure(blockdevtest.Rule{N: 1, Forever: true, Ops: blockdevtest.Writes, Length: 64 << 10})
	stuck := &spell{Device: blockdevtest.NewFault(inner, header), well: inner}
	stuck.over.Store(true)
	was := s.a.store
	s.a.store = func() blockdev.Device { return stuck }
	check(t, s.a.open())
	s.a.store = was
	g := s.a.grantTo(s.b)
	check(t, s.b.open(incoming(g)))
	s.a.guest(handover.GuestStopped)
	s.a.is(handover.Sealed)
	stuck.over.Store(false)
	sick.over.Store(false)
	s.b.guest(handover.GuestRuns)
	s.b.is(handover.Writer)
	wrote := make(chan error, 1)
	go func() {
		wrote <- request(s.b.v, &blockdev.Request{Op: blockdev.OpWrite, Buf: filled(0, 512, 3)})
	}()
	eventually(t, "to be broken", func() bool { return s.b.v.Stack()[0].Err != nil })
	select {
	case err := <-wrote:
		t.Fatalf("the write ended, and nothing durable says that the snapshot is broken: %v", err)
	case <-time.After(2500 * time.Millisecond): // longer than the time-out
	}
	stuck.over.Store(true)
	check(t, <-wrote)
	s.b.alone()
	if e := s.b.v.Header().Stack[0]; e.State != cowfmt.StackBroken {
		t.Errorf("%+v", e)
	}
	s.b.reads(0, 512, 3)
	s.a.close()
	s.b.close()
}

// A forced takeover breaks all snapshots; a volume whose snapshot is not to be found is not received where the guest is to
// wait for it, and else breaks it.
func TestStackThatIsNotThere(t *testing.T) {
	s, _, _, _ := sharedSnapped(t)
	s.b.shelf = shelf{}
	g := s.a.grantTo(s.b)
	check(t, s.b.open(incoming(g)))
	s.moves(t, g)
	s.b.write(0, 512, 3)
	s.b.alone()
	eventually(t, "broken", func() bool { return s.b.v.Header().Stack[0].State == cowfmt.StackBroken })
	s.a.close()
	s.b.close()

	s, _, _, _ = sharedSnapped(t, func(m *blockdevtest.Memory, e *cowfmt.StackEntry) blockdev.Device {
		e.OnError = cowfmt.OnErrorBreakGuestWrite
		return m
	})
	s.b.shelf = shelf{}
	g = s.a.grantTo(s.b)
	if err := s.b.open(incoming(g)); err == nil {
		t.Error("received without its stack")
	}
	s.a.write(0, 512, 2)
	check(t, s.a.v.EndGrant(t.Context(), g.ID, false))
	s.a.close()
}

// A guest that moves on does not wait for a snapshot's device that hangs with what is saved ahead, which nobody else waits for:
// the snapshot is broken, unless the guest is to wait for it.
func TestSealedWhileASnapshotHangs(t *testing.T) { synctest.Test(t, sealedWhileASnapshotHangs) }

func sealedWhileASnapshotHangs(t *testing.T) {
	var slow *blockdevtest.Delay
	s, _, _, _ := sharedSnapped(t, func(m *blockdevtest.Memory, e *cowfmt.StackEntry) blockdev.Device {
		e.Timeout = 500
		slow = blockdevtest.NewDelay(m)
		return slow
	})
	slow.Hold()
	s.a.v.stack.snapshots()[0].ask(4096, 512)
	slow.WaitHeld(1)
	g := s.a.grantTo(s.b)
	check(t, s.b.open(incoming(g)))
	s.moves(t, g)
	s.b.write(4096, 512, 3)
	s.b.alone()
	if e := s.b.v.Header().Stack[0]; e.State != cowfmt.StackBroken {
		t.Errorf("%+v", e)
	}
	slow.HoldIf(nil)
	check(t, slow.Release())
	s.a.close()
	s.b.close()
}
