package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

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
	if err := h.v.gate.enter(ctx, writing); err != nil {
		return err
	}
	defer h.v.gate.leave(writing)
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
