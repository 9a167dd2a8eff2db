package engine

import (
	"context"
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
	hydrateZero       = 64 << 20  // bytes zeroed at a time
	hydrateRoom       = 128 << 20 // bytes of a file's room asked for ahead of the copies, a multiple of hydrateCopy
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
	wanted bool          // to run, also while the cache is off

	lastOps  uint64 // of the guest, when looked at last; used by the loop only
	lastBusy time.Time
}

func newHydrator(v *Volume, c *clone) *hydrator {
	return &hydrator{v: v, c: c, state: HydrationPaused, pace: newPace()}
}

// StartHydration starts or goes on with the background copy. It needs the exception cache: while that is off because another host
// has the volume open, or had until now, it is noted, and begins when the cache is on again.
func (v *Volume) StartHydration() error {
	h := v.hydrator
	if h == nil {
		return nil // cut loose already
	}
	if v.info.ReadOnly {
		return fmt.Errorf("hydrate %s: %w", v.info.Name, blockdev.ErrReadOnly)
	}
	divided := v.moving.undivided("hydrate") != nil
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return fmt.Errorf("hydrate %s: %w", v.info.Name, ErrClosed)
	}
	off := v.table.off()
	if off && !divided && v.moving.wantsOff() {
		return fmt.Errorf("hydrate %s: its exception cache is off", v.info.Name)
	}
	h.wanted = true
	switch {
	case off: // until it is on again
		return nil
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
	if h := v.hydrator; h != nil {
		h.mu.Lock()
		h.wanted = false
		h.mu.Unlock()
		h.stop()
	}
}

// haltHydration stops it for a while; resumeHydration goes on with it if it is still wanted.
func (v *Volume) haltHydration() {
	if v.hydrator != nil {
		v.hydrator.stop()
	}
}

func (v *Volume) resumeHydration() {
	h := v.hydrator
	if h == nil {
		return
	}
	h.mu.Lock()
	wanted := h.wanted && !h.closed
	h.mu.Unlock()
	if !wanted {
		return
	}
	if err := v.StartHydration(); err != nil {
		v.log.Warn().Err(err).Msg("hydration does not go on")
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
	for leaf := range h.c.table.leaves {
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
