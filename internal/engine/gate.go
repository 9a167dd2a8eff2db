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
func (g *gate) enter(ctx context.Context) error {
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
		select {
		case <-open:
		case <-ctx.Done():
			return ctx.Err()
		}
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
	g.closed = true
	s := g.suspended
	var held []*blockdev.Request
	if s != nil {
		held = s.lift(nil)
	}
	var empty chan struct{}
	if g.inside > 0 {
		empty = make(chan struct{})
		g.empty = empty
	}
	g.mu.Unlock()
	if held != nil {
		s.serve(held)
	}
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
		return nil, fmt.Errorf("suspend %s: %w", v.info.Name, ErrClosed)
	}
	if g.suspended != nil {
		g.mu.Unlock()
		return nil, fmt.Errorf("suspend %s: %w", v.info.Name, ErrSuspended)
	}
	g.suspended = s
	open := make(chan struct{})
	g.open = open
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
	case <-open: // its deadline, or the volume is being closed
		return nil, fmt.Errorf("suspend %s: its requests took too long: %w", v.info.Name, ErrResumed)
	case <-ctx.Done():
		_ = s.resume(nil)
		return nil, fmt.Errorf("suspend %s: its requests took too long: %w", v.info.Name, context.Cause(ctx))
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
	held := s.lift(t)
	g.mu.Unlock()
	s.serve(held)
	return nil
}

// lift ends the suspension and returns what was held, which is inside from now on. Called with the
// gate's mu held.
func (s *Suspension) lift(t target) []*blockdev.Request {
	g := &s.v.gate
	s.timer.Stop()
	if t != nil {
		s.v.setTarget(t)
	}
	g.suspended, g.empty = nil, nil
	close(g.open)
	held := g.held
	g.held = nil
	g.inside += len(held)
	return held
}

func (s *Suspension) serve(held []*blockdev.Request) {
	for _, r := range held {
		r.Detached = true
		go s.v.serve(r)
	}
}
