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
// round is committed at a time, by goroutines that live while there is something to do: one, or two where both are.
//
// A round costs two flushes, whatever is in it. So where the guest has begun to write, its next writes are met: neighbours of a chunk
// are saved with it (ahead).
//
// A chunk that fails fails those who asked for it, and may be asked for again. A flush that failed fails all that follow.

const (
	batchBytes = 8 << 20 // of one batch
	copyBytes  = 1 << 20 // of one request of it
	copyAtOnce = 16      // requests
)

// aheadSteps are what a chunk is saved with: the largest of these pieces, whose multiples they begin at, of which so many parts in
// 64 are saved already. The first write to a piece saves what it is to change and no more; one more, and all of the piece is.
var aheadSteps = []struct{ bytes, parts int64 }{{64 << 10, 1}, {256 << 10, 32}, {1 << 20, 32}}

var errEnded = errors.New("the snapshot has ended")

// copier saves the chunks of one snapshot.
type copier struct {
	s *snapshot

	mu         sync.Mutex
	asked      map[int64]*batch // by chunk; batches that have not ended
	queue      []*batch         // not begun; the last may take more
	copied     []*batch         // to be committed
	workers    int              // goroutines
	copying    bool             // one of them
	committing bool             // one of them
	idle       chan struct{}    // closed once nothing is left to do; nil: nobody waits
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
			b = c.add(chunk)
		}
		if n := len(to); n == 0 || to[n-1] != b {
			to = append(to, b)
		}
	}
	c.meet(first)
	if last := first + count - 1; last != first {
		c.meet(last)
	}
	c.hire()
	return to
}

// add puts a chunk that nobody has asked for into a batch. Called with mu held.
func (c *copier) add(chunk int64) *batch {
	b := c.open()
	b.chunks = append(b.chunks, chunk)
	c.asked[chunk] = b
	return b
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

// meet adds what is to be saved ahead around a chunk. Called with mu held.
func (c *copier) meet(chunk int64) {
	first, count := c.s.ahead(chunk)
	for next := first; next < first+count; next++ {
		if set, _, known := c.s.saved.lookup(next, 1); c.asked[next] == nil && (!known || !set) {
			c.add(next)
		}
	}
}

// hire sees to it that what is asked for is copied. Called with mu held.
func (c *copier) hire() {
	busy := 0
	if c.committing {
		busy = 1
	}
	if len(c.queue) > 0 && !c.copying && c.workers == busy {
		c.workers++
		go c.work()
	}
}

// work copies and commits until nothing is left that nobody else does.
func (c *copier) work() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch {
		case len(c.copied) > 0 && !c.committing:
			c.commitNext()
		case len(c.queue) > 0 && !c.copying:
			c.copyNext()
		default:
			if c.workers--; c.workers == 0 && c.idle != nil {
				close(c.idle)
				c.idle = nil
			}
			return
		}
	}
}

// copyNext copies a batch. Called with mu held, and gives it up meanwhile.
func (c *copier) copyNext() {
	b := c.queue[0]
	c.queue = c.queue[1:]
	c.copying = true
	c.mu.Unlock()
	c.copy(b)
	c.mu.Lock()
	c.copying = false
	c.copied = append(c.copied, b)
}

// commitNext commits all that is copied, while another goroutine copies what is asked for. Called with mu held, and gives it
// up meanwhile.
func (c *copier) commitNext() {
	round := c.copied
	c.copied, c.committing = nil, true
	c.hire()
	c.mu.Unlock()
	err := c.commit(round)
	c.mu.Lock()
	c.committing = false
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
		save := func() error {
			for chunk, err := range c.save(run) {
				mu.Lock()
				b.fail([]int64{chunk}, err)
				mu.Unlock()
			}
			return nil
		}
		if len(rest) == 0 { // here: most batches are one run
			_ = save()
			break
		}
		group.Go(save)
	}
	_ = group.Wait()
}

// save copies neighbouring chunks, and says which could not be: one by one, so that no chunk fails for another's sake.
func (c *copier) save(run []int64) map[int64]error {
	err := c.copyRun(run[0], int64(len(run)))
	if err == nil {
		return nil
	}
	failed := map[int64]error{}
	for _, chunk := range run {
		if len(run) > 1 && !c.s.ended() {
			err = c.copyRun(chunk, 1)
		}
		if err != nil {
			failed[chunk] = err
		}
	}
	return failed
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
	if c.workers == 0 {
		close(idle)
		c.idle = nil
	}
	return idle
}
