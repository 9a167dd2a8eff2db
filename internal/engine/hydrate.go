package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// The pace of hydration. While the guest is quiet several large copies run at a time; while it is not,
// one small copy between pauses, so that few of its requests meet one.
const (
	hydrateCopy       = 1 << 20 // bytes of one copy while the guest is quiet
	hydrateCopyPolite = 128 << 10
	hydrateZero       = 64 << 20 // bytes zeroed at a time
	hydrateWorkers    = 4
	hydratePause      = 10 * time.Millisecond // between polite copies
	hydrateQuiet      = 50 * time.Millisecond // without guest I/O: quiet
	hydrateSpan       = 1 << 30               // bytes whose extents are asked of the master at a time
	hydrateTries      = 4
	hydrateFailures   = 16 // pieces that may fail before a pass is given up
)

// HydrationState says what the background copy is doing.
type HydrationState string

// The states of hydration.
const (
	HydrationPaused  HydrationState = "paused"
	HydrationRunning HydrationState = "running"
	HydrationFailed  HydrationState = "failed" // some chunks could not be copied; starting again retries
	HydrationDone    HydrationState = "done"   // the clone is cut loose
)

// Hydration tells how far the background copy is. Sizes are bytes.
type Hydration struct {
	State HydrationState
	Done  int64 // known to be in the store
	Total int64
	Rate  int64 // limit a second, 0: none
	Err   error // of the last failure
}

// hydrator copies what the guest has not written from the master, and cuts the clone loose at the end.
type hydrator struct {
	v    *Volume
	c    *clone
	pace *pace

	mu     sync.Mutex
	state  HydrationState
	err    error
	cancel context.CancelFunc
	ended  chan struct{} // of the running loop
	closed bool          // never starts again

	lastOps  uint64 // of the guest, when looked at last; used by the loop only
	lastBusy time.Time
}

func newHydrator(v *Volume, c *clone) *hydrator {
	return &hydrator{v: v, c: c, state: HydrationPaused, pace: newPace()}
}

// StartHydration starts or goes on with the background copy. It needs the exception cache.
func (v *Volume) StartHydration() error {
	h := v.hydrator
	if h == nil {
		return nil // cut loose already
	}
	if v.info.ReadOnly {
		return fmt.Errorf("hydrate %s: %w", v.info.Name, blockdev.ErrReadOnly)
	}
	if v.table.off() {
		return fmt.Errorf("hydrate %s: its exception cache is off", v.info.Name)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed:
		return fmt.Errorf("hydrate %s: %w", v.info.Name, ErrClosed)
	case h.state == HydrationRunning || h.state == HydrationDone:
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel, h.ended, h.state, h.err = cancel, make(chan struct{}), HydrationRunning, nil
	go h.loop(ctx, h.ended)
	return nil
}

// PauseHydration stops the background copy; what it copied stays.
func (v *Volume) PauseHydration() {
	if v.hydrator != nil {
		v.hydrator.stop()
	}
}

// SetHydrationRate limits the background copy to so many bytes a second, at once; 0 is no limit.
func (v *Volume) SetHydrationRate(bytes int64) {
	if v.hydrator == nil {
		return
	}
	v.hydrator.pace.set(bytes)
}

// Hydration tells how far the background copy is.
func (v *Volume) Hydration() Hydration {
	if v.hydrator == nil {
		return Hydration{State: HydrationDone, Done: v.info.Size, Total: v.info.Size}
	}
	h := v.hydrator
	h.mu.Lock()
	defer h.mu.Unlock()
	return Hydration{
		State: h.state, Err: h.err, Rate: h.pace.get(),
		Done: min(v.table.ones.Load()*h.c.chunk, v.info.Size), Total: v.info.Size,
	}
}

func (h *hydrator) stop() {
	h.mu.Lock()
	cancel, ended := h.cancel, h.ended
	h.mu.Unlock()
	if cancel != nil {
		cancel()
		<-ended
	}
}

// shut stops hydration for good.
func (h *hydrator) shut() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.stop()
}

func (h *hydrator) loop(ctx context.Context, ended chan struct{}) {
	defer close(ended)
	err := h.hydrate(ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err == nil:
		h.state = HydrationDone
		h.v.log.Info().Msg("cut loose from its master")
	case ctx.Err() != nil:
		h.state = HydrationPaused
	default:
		h.state, h.err = HydrationFailed, err
		h.v.log.Error().Err(err).Msg("hydration")
	}
}

func (h *hydrator) hydrate(ctx context.Context) error {
	for leaf := range h.c.table.cache.leaves {
		if err := h.c.table.load(leaf); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	for h.c.table.ones.Load() < h.c.table.chunks {
		if err := h.pass(ctx); err != nil {
			return err
		}
	}
	return h.v.cutLoose(ctx)
}

// job is a run of chunks that were clear when it was made.
type job struct {
	off, length int64 // bytes, whole chunks
	zero        bool  // the master reads as zeros there
}

// pass makes one round over all clear chunks. It returns the first of too many errors, or of any that
// are left at its end.
func (h *hydrator) pass(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		mu       sync.Mutex
		first    error
		failures int
		workers  sync.WaitGroup
	)
	jobs := make(chan job)
	run := func(j job) {
		err := h.try(ctx, j)
		if err == nil || ctx.Err() != nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if first == nil {
			first = err
		}
		if failures++; failures >= hydrateFailures {
			cancel()
		}
	}
	for range hydrateWorkers {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for j := range jobs {
				run(j)
			}
		}()
	}
	planErr := h.plan(ctx, func(j job) {
		if !h.busy() {
			select {
			case jobs <- j:
			case <-ctx.Done():
			}
			return
		}
		for _, part := range split(j, h.jobSize(j, true)) {
			run(part)
			sleep(ctx, hydratePause)
		}
	})
	close(jobs)
	workers.Wait()
	if first != nil {
		return first
	}
	return planErr
}

// busy says whether the guest did something of late.
func (h *hydrator) busy() bool {
	if ops := h.v.stats.guestOps(); ops != h.lastOps {
		h.lastOps, h.lastBusy = ops, time.Now()
		return true
	}
	return time.Since(h.lastBusy) < hydrateQuiet
}

// split cuts a job into parts of at most size bytes.
func split(j job, size int64) []job {
	var out []job
	for j.length > 0 {
		n := min(size, j.length)
		out = append(out, job{off: j.off, length: n, zero: j.zero})
		j.off, j.length = j.off+n, j.length-n
	}
	return out
}

// jobSize is how much may be done at a time: zeroing is quick where the device punches holes.
func (h *hydrator) jobSize(j job, polite bool) int64 {
	switch {
	case j.zero:
		return hydrateZero
	case polite:
		return max(hydrateCopyPolite, h.c.chunk)
	}
	return max(hydrateCopy, h.c.chunk)
}

// plan calls do with jobs for everything that is clear, in order.
func (h *hydrator) plan(ctx context.Context, do func(job)) error {
	c := h.c
	for chunk := int64(0); chunk < c.table.chunks; {
		set, n, err := c.table.run(chunk, max(hydrateSpan/c.chunk, 1))
		if err != nil {
			return err
		}
		if !set {
			extents, err := c.masterExtents(chunk*c.chunk, min(n*c.chunk, c.size-chunk*c.chunk))
			if err != nil {
				extents = nil // then all of it is copied, and errors are seen there
			}
			for _, j := range jobsOf(extents, chunk*c.chunk, n*c.chunk, c.chunk) {
				for _, part := range split(j, h.jobSize(j, false)) {
					if ctx.Err() != nil {
						return ctx.Err()
					}
					do(part)
				}
			}
		}
		chunk += n
	}
	return ctx.Err()
}

// jobsOf makes zero jobs of the whole chunks that extents say are zeros, and copies of the rest.
func jobsOf(extents []blockdev.Extent, off, length, chunk int64) []job {
	var out []job
	copied := func(to int64) {
		if to > off {
			out = append(out, job{off: off, length: to - off})
		}
	}
	end := off + length
	for i := 0; i < len(extents); i++ {
		e := extents[i]
		if !e.Zero {
			continue
		}
		stop := e.Offset + e.Length
		for i+1 < len(extents) && extents[i+1].Zero {
			i++
			stop = extents[i].Offset + extents[i].Length
		}
		from, to := inner(max(e.Offset, off), stop-max(e.Offset, off), chunk)
		if i == len(extents)-1 { // the volume's last chunk may be short
			to = end
		}
		if from < to {
			copied(from)
			out = append(out, job{off: from, length: to - from, zero: true})
			off = to
		}
	}
	copied(end)
	return out
}

// try does one job, again after a pause where it fails.
func (h *hydrator) try(ctx context.Context, j job) error {
	var err error
	for i := range hydrateTries {
		if i > 0 && !sleep(ctx, 100*time.Millisecond<<i) {
			return ctx.Err()
		}
		if err = h.do(ctx, j); err == nil || errors.Is(err, ErrClosed) {
			return err
		}
	}
	return fmt.Errorf("hydrate %s at %d: %w", h.v.info.Name, j.off, err)
}

// do puts what is still clear of a job in place.
func (h *hydrator) do(ctx context.Context, j job) error {
	if !j.zero {
		if err := h.pace.wait(ctx, int(min(j.length, hydrateCopy))); err != nil {
			return err
		}
	}
	if err := h.v.gate.enter(ctx); err != nil {
		return err
	}
	defer h.v.gate.leave()
	c := h.c
	if err := c.table.prepare(c.chunks(j.off, j.length)); err != nil {
		return err
	}
	first, count := c.chunks(j.off, j.length)
	held := c.inflight.lock(first, first+count-1, false)
	defer c.inflight.unlock(held)
	return c.eachRun(j.off, j.length, func(set bool, off, length int64) error {
		if set {
			return nil
		}
		if err := h.fill(off, length, j.zero); err != nil {
			return err
		}
		c.table.set(c.chunks(off, length))
		h.v.stats.hydrated.add(int(length))
		return nil
	})
}

// fill puts whole clear chunks in place, unlocked flags and all.
func (h *hydrator) fill(off, length int64, zero bool) error {
	if zero {
		return h.c.data.zero(off, length, true)
	}
	buf := blockdev.Alloc(int(length))
	defer blockdev.Free(buf)
	if err := h.c.readMaster(buf, off); err != nil {
		return err
	}
	return h.c.data.write(buf, off)
}

// sleep returns false where the context ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
