package engine

import (
	"context"
	"sync"
	"time"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

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
					if !j.zero && (part.off-j.off)%hydrateRoom == 0 {
						c.data.room(part.off, min(hydrateRoom, j.off+j.length-part.off))
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
