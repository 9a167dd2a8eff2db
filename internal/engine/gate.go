package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

var (
	// ErrSuspended says that the volume is suspended already.
	ErrSuspended = errors.New("volume is suspended already")
	// ErrResumed says that a suspension's deadline passed before it was used: nothing was changed.
	ErrResumed = errors.New("the suspension passed its deadline and the volume resumed by itself")
	// ErrClosed says that the volume is closed.
	ErrClosed = fmt.Errorf("volume is closed: %w", unix.ESHUTDOWN)
)

// gate counts the requests inside the target and holds new ones while the volume is suspended, as
// device-mapper does between suspend and resume.
type gate struct {
	mu        sync.Mutex
	inside    int
	suspended *Suspension
	closed    bool
	held      []*blockdev.Request
	empty     chan struct{} // closed when inside falls to 0 under a suspension
	open      chan struct{} // closed when the gate opens; for those who wait in enter
}

// pass lets a request in (true), or keeps it to be given to the resumer (false). Closed: an error.
func (g *gate) pass(r *blockdev.Request) (bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.closed:
		return false, ErrClosed
	case g.suspended != nil:
		g.held = append(g.held, r)
		return false, nil
	}
	g.inside++
	return true, nil
}

// enter is pass for a caller that can wait.
func (g *gate) enter() error {
	for {
		g.mu.Lock()
		if g.closed {
			g.mu.Unlock()
			return ErrClosed
		}
		if g.suspended == nil {
			g.inside++
			g.mu.Unlock()
			return nil
		}
		open := g.open
		g.mu.Unlock()
		<-open
	}
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.inside == 0 && g.empty != nil {
		close(g.empty)
		g.empty = nil
	}
}

// close lets nobody in any more and waits until all are out. Held requests are let through first.
func (g *gate) close() {
	g.mu.Lock()
	s := g.suspended
	g.mu.Unlock()
	if s != nil {
		_ = s.resume(nil)
	}
	g.mu.Lock()
	g.closed = true
	var empty chan struct{}
	if g.inside > 0 {
		empty = make(chan struct{})
		g.empty = empty
	}
	g.mu.Unlock()
	if empty != nil {
		<-empty
	}
}

// Suspension is a volume at rest: nothing is inside its target, new requests are held. It ends with
// Resume, or by itself at its deadline.
type Suspension struct {
	v     *Volume
	timer *time.Timer
}

// Suspend drains the volume and holds its I/O until Resume or, whatever happens to the caller, until the
// deadline. It fails, with the I/O going on, where the requests inside don't end before the context or
// the deadline does.
func (v *Volume) Suspend(ctx context.Context, deadline time.Duration) (*Suspension, error) {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	s := &Suspension{v: v}
	g := &v.gate
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return nil, ErrClosed
	}
	if g.suspended != nil {
		g.mu.Unlock()
		return nil, ErrSuspended
	}
	g.suspended = s
	g.open = make(chan struct{})
	var empty chan struct{}
	if g.inside > 0 {
		empty = make(chan struct{})
		g.empty = empty
	}
	s.timer = time.AfterFunc(deadline, func() { _ = s.resume(nil) })
	g.mu.Unlock()
	if empty == nil {
		return s, nil
	}
	select {
	case <-empty:
		return s, nil
	case <-ctx.Done():
		if err := s.resume(nil); err != nil {
			return nil, err
		}
		return nil, context.Cause(ctx)
	}
}

// Resume lets the held I/O go on. ErrResumed: the deadline was first.
func (s *Suspension) Resume() error { return s.resume(nil) }

// resumeWith swaps the target and resumes; with ErrResumed the target is as it was.
func (s *Suspension) resumeWith(t target) error { return s.resume(t) }

func (s *Suspension) resume(t target) error {
	g := &s.v.gate
	g.mu.Lock()
	if g.suspended != s {
		g.mu.Unlock()
		return ErrResumed
	}
	s.timer.Stop()
	if t != nil {
		s.v.setTarget(t)
	}
	g.suspended, g.empty = nil, nil
	close(g.open)
	held := g.held
	g.held = nil
	g.inside += len(held)
	g.mu.Unlock()
	for _, r := range held {
		r.Detached = true
		go s.v.serve(r)
	}
	return nil
}
