package engine

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

const snapSize = 24<<12 + 512

// snapped is a volume with one snapshot, the device of which is what over makes of it.
func snapped(t *testing.T, dev blockdev.Device, policy uint8, timeout time.Duration, over func(*blockdevtest.Memory) blockdev.Device) (v *Volume, snapshot *blockdevtest.Memory, want []byte) {
	t.Helper()
	on := shelf{}
	v = mustOpen(t, dev, memoryMaster(snapSize, true, 0, snapSize), uuid.New(), "", on.option)
	_, err := v.WriteAt(filled(0, 10<<12, 1), 0)
	check(t, err)
	want = contents(t, v, snapSize)
	snapshot, _ = snap(t, v, on, 0, func(m *blockdevtest.Memory, e *cowfmt.StackEntry) blockdev.Device {
		e.OnError, e.Timeout = policy, uint32(timeout.Milliseconds())
		return over(m)
	})
	return v, snapshot, want
}

// entryOf is the only entry of the stack, as the header on the device has it.
func entryOf(t *testing.T, dev blockdev.Device) cowfmt.StackEntry {
	t.Helper()
	st, err := store.Open(dev)
	check(t, err)
	if len(st.Header().Stack) != 1 {
		t.Fatalf("stack %v", st.Header().Stack)
	}
	return st.Header().Stack[0]
}

// overwrite changes saved chunks, in requests of several kinds, and returns the first error; model is what the volume holds.
func overwrite(v *Volume, model []byte) error {
	for i, r := range []*blockdev.Request{
		{Op: blockdev.OpWrite, Off: 4096, Length: 512},
		{Op: blockdev.OpWrite, Off: 3 << 12, Length: 3 << 12},
		{Op: blockdev.OpWriteZeroes, Off: 7 << 12, Length: 2 << 12},
		{Op: blockdev.OpWrite, Off: 15 << 12, Length: 512}, // the master's: nothing is saved
	} {
		if r.Op == blockdev.OpWrite {
			r.Buf = filled(r.Off, r.Length, uint32(i)+2)
		}
		if err := request(v, r); err != nil {
			return err
		}
		if clear(model[r.Off : r.Off+r.Length]); r.Buf != nil {
			copy(model[r.Off:], r.Buf)
		}
	}
	return nil
}

// Each operation of a snapshot's device fails in turn, once or from then on. The guest's writes never do; the snapshot holds the
// cut, or is broken, and the header says so. What failed once may be healed where neighbours are then saved one by one.
func TestSnapshotFails(t *testing.T) {
	for name, rule := range map[string]blockdevtest.Rule{
		"EIO": {}, "EIO for ever": {Forever: true}, "no room": {Err: syscall.ENOSPC, Ops: blockdevtest.Writes, Forever: true}, "torn": {Ops: blockdevtest.Writes, Torn: 3},
		"flush": {Ops: blockdevtest.Flushes, DropUnflushed: true},
	} {
		t.Run(name, func(t *testing.T) {
			broken, healing := 0, !rule.Forever && rule.Ops&blockdevtest.Flushes == 0
			blockdevtest.EachFailure(t, rule, func(n int, f *blockdevtest.Failure) {
				dev, sp := memoryStore(t, snapSize, 4096, 512, true), new(spell)
				v, m, want := snapped(t, dev, cowfmt.OnErrorBreakSnapshot, time.Minute, func(m *blockdevtest.Memory) blockdev.Device {
					sp.Device, sp.well = blockdevtest.NewFault(m, f), m
					sp.over.Store(true)
					return sp
				})
				sp.over.Store(false)
				model := bytes.Clone(want)
				if err := overwrite(v, model); err != nil {
					t.Errorf("operation %d: the guest's write: %v", n, err)
				}
				if got := contents(t, v, snapSize); !bytes.Equal(got, model) {
					t.Errorf("operation %d: the volume holds something else", n)
				}
				e, at := entryOf(t, dev), v.Stack()[0]
				was := e.State == cowfmt.StackBroken
				if e.State != at.State || was != (at.Err != nil) || was && f.Fired() == 0 || !was && f.Fired() > 0 && !healing {
					t.Errorf("operation %d: fired %d times, header %v, engine %+v", n, f.Fired(), e, at)
				}
				if e.State == cowfmt.StackBroken {
					broken++
				} else if got := asOfCut(t, v, memoryMaster(snapSize, true, 0, snapSize), m); !bytes.Equal(got, want) {
					t.Errorf("operation %d: the snapshot reads something else", n)
				}
				check(t, v.RemoveSnapshot(t.Context(), at.ID))
				check(t, v.Close())
			})
			if t.Logf("broken %d times", broken); broken < 2 || broken < 4 && !healing {
				t.Error("too few failures")
			}
		})
	}
}

// The same where the guest's write is to fail: the snapshot always holds the cut, and once the device is well the write succeeds.
func TestSnapshotKept(t *testing.T) {
	failed := 0
	blockdevtest.EachFailure(t, blockdevtest.Rule{Ops: blockdevtest.Writes | blockdevtest.Reads, Err: syscall.ENOSPC}, func(n int, f *blockdevtest.Failure) {
		dev, sp := memoryStore(t, snapSize, 4096, 512, true), new(spell)
		v, m, want := snapped(t, dev, cowfmt.OnErrorBreakGuestWrite, time.Minute, func(m *blockdevtest.Memory) blockdev.Device {
			sp.Device, sp.well = blockdevtest.NewFault(m, f), m
			sp.over.Store(true)
			return sp
		})
		sp.over.Store(false)
		model := bytes.Clone(want)
		err := overwrite(v, model)
		if err != nil && (f.Fired() == 0 || !errors.Is(err, syscall.ENOSPC)) {
			t.Errorf("operation %d: fired %d times: %v", n, f.Fired(), err)
		}
		if err != nil {
			failed++
		}
		if got := contents(t, v, snapSize); !bytes.Equal(got, model) {
			t.Errorf("operation %d: a write that failed changed the volume", n)
		}
		check(t, overwrite(v, model))
		if e := entryOf(t, dev); e.State != cowfmt.StackActive {
			t.Errorf("operation %d: header %v", n, e)
		}
		if got := asOfCut(t, v, memoryMaster(snapSize, true, 0, snapSize), m); !bytes.Equal(got, want) {
			t.Errorf("operation %d: the snapshot reads something else", n)
		}
		check(t, v.Close())
	})
	if failed < 2 {
		t.Errorf("%d writes failed", failed)
	}
}

// A LUN that refuses what is saved is the snapshot's: it says nothing of who has the volume.
func TestSnapshotShutOut(t *testing.T) {
	sp := new(spell)
	v, _, _ := snapped(t, memoryStore(t, snapSize, 4096, 512, true), cowfmt.OnErrorBreakGuestWrite, time.Minute, func(m *blockdevtest.Memory) blockdev.Device {
		refuses := blockdevtest.NewFailure(blockdevtest.Rule{N: 1, Forever: true, Ops: blockdevtest.Writes, Err: syscall.EBADE})
		sp.Device, sp.well = blockdevtest.NewFault(m, refuses), m
		sp.over.Store(true)
		return sp
	})
	sp.over.Store(false)
	if _, err := v.WriteAt(filled(0, 512, 2), 0); !errors.Is(err, syscall.EIO) || v.Lost() {
		t.Errorf("%v, lost: %v", err, v.Err())
	}
	sp.over.Store(true)
	_, err := v.WriteAt(filled(0, 512, 2), 0)
	check(t, err)
	check(t, v.Close())
}

// A snapshot's device that hangs is waited for so long and no longer; what it writes late does no harm.
func TestSnapshotHangs(t *testing.T) { synctest.Test(t, snapshotHangs) }

func snapshotHangs(t *testing.T) {
	dev := memoryStore(t, snapSize, 4096, 512, true)
	var slow *blockdevtest.Delay
	v, _, want := snapped(t, dev, cowfmt.OnErrorBreakSnapshot, time.Second, func(m *blockdevtest.Memory) blockdev.Device {
		slow = blockdevtest.NewDelay(m)
		return slow
	})
	slow.Hold()
	model := bytes.Clone(want)
	check(t, overwrite(v, model))
	if e := entryOf(t, dev); e.State != cowfmt.StackBroken || slow.Held() == 0 || v.Target() != "clone" {
		t.Errorf("header %v, %d writes held", e, slow.Held())
	}
	check(t, slow.Release())
	slow.HoldIf(nil)
	if got := contents(t, v, snapSize); !bytes.Equal(got, model) {
		t.Error("the volume holds something else")
	}
	check(t, v.Close())
}

// A snapshot that is removed while its device hangs is closed when the device goes on: its store can be deleted then, while
// the volume is in use.
func TestSnapshotRemovedWhileItHangs(t *testing.T) {
	on, closed := shelf{}, make(chan struct{})
	v := mustOpen(t, memoryStore(t, snapSize, 4096, 512, true), memoryMaster(snapSize, true, 0, snapSize), uuid.New(), "", func(o *Options) {
		o.OpenSnapshot = func(ctx context.Context, e cowfmt.StackEntry) (*store.Snapshot, func() error, error) {
			s, _, err := on.open(ctx, e)
			return s, func() error { close(closed); return nil }, err
		}
	})
	_, err := v.WriteAt(filled(0, 4096, 1), 0)
	check(t, err)
	var slow *blockdevtest.Delay
	_, id := snap(t, v, on, 0, func(m *blockdevtest.Memory, e *cowfmt.StackEntry) blockdev.Device {
		e.Timeout = 500
		slow = blockdevtest.NewDelay(m)
		return slow
	})
	slow.Hold()
	_, err = v.WriteAt(filled(0, 4096, 2), 0)
	check(t, err)
	if err := v.RemoveSnapshot(t.Context(), id); err == nil || len(v.Header().Stack) > 0 {
		t.Errorf("removed while it hangs: %v, %v", err, v.Header().Stack)
	}
	check(t, v.RemoveSnapshot(t.Context(), id)) // once more
	slow.HoldIf(nil)
	check(t, slow.Release())
	select {
	case <-closed:
	case <-time.After(time.Minute):
		t.Error("its device goes on, and is still open")
	}
	check(t, v.Close())
}

// While neither the snapshot nor the header can be written the guest's write waits, and then fails; the cut is held all
// the time. Once the header can be written the snapshot is broken and the write goes on.
func TestSnapshotCantBreak(t *testing.T) { synctest.Test(t, snapshotCantBreak) }

func snapshotCantBreak(t *testing.T) {
	m := memoryStore(t, snapSize, 4096, 512, true)
	always := blockdevtest.NewFailure(blockdevtest.Rule{N: 1, Forever: true})
	header := blockdevtest.NewFailure(blockdevtest.Rule{N: 1, Forever: true, Ops: blockdevtest.Writes, Length: cowfmt.MetadataSize})
	dev := &spell{Device: blockdevtest.NewFault(m, header), well: m}
	dev.over.Store(true)
	sp := new(spell)
	v, snapshot, want := snapped(t, dev, cowfmt.OnErrorBreakSnapshot, 2*time.Second, func(m *blockdevtest.Memory) blockdev.Device {
		sp.Device, sp.well = blockdevtest.NewFault(m, always), m
		sp.over.Store(true)
		return sp
	})
	sp.over.Store(false)
	dev.over.Store(false)
	if _, err := v.WriteAt(filled(0, 512, 2), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("neither saved nor broken: %v", err)
	}
	if got := asOfCut(t, v, memoryMaster(snapSize, true, 0, snapSize), snapshot); !bytes.Equal(got, want) {
		t.Error("the snapshot reads something else")
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		time.Sleep(50 * time.Millisecond)
		dev.over.Store(true)
	})
	_, err := v.WriteAt(filled(0, 512, 2), 0)
	check(t, err)
	wg.Wait()
	if e := entryOf(t, m); e.State != cowfmt.StackBroken {
		t.Errorf("header %v", e)
	}
	check(t, v.Close())
}

// The same where the header's device does not fail, but hang.
func TestSnapshotCantBreakWhileTheHeaderHangs(t *testing.T) {
	synctest.Test(t, snapshotCantBreakWhileTheHeaderHangs)
}

func snapshotCantBreakWhileTheHeaderHangs(t *testing.T) {
	m := memoryStore(t, snapSize, 4096, 512, true)
	slow, sp := blockdevtest.NewDelay(m), new(spell)
	always := blockdevtest.NewFailure(blockdevtest.Rule{N: 1, Forever: true})
	v, _, _ := snapped(t, slow, cowfmt.OnErrorBreakSnapshot, time.Second, func(m *blockdevtest.Memory) blockdev.Device {
		sp.Device, sp.well = blockdevtest.NewFault(m, always), m
		sp.over.Store(true)
		return sp
	})
	sp.over.Store(false)
	slow.HoldIf(func(_ string, off, _ int64) bool { return off < cowfmt.MetadataSize })
	failed := make(chan error, 1)
	go func() {
		_, err := v.WriteAt(filled(0, 512, 2), 0)
		failed <- err
	}()
	select {
	case err := <-failed:
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("neither saved nor broken: %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("the guest's write waits for the header's device")
	}
	check(t, slow.Release())
	_, err := v.WriteAt(filled(0, 512, 2), 0)
	check(t, err)
	if e := entryOf(t, m); e.State != cowfmt.StackBroken {
		t.Errorf("header %v", e)
	}
	check(t, v.Close())
}

// Each operation of the snapshot's device, or of the volume's, fails in turn while a snapshot is added, cut and kept: it is
// there or it is not, the volume is not held up, and the next one succeeds.
func TestCutFails(t *testing.T) {
	for _, which := range []string{"snapshot", "volume"} {
		t.Run(which, func(t *testing.T) {
			n := blockdevtest.EachFailure(t, blockdevtest.Rule{Ops: blockdevtest.Reads | blockdevtest.Writes}, func(n int, f *blockdevtest.Failure) {
				m, on := memoryStore(t, snapSize, 4096, 512, true), shelf{}
				dev := &spell{Device: m, well: m}
				if which == "volume" {
					dev.Device = blockdevtest.NewFault(m, f)
				}
				dev.over.Store(true)
				v := mustOpen(t, dev, memoryMaster(snapSize, true, 0, snapSize), uuid.New(), "", on.option)
				_, err := v.WriteAt(filled(0, 10<<12, 1), 0)
				check(t, err)
				cut := uuid.New()
				sm, e, err := newSnapshotStore(v.Header(), 0, 512, cut)
				check(t, err)
				var device blockdev.Device = sm
				if which == "snapshot" {
					device = blockdevtest.NewFault(sm, f)
				}
				on[e.UUID] = func() (blockdev.Device, error) { return device, nil }
				dev.over.Store(false)
				err = v.AddSnapshot(t.Context(), e)
				if err == nil {
					_, werr := v.WriteAt(filled(12<<12, 4096, 1), 12<<12)
					if err = v.Cut(t.Context(), cut, time.Minute); err == nil {
						err = v.EndCut(t.Context(), cut, true)
					}
					_ = werr // of the volume's device, perhaps
				}
				dev.over.Store(true)
				if v.Suspended() {
					t.Errorf("operation %d: suspended", n)
				}
				if active := len(v.Stack()) == 1 && v.Stack()[0].State == cowfmt.StackActive; active != (err == nil) {
					t.Errorf("operation %d: %v, %+v", n, err, v.Stack())
				}
				check(t, v.EndCut(t.Context(), cut, false))
				st, err := store.Open(m)
				check(t, err)
				if stack := st.Header().Stack; len(v.Stack()) > 0 || len(stack) > 0 && stack[0].State != cowfmt.StackPending {
					t.Errorf("operation %d: left in the stack: %v, %+v", n, stack, v.Stack())
				}
				want := contents(t, v, snapSize)
				again, _ := snap(t, v, on, 0)
				check(t, overwrite(v, bytes.Clone(want)))
				if got := asOfCut(t, v, memoryMaster(snapSize, true, 0, snapSize), again); !bytes.Equal(got, want) {
					t.Errorf("operation %d: the next snapshot reads something else", n)
				}
				check(t, v.Close())
			})
			t.Logf("%d failures", n)
		})
	}
}

// A snapshot's device that hangs while the cut is made makes the cut void, and holds nothing up: neither the guest, nor a grant,
// nor the volume's end.
func TestCutHangs(t *testing.T) {
	for _, when := range []string{"before the suspension", "suspended"} {
		t.Run(when, func(t *testing.T) {
			on := shelf{}
			v := mustOpen(t, memoryStore(t, snapSize, 4096, 512, true), memoryMaster(snapSize, true, 0, snapSize), uuid.New(), "", on.option)
			cut := uuid.New()
			m, e, err := newSnapshotStore(v.Header(), 0, 512, cut)
			check(t, err)
			slow := blockdevtest.NewDelay(m)
			e.Timeout = 500
			on[e.UUID] = func() (blockdev.Device, error) { return slow, nil }
			check(t, v.AddSnapshot(t.Context(), e))
			_, err = v.WriteAt(filled(0, 4096, 1), 0)
			check(t, err)
			done := make(chan error, 1)
			if when == "suspended" {
				c, err := v.beginCut(cut)
				check(t, err)
				c.held, err = v.suspend(t.Context(), time.Minute, true)
				check(t, err)
				slow.Hold()
				go func() {
					err := v.settleCut(c)
					_ = c.held.Resume()
					v.endCut(c)
					done <- err
				}()
			} else {
				slow.Hold()
				go func() { done <- v.Cut(context.Background(), cut, time.Minute) }()
			}
			slow.WaitHeld(1)
			ended := make(chan error, 1)
			go func() { ended <- v.EndCut(context.Background(), cut, false) }()
			select {
			case err := <-done:
				if err == nil {
					t.Error("a cut that hangs is made")
				}
			case <-time.After(time.Minute):
				t.Fatal("it waits for the snapshot's device")
			}
			check(t, <-ended)
			if len(v.Header().Stack) > 0 || v.divide(true) != nil || v.divide(false) != nil {
				t.Error("the cut is not over")
			}
			check(t, v.Close())
			slow.HoldIf(nil)
			check(t, slow.Release())
		})
	}
}

// A cut that could neither be made durable nor undone is void, also for who asks once more.
func TestCutNotKept(t *testing.T) {
	m, on := memoryStore(t, snapSize, 4096, 512, true), shelf{}
	header := blockdevtest.NewFailure(blockdevtest.Rule{N: 1, Forever: true, Ops: blockdevtest.Writes, Length: cowfmt.MetadataSize})
	dev := &spell{Device: blockdevtest.NewFault(m, header), well: m}
	dev.over.Store(true)
	v := mustOpen(t, dev, memoryMaster(snapSize, true, 0, snapSize), uuid.New(), "", on.option)
	cut := uuid.New()
	sm, e, err := newSnapshotStore(v.Header(), 0, 512, cut)
	check(t, err)
	on[e.UUID] = func() (blockdev.Device, error) { return sm, nil }
	check(t, v.AddSnapshot(t.Context(), e))
	check(t, v.Cut(t.Context(), cut, time.Minute))
	dev.over.Store(false)
	for range 2 {
		if err := v.EndCut(t.Context(), cut, true); err == nil {
			t.Errorf("kept, and the header says %v", entryOf(t, m))
		}
	}
	dev.over.Store(true)
	check(t, v.EndCut(t.Context(), cut, false))
	if len(v.Header().Stack) > 0 || v.Target() != "clone" {
		t.Errorf("%s, %v", v.Target(), v.Header().Stack)
	}
	check(t, v.Close())
}

// At its deadline a cut is void: the volume goes on by itself, without the snapshot.
func TestCutDeadline(t *testing.T) { synctest.Test(t, cutDeadline) }

func cutDeadline(t *testing.T) {
	on := shelf{}
	dev := memoryStore(t, snapSize, 4096, 512, true)
	v := mustOpen(t, dev, memoryMaster(snapSize, true, 0, snapSize), uuid.New(), "", on.option)
	cut := uuid.New()
	m, e, err := newSnapshotStore(v.Header(), 0, 512, cut)
	check(t, err)
	on[e.UUID] = func() (blockdev.Device, error) { return m, nil }
	check(t, v.AddSnapshot(t.Context(), e))
	check(t, v.AddSnapshot(t.Context(), e)) // once more: its answer was lost
	if err := v.EndCut(t.Context(), cut, true); !errors.Is(err, ErrResumed) {
		t.Errorf("kept before the cut: %v", err)
	}
	check(t, v.Cut(t.Context(), cut, time.Second))
	_, err = v.WriteAt(filled(0, 512, 2), 0) // held until then
	check(t, err)
	if err := v.EndCut(context.Background(), cut, true); !errors.Is(err, ErrResumed) {
		t.Errorf("kept after its deadline: %v", err)
	}
	if v.Target() != "clone" || len(v.Stack()) != 0 || len(v.Header().Stack) != 0 {
		t.Errorf("%s, %+v", v.Target(), v.Stack())
	}
	check(t, v.EndCut(t.Context(), cut, false))
	if err := v.AddSnapshot(t.Context(), e); err != nil { // it holds nothing: it is as good as new
		t.Error(err)
	}
	check(t, v.Cut(t.Context(), cut, time.Minute))
	check(t, v.Cut(t.Context(), cut, time.Minute)) // once more
	if err := v.RemoveSnapshot(t.Context(), e.UUID); err == nil {
		t.Error("removed in the middle of its cut")
	}
	check(t, v.EndCut(t.Context(), cut, true))
	check(t, v.EndCut(t.Context(), cut, true)) // once more
	_, err = v.WriteAt(filled(0, 512, 3), 0)
	check(t, err)
	check(t, v.EndCut(t.Context(), cut, false)) // another volume's deadline was first
	if len(v.Header().Stack) != 0 {
		t.Errorf("%+v", v.Header().Stack)
	}
	if err := v.AddSnapshot(t.Context(), e); !errors.Is(err, errUsed) {
		t.Errorf("a store that holds chunks already: %v", err)
	}
	check(t, v.Close())
}

// A cut that is kept once more, while the header is still written for the first time, is kept.
func TestCutKeptTwiceAtOnce(t *testing.T) {
	on := shelf{}
	slow := blockdevtest.NewDelay(memoryStore(t, snapSize, 4096, 512, true))
	v := mustOpen(t, slow, memoryMaster(snapSize, true, 0, snapSize), uuid.New(), "", on.option)
	cut := uuid.New()
	m, e, err := newSnapshotStore(v.Header(), 0, 512, cut)
	check(t, err)
	on[e.UUID] = func() (blockdev.Device, error) { return m, nil }
	check(t, v.AddSnapshot(t.Context(), e))
	check(t, v.Cut(t.Context(), cut, time.Minute))
	slow.Hold()
	kept := make(chan error, 2)
	for range 2 {
		go func() { kept <- v.EndCut(context.Background(), cut, true) }()
		slow.WaitHeld(1)
	}
	time.Sleep(50 * time.Millisecond) // for the second to come as far as it can
	check(t, slow.Release())
	for range 2 {
		if err := <-kept; err != nil {
			t.Errorf("%v, and the header says %v", err, v.Header().Stack)
		}
	}
	check(t, v.Close())
}

// A snapshot that is removed while it is being added is in the stack or it is not: the header and the engine say the same.
func TestSnapshotRemovedWhileItIsAdded(t *testing.T) {
	on := shelf{}
	v := mustOpen(t, memoryStore(t, snapSize, 4096, 512, true), memoryMaster(snapSize, true, 0, snapSize), uuid.New(), "", on.option)
	m, e, err := newSnapshotStore(v.Header(), 0, 512, uuid.New())
	check(t, err)
	on[e.UUID] = func() (blockdev.Device, error) { return m, nil }
	inside, goOn := make(chan struct{}), make(chan struct{})
	var busy sync.WaitGroup
	busy.Go(func() {
		check(t, v.moving.call(t.Context(), func() error { close(inside); <-goOn; return nil }))
	})
	<-inside
	busy.Go(func() { check(t, v.AddSnapshot(t.Context(), e)) })
	time.Sleep(50 * time.Millisecond) // for each to come as far as it can
	busy.Go(func() { check(t, v.RemoveSnapshot(t.Context(), e.UUID)) })
	time.Sleep(50 * time.Millisecond)
	close(goOn)
	busy.Wait()
	if len(v.Stack()) != len(v.Header().Stack) {
		t.Errorf("the engine has %+v, the header %v", v.Stack(), v.Header().Stack)
	}
	check(t, v.Close())
}

// A cut begins at the moment in which a suspension ends with another target, as where a clone is cut loose: neither waits for
// the other.
func TestCutBesideAnotherTarget(t *testing.T) {
	on := shelf{}
	v := mustOpen(t, memoryStore(t, snapSize, 4096, 512, true), memoryMaster(snapSize, true, 0, snapSize), uuid.New(), "", on.option)
	cut := uuid.New()
	m, e, err := newSnapshotStore(v.Header(), 0, 512, cut)
	check(t, err)
	on[e.UUID] = func() (blockdev.Device, error) { return m, nil }
	check(t, v.AddSnapshot(t.Context(), e))
	s, err := v.suspend(t.Context(), time.Minute, false)
	check(t, err)
	inside, begun := make(chan struct{}), make(chan error, 1)
	go func() {
		<-inside
		_, err := v.beginCut(cut)
		begun <- err
	}()
	swapped := make(chan error, 1)
	go func() {
		swapped <- s.resume(func() {
			close(inside)
			time.Sleep(50 * time.Millisecond) // for the cut to come as far as it can
			v.remap(func() {})
		})
	}()
	for _, c := range []chan error{swapped, begun} {
		select {
		case err := <-c:
			check(t, err)
		case <-time.After(time.Minute):
			t.Fatal("they wait for each other, and so does every request")
		}
	}
	v.endCut(v.stack.cut)
	check(t, v.Close())
}

// A cut that comes while the engine has the volume suspended for a change of its target waits for that, not longer than its
// deadline.
func TestCutWaitsForAnotherTarget(t *testing.T) { synctest.Test(t, cutWaitsForAnotherTarget) }

func cutWaitsForAnotherTarget(t *testing.T) {
	on := shelf{}
	v := mustOpen(t, memoryStore(t, snapSize, 4096, 512, true), memoryMaster(snapSize, true, 0, snapSize), uuid.New(), "", on.option)
	cut := uuid.New()
	m, e, err := newSnapshotStore(v.Header(), 0, 512, cut)
	check(t, err)
	on[e.UUID] = func() (blockdev.Device, error) { return m, nil }
	check(t, v.AddSnapshot(t.Context(), e))
	s, err := v.suspend(t.Context(), time.Minute, false)
	check(t, err)
	if err := v.Cut(t.Context(), cut, 500*time.Millisecond); !errors.Is(err, ErrSuspended) || len(v.Header().Stack) > 0 {
		t.Errorf("%v, %v", err, v.Header().Stack)
	}
	check(t, v.AddSnapshot(t.Context(), e))
	done := make(chan error, 1)
	go func() { done <- v.Cut(context.Background(), cut, time.Minute) }()
	eventually(t, "being cut", func() bool { return v.stack.cutOf(e.UUID) != nil })
	select {
	case err := <-done:
		t.Fatalf("made beside another suspension: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	check(t, s.Resume())
	check(t, <-done)
	if _, err := v.Suspend(t.Context(), time.Minute); !errors.Is(err, ErrSuspended) {
		t.Errorf("suspended twice: %v", err)
	}
	check(t, v.EndCut(t.Context(), cut, true))
	check(t, v.Close())
}

// A volume is closed while a snapshot's frozen table is being written: what it is written from is not read any more then.
func TestCloseWhileFreezing(t *testing.T) {
	const leaf = int64(store.LeafChunks) * 4096
	on, size := shelf{}, (freezeAtOnce+2)*leaf
	v := mustOpen(t, memoryStore(t, size, 4096, sector, false), nil, uuid.New(), "", on.option)
	for i := range int64(freezeAtOnce + 2) {
		_, err := v.WriteAt(filled(i*leaf, 4096, 1), i*leaf)
		check(t, err)
	}
	m, e, err := newSnapshotStore(v.Header(), 0, sector, uuid.New())
	check(t, err)
	slow := blockdevtest.NewDelay(m)
	on[e.UUID] = func() (blockdev.Device, error) { return slow, nil }
	slow.Hold()
	added := make(chan error, 1)
	go func() { added <- v.AddSnapshot(context.Background(), e) }()
	slow.WaitHeld(1)
	check(t, v.Close())
	slow.HoldIf(nil)
	check(t, slow.Release())
	if err := <-added; !errors.Is(err, ErrClosed) {
		t.Errorf("added to a volume that was closed: %v", err)
	}
}
