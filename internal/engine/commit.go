package engine

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/store"
)

// committer makes things durable in groups: all FLUSHes that arrive while a round is running share the
// next one. A round captures the dirty flags, flushes the data, and only then writes the flags and
// flushes again: a durable flag never runs ahead of its data (invariant 1).
type committer struct {
	st     *store.Store
	data   blockdev.Device // what guests' data is on: the store's device, or a raw origin
	taken  func(error)     // called when the store turns out to be another host's
	rounds atomic.Uint64

	running sync.Mutex // one round at a time

	mu   sync.Mutex
	next *round // has not begun; who comes now belongs to it
}

type round struct {
	done chan struct{}
	err  error
}

// commit returns when everything acknowledged before it was called survives a power cut. t may be nil: a
// volume without a table has only its data.
func (c *committer) commit(t *table) error {
	c.mu.Lock()
	r := c.next
	if r != nil {
		c.mu.Unlock()
		<-r.done
		return r.err
	}
	r = &round{done: make(chan struct{})}
	c.next = r
	c.mu.Unlock()

	c.running.Lock()
	c.mu.Lock()
	c.next = nil
	c.mu.Unlock()
	r.err = c.round(t)
	c.running.Unlock()
	close(r.done)
	return r.err
}

func (c *committer) round(t *table) error {
	c.rounds.Add(1)
	var leaves []store.Leaf
	if t != nil {
		leaves = t.capture()
	}
	err := c.data.Flush()
	if err == nil {
		err = c.st.WriteLeaves(leaves)
	}
	if t != nil {
		t.committed(err)
	}
	if errors.Is(err, store.ErrEpoch) && c.taken != nil {
		c.taken(err)
	}
	return err
}

// latch makes a failed Flush stay failed: what the kernel could not write it forgets, so a second Flush
// that succeeds proves nothing about what was written before the first.
type latch struct {
	blockdev.Device
	failed atomic.Pointer[error]
	tell   func() // called once, before the first failure is returned
	once   sync.Once
	mu     sync.Mutex // one Flush at a time: the kernel tells only one of two that overlap of an error
}

// NewLatch wraps the device a store is opened on.
func NewLatch(dev blockdev.Device) blockdev.Device { return &latch{Device: dev} }

func (l *latch) Flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.failed.Load(); err != nil {
		return fmt.Errorf("an earlier flush failed, what was written before it may be lost: %w", *err)
	}
	err := l.Device.Flush()
	if err != nil {
		l.fail(err)
	}
	return err
}

func (l *latch) fail(err error) {
	l.failed.CompareAndSwap(nil, &err)
	if l.tell != nil {
		l.once.Do(l.tell)
	}
}

// Under implements blockdev's way down to the File.
func (l *latch) Under() (blockdev.Device, int64) { return l.Device, 0 }
