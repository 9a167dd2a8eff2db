package engine

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// # The copier
//
// Writers ask for chunks and wait. What is asked for while a batch is being copied is the next batch, so that neighbours
// are read and written in one. Batches that are copied while the device is being flushed wait for each other and share
// the next round:
//
//	copy     the origin's data into the snapshot's data area, runs in one request, several at a time
//	commit   flush; flags; flush
//
// Only after that a chunk's flag is set in memory, and whoever asked for it goes on. One batch is copied at a time and one
// round is committed at a time, each by a goroutine that lives while there is something to do.
//
// A chunk that fails fails those who asked for it, and may be asked for again. A flush that failed fails all that follow.

const (
	batchBytes = 8 << 20 // of one batch
	copyBytes  = 1 << 20 // of one request of it
	copyAtOnce = 16      // requests
)

var errEnded = errors.New("the snapshot has ended")

// copier saves the chunks of one snapshot.
type copier struct {
	s *snapshot

	mu         sync.Mutex
	asked      map[int64]*batch // by chunk; batches that have not ended
	queue      []*batch         // not begun; the last may take more
	copied     []*batch         // to be committed
	copying    bool
	committing bool
	idle       chan struct{} // closed once nothing is left to do; nil: nobody waits
}

// batch is chunks that are saved together.
type batch struct {
	chunks []int64
	done   chan struct{}

	// For the goroutine that has it, until done is closed.
	failed map[int64]error
	needed []int64 // of chunks: those that are to be saved
}

// err is why a chunk of a range is not saved, once the batch is done.
func (b *batch) err(first, last int64) error {
	for c, err := range b.failed {
		if first <= c && c <= last {
			return err
		}
	}
	return nil
}

func (b *batch) fail(chunks []int64, err error) {
	if b.failed == nil {
		b.failed = map[int64]error{}
	}
	for _, c := range chunks {
		b.failed[c] = err
	}
}

// ask has chunks [first, first+count) saved, and adds the batches to wait for to those given.
func (c *copier) ask(first, count int64, to []*batch) []*batch {
	c.mu.Lock()
	defer c.mu.Unlock()
	for chunk := first; chunk < first+count; chunk++ {
		b := c.asked[chunk]
		if b == nil {
			b = c.open()
			b.chunks = append(b.chunks, chunk)
			c.asked[chunk] = b
		}
		if n := len(to); n == 0 || to[n-1] != b {
			to = append(to, b)
		}
	}
	if !c.copying && len(c.queue) > 0 {
		c.copying = true
		go c.copyAll()
	}
	return to
}

// open is a batch that takes one more chunk. Called with mu held.
func (c *copier) open() *batch {
	if n := len(c.queue); n > 0 && int64(len(c.queue[n-1].chunks)) < max(batchBytes/c.s.chunk, 1) {
		return c.queue[n-1]
	}
	b := &batch{done: make(chan struct{})}
	c.queue = append(c.queue, b)
	return b
}

// copyAll copies until nothing is asked for.
func (c *copier) copyAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) > 0 {
		b := c.queue[0]
		c.queue = c.queue[1:]
		c.mu.Unlock()
		c.copy(b)
		c.mu.Lock()
		c.copied = append(c.copied, b)
		if !c.committing {
			c.committing = true
			go c.commitAll()
		}
	}
	c.copying = false
}

// copy brings the data of a batch into the snapshot's data area; what need not be saved is left out.
func (c *copier) copy(b *batch) {
	slices.Sort(b.chunks)
	for _, chunk := range b.chunks {
		if need, err := c.s.needs(chunk); err != nil {
			b.fail([]int64{chunk}, err)
		} else if need {
			b.needed = append(b.needed, chunk)
		}
	}
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(copyAtOnce)
	most := max(copyBytes/c.s.chunk, 1)
	for rest := b.needed; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n] == rest[n-1]+1 && int64(n) < most {
			n++
		}
		run := rest[:n]
		rest = rest[n:]
		group.Go(func() error {
			if err := c.copyRun(run[0], int64(n)); err != nil {
				mu.Lock()
				defer mu.Unlock()
				b.fail(run, err)
			}
			return nil
		})
	}
	_ = group.Wait()
}

// copyRun copies neighbouring chunks. Behind the end of what the volume is on there are zeros.
func (c *copier) copyRun(first, count int64) error {
	off, length := first*c.s.chunk, count*c.s.chunk
	buf := blockdev.Alloc(int(length))
	defer blockdev.Free(buf)
	n := min(length, c.s.origin.Info().Size-off)
	clear(buf[n:])
	if _, err := c.s.origin.ReadAt(buf[:n], off); err != nil {
		return fmt.Errorf("read what is to be saved: %w", err)
	}
	if c.s.ended() {
		return errEnded
	}
	if _, err := c.s.data.WriteAt(buf, off); err != nil {
		return fmt.Errorf("save: %w", err)
	}
	return nil
}

// commitAll commits until nothing is copied.
func (c *copier) commitAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.copied) > 0 {
		round := c.copied
		c.copied = nil
		c.mu.Unlock()
		err := c.commit(round)
		c.mu.Lock()
		for _, b := range round {
			if err != nil {
				b.fail(b.needed, err)
			}
			for _, chunk := range b.chunks {
				delete(c.asked, chunk)
			}
			close(b.done)
		}
	}
	c.committing = false
	if c.idle != nil && !c.copying {
		close(c.idle)
		c.idle = nil
	}
}

// commit makes the data, then the flags of batches durable.
func (c *copier) commit(round []*batch) error {
	var saved []int64
	for _, b := range round {
		for _, chunk := range b.needed {
			if b.failed[chunk] == nil {
				saved = append(saved, chunk)
			}
		}
	}
	switch {
	case len(saved) == 0:
		return nil
	case c.s.ended():
		return errEnded
	}
	if err := c.s.store.Device().Flush(); err != nil {
		return fmt.Errorf("flush what was saved: %w", err)
	}
	slices.Sort(saved)
	if err := c.s.store.WriteLeaves(c.s.saved.with(saved)); err != nil {
		return err
	}
	c.s.saved.mark(saved)
	return nil
}

// rest is closed once nothing is being saved.
func (c *copier) rest() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.idle == nil {
		c.idle = make(chan struct{})
	}
	idle := c.idle
	if !c.copying && !c.committing {
		close(idle)
		c.idle = nil
	}
	return idle
}
