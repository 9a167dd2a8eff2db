package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// limits all hold at once.
type limits []*rate.Limiter

// wait waits until n bytes may be read.
func (l limits) wait(ctx context.Context, n int) error {
	for _, limiter := range l {
		if limiter == nil {
			continue
		}
		for left := n; left > 0; left -= limiter.Burst() { // a piece of a job begun by an earlier configuration may be larger
			if err := limiter.WaitN(ctx, min(left, limiter.Burst())); err != nil {
				return err
			}
		}
	}
	return nil
}

// run copies what is not yet copied, one disk after another.
func (c *copying) run(ctx context.Context) error {
	if c.copied() {
		return nil
	}
	if err := c.job.change(to(api.JobCopying)); err != nil {
		return err
	}
	defer c.show(ctx)()
	for i := range c.manifest.Disks {
		if err := c.disk(ctx, i); err != nil {
			return fmt.Errorf("disk %s: %w", c.manifest.Disks[i].Target, err)
		}
	}
	return nil
}

func (c *copying) copied() bool {
	for i := range c.manifest.Disks {
		if c.at.Pieces[i] < c.pieces(i) {
			return false
		}
	}
	return true
}

func (c *copying) pieces(disk int) int64 {
	return (c.manifest.Disks[disk].Size + c.at.Piece - 1) / c.at.Piece
}

// show tells who looks once a second how far the job is.
func (c *copying) show(ctx context.Context) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			select {
			case <-time.After(time.Second):
				c.count()
				c.job.tell()
			case <-ctx.Done():
				return
			}
		}
	})
	return func() {
		cancel()
		running.Wait()
	}
}

// disk copies a disk, from checkpoint to checkpoint: nothing is under way at one, so all below its place is in the archive.
func (c *copying) disk(ctx context.Context, i int) error {
	for c.at.Pieces[i] < c.pieces(i) {
		next, err := c.stretch(ctx, i)
		if err != nil && ctx.Err() == nil {
			return err
		}
		// Also where the node ends: then nothing has to be read twice.
		if next > c.at.Pieces[i] {
			c.at.Pieces[i] = next
			patient, cancel := outlast(ctx)
			failed := c.checkpoint(patient)
			cancel()
			if failed != nil {
				return failed
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// lastCheckpoint is how long a node that ends waits for the pieces under way, and then for their checkpoint.
const lastCheckpoint = 10 * time.Second

// stretch copies pieces until a checkpoint is due, and says up to where all of them are written: to its end, or, where ctx has
// ended, as far as they were taken up. After any other error it says nothing.
func (c *copying) stretch(ctx context.Context, i int) (next int64, err error) {
	due := time.Now().Add(c.node.config.Checkpoint)
	patient, cancel := outlast(ctx)
	defer cancel()
	g, working := errgroup.WithContext(patient)
	g.SetLimit(c.node.config.Readers)
	first := c.at.Pieces[i]
	for next = first; next < c.pieces(i) && ctx.Err() == nil && working.Err() == nil && (next == first || time.Now().Before(due)); next++ {
		length := int(min(c.at.Piece, c.manifest.Disks[i].Size-next*c.at.Piece))
		zero := c.zero(i, next, length)
		if !zero {
			if err := c.limit.wait(ctx, length); err != nil {
				break
			}
		}
		index := next
		g.Go(func() error { return c.piece(working, i, index, length, zero) })
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	return next, ctx.Err()
}

// outlast is a context that lives on for a while where the node ends, so that what was taken up is brought to its end, but not
// where the job is cancelled or given up.
func outlast(ctx context.Context) (context.Context, context.CancelFunc) {
	patient, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		if why := context.Cause(ctx); !errors.Is(why, errCancelled) && !errors.Is(why, ErrGivenUp) {
			select {
			case <-time.After(lastCheckpoint):
			case <-patient.Done():
			}
		}
		cancel()
	})
	return patient, func() {
		stop()
		cancel()
	}
}

// zero says whether a piece certainly reads as zeros. Where that can't be told it is read.
func (c *copying) zero(i int, piece int64, length int) bool {
	done := c.job.asks(c.manifest.Disks[i].Target)
	extents, err := c.sources[i].Extents(piece*c.at.Piece, int64(length))
	done()
	if err != nil {
		return false
	}
	for _, e := range extents {
		if !e.Zero {
			return false
		}
	}
	return true
}

// piece copies one.
func (c *copying) piece(ctx context.Context, i int, piece int64, length int, zero bool) error {
	var data []byte
	if !zero {
		data = blockdev.Alloc(length)
		defer blockdev.Free(data)
		done := c.job.asks(c.manifest.Disks[i].Target)
		_, err := c.sources[i].ReadAt(data, piece*c.at.Piece)
		done()
		if err != nil {
			return err
		}
		c.job.read.Add(int64(length))
		zero = zeros(data)
	}
	if zero {
		data = nil
		c.job.zero.Add(int64(length))
	}
	if err := c.disks[i].Write(ctx, piece, data); err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	c.job.seen.Add(int64(length))
	return nil
}

// zeros says whether all of b is zero.
func zeros(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}
