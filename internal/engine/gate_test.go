package engine

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/store"
)

// delayed is a volume without a master whose device's writes can be held.
func delayed(t *testing.T) (*Volume, *blockdevtest.Delay) {
	t.Helper()
	dev := blockdevtest.NewDelay(memoryStore(t, 256<<10, 4096, sector, false))
	return mustOpen(t, dev, nil, uuid.New(), ""), dev
}

// dataOnly holds writes of the guest's data.
func dataOnly(v *Volume) func(op string, off, length int64) bool {
	data := v.Header().Layout.Data
	return func(_ string, off, _ int64) bool { return off >= data }
}

// start makes a request on a goroutine.
func start(v *Volume, r *blockdev.Request) chan error {
	done := make(chan error, 1)
	r.Done = func(_ *blockdev.Request, err error) { done <- err }
	r.Length = int64(len(r.Buf))
	v.Submit(r)
	return done
}

func (v *Volume) heldRequests() int {
	v.gate.mu.Lock()
	defer v.gate.mu.Unlock()
	return len(v.gate.held)
}

// Suspend waits for what is inside, holds what comes, and lets it go on at Resume.
func TestSuspendDrainsAndHolds(t *testing.T) {
	v, dev := delayed(t)
	dev.HoldIf(dataOnly(v))
	inside := start(v, &blockdev.Request{Op: blockdev.OpWrite, Buf: filled(0, 4096, 1)})
	dev.WaitHeld(1)
	type result struct {
		s   *Suspension
		err error
	}
	suspended := make(chan result)
	go func() {
		s, err := v.Suspend(context.Background(), time.Hour)
		suspended <- result{s, err}
	}()
	eventually(t, "suspended", v.Suspended)
	if _, err := v.Suspend(context.Background(), time.Hour); !errors.Is(err, ErrSuspended) {
		t.Errorf("a second Suspend: %v, want %v", err, ErrSuspended)
	}
	later := start(v, &blockdev.Request{Op: blockdev.OpWrite, Buf: filled(4096, 4096, 2), Off: 4096})
	read := start(v, &blockdev.Request{Op: blockdev.OpRead, Buf: make([]byte, 4096), Off: 8192})
	select {
	case <-suspended:
		t.Fatal("suspended while a request is inside")
	default:
	}
	check(t, dev.Release())
	check(t, <-inside)
	r := <-suspended
	check(t, r.err)
	if n := v.heldRequests(); n != 2 {
		t.Errorf("%d requests are held, want 2", n)
	}
	check(t, r.s.Resume())
	check(t, <-later)
	check(t, <-read)
	if err := r.s.Resume(); !errors.Is(err, ErrResumed) {
		t.Errorf("a second Resume: %v, want %v", err, ErrResumed)
	}
	check(t, v.Close())
}

// At its deadline a suspension ends by itself, and the swap it was for is void.
func TestSuspendDeadline(t *testing.T) { synctest.Test(t, suspendDeadline) }

func suspendDeadline(t *testing.T) {
	v, _ := delayed(t)
	s, err := v.Suspend(context.Background(), 500*time.Millisecond)
	check(t, err)
	held := start(v, &blockdev.Request{Op: blockdev.OpWrite, Buf: filled(0, 4096, 1)})
	check(t, <-held) // with nobody's help
	if err := s.resume(func() { t.Error("changed") }); !errors.Is(err, ErrResumed) {
		t.Errorf("a swap after the deadline: %v, want %v", err, ErrResumed)
	}
	if v.Target() != "clone" {
		t.Errorf("the target is %s: the swap was done after the deadline", v.Target())
	}
	check(t, v.Close())
}

// Where the requests inside don't end in time Suspend fails and the I/O goes on.
func TestSuspendThatCannotDrain(t *testing.T) {
	v, dev := delayed(t)
	dev.HoldIf(dataOnly(v))
	inside := start(v, &blockdev.Request{Op: blockdev.OpWrite, Buf: filled(0, 4096, 1)})
	dev.WaitHeld(1)
	if _, err := v.Suspend(context.Background(), 10*time.Millisecond); err == nil {
		t.Error("suspended with a request inside")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := v.Suspend(ctx, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("Suspend with a context that ended: %v", err)
	}
	check(t, request(v, &blockdev.Request{Op: blockdev.OpRead, Buf: make([]byte, 4096), Off: 8192}))
	check(t, dev.Release())
	check(t, <-inside)
	check(t, v.Close())
}

// Close doesn't wait for a suspension: what was held is served, then the volume is closed.
func TestCloseWhileSuspended(t *testing.T) {
	v, _ := delayed(t)
	_, err := v.Suspend(context.Background(), time.Hour)
	check(t, err)
	held := start(v, &blockdev.Request{Op: blockdev.OpWrite, Buf: filled(0, 4096, 1)})
	check(t, v.Close())
	check(t, <-held)
	if err := request(v, &blockdev.Request{Op: blockdev.OpRead, Buf: make([]byte, 512)}); !errors.Is(err, ErrClosed) {
		t.Errorf("a request after Close: %v, want %v", err, ErrClosed)
	}
	if _, err := v.Suspend(context.Background(), time.Hour); !errors.Is(err, ErrClosed) {
		t.Errorf("Suspend after Close: %v, want %v", err, ErrClosed)
	}
}

// Close ends a Suspend that is waiting, and still waits for what is inside.
func TestCloseWhileSuspending(t *testing.T) {
	v, dev := delayed(t)
	dev.HoldIf(dataOnly(v))
	inside := start(v, &blockdev.Request{Op: blockdev.OpWrite, Buf: filled(0, 4096, 1)})
	dev.WaitHeld(1)
	suspended := make(chan error)
	go func() {
		_, err := v.Suspend(context.Background(), time.Hour)
		suspended <- err
	}()
	eventually(t, "suspended", v.Suspended)
	closed := make(chan error)
	go func() { closed <- v.Close() }()
	if err := <-suspended; !errors.Is(err, ErrResumed) {
		t.Errorf("Suspend: %v, want %v", err, ErrResumed)
	}
	select {
	case err := <-closed:
		t.Fatalf("closed (%v) with a request inside", err)
	default:
	}
	check(t, dev.Release())
	check(t, <-inside)
	check(t, <-closed)
}

// Hydration that a suspension holds up delays neither its own pause nor Close.
func TestHydrationWhileSuspended(t *testing.T) {
	dev := memoryStore(t, 256<<10, 4096, sector, true)
	v := mustOpen(t, dev, memoryMaster(256<<10, false, 0, 256<<10), uuid.New(), "")
	s, err := v.Suspend(context.Background(), time.Hour)
	check(t, err)
	check(t, v.StartHydration())
	v.PauseHydration()
	if got := v.Hydration(); got.State != HydrationPaused || v.Stats().Hydrated > 0 {
		t.Errorf("hydration of a suspended volume, paused: %+v", got)
	}
	check(t, v.StartHydration())
	check(t, v.Close())
	if err := v.StartHydration(); !errors.Is(err, ErrClosed) {
		t.Errorf("StartHydration after Close: %v, want %v", err, ErrClosed)
	}
	_ = s
}

// Many suspend, resume, let deadlines pass and close while requests come: each is answered once.
func TestGateStorm(t *testing.T) {
	for range 20 {
		v, _ := delayed(t)
		var wg sync.WaitGroup
		var answered atomic.Int64
		const workers, each = 4, 50
		for k := range int64(workers) {
			wg.Go(func() {
				for i := range int64(each) {
					r := &blockdev.Request{Op: blockdev.OpWrite, Buf: filled(k*4096, 4096, uint32(i)), Off: k * 4096}
					if err := request(v, r); err != nil && !errors.Is(err, ErrClosed) {
						t.Error(err)
					}
					answered.Add(1)
				}
			})
		}
		wg.Go(func() {
			for i := range 30 {
				s, err := v.Suspend(context.Background(), time.Duration(i%3)*50*time.Microsecond+time.Microsecond)
				if err == nil && i%2 == 0 {
					_ = s.Resume()
				}
				if errors.Is(err, ErrClosed) {
					return
				}
			}
		})
		eventually(t, "half way", func() bool { return answered.Load() > workers*each/2 })
		check(t, v.Close())
		wg.Wait()
	}
}

// A store that another host has is not touched, and its exception cache is not left behind.
func TestOpenOwnedElsewhere(t *testing.T) {
	dev := memoryStore(t, 64<<10, 4096, sector, false)
	v := mustOpen(t, dev, nil, uuid.New(), "")
	_, err := openOn(dev, nil, uuid.New(), "", func(o *Options) { o.Owner.Host = uuid.New() })
	if !errors.Is(err, store.ErrOwned) {
		t.Errorf("%v: want %v", err, store.ErrOwned)
	}
	check(t, v.Close())
}
