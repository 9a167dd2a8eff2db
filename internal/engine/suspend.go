package engine

import (
	"context"
	"fmt"
	"time"
)

// Suspension is a volume at rest: nothing is inside its target, new requests are held. It ends with
// Resume, or by itself at its deadline.
type Suspension struct {
	v     *Volume
	timer *time.Timer
	ended chan struct{}
	cut   bool // somebody else's, who may make a cut meanwhile
	began time.Time
}

// Suspend drains the volume and holds its I/O until Resume or, whatever happens to the caller, until the
// deadline. It fails, with the I/O going on, where the requests inside don't end before the context or
// the deadline does; with ErrSuspended where somebody else has it suspended (a suspension of the engine's own, to change
// the target, is waited for); and with ErrGranted while another host has the volume open.
func (v *Volume) Suspend(ctx context.Context, deadline time.Duration) (*Suspension, error) {
	if err := v.moving.undivided("suspend"); err != nil {
		return nil, err
	}
	return v.suspend(ctx, deadline, true)
}

func (v *Volume) suspend(ctx context.Context, deadline time.Duration, cut bool) (*Suspension, error) {
	end := time.Now().Add(deadline)
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	s := &Suspension{v: v, ended: make(chan struct{}), cut: cut}
	g := &v.gate
	g.mu.Lock()
	for own := g.suspended; cut && own != nil && !own.cut; own = g.suspended {
		g.mu.Unlock()
		select {
		case <-own.ended:
		case <-ctx.Done():
			return nil, fmt.Errorf("suspend %s: %w for a change of its target: %w", v.info.Name, ErrSuspended, context.Cause(ctx))
		}
		g.mu.Lock()
	}
	if g.closed {
		g.mu.Unlock()
		return nil, fmt.Errorf("suspend %s: %w", v.info.Name, ErrClosed)
	}
	if g.suspended != nil {
		g.mu.Unlock()
		return nil, fmt.Errorf("suspend %s: %w", v.info.Name, ErrSuspended)
	}
	if cut && g.divided {
		g.mu.Unlock()
		return nil, fmt.Errorf("suspend %s: %w", v.info.Name, ErrGranted)
	}
	g.suspended, s.began = s, time.Now()
	d := g.await(all)
	s.timer = time.AfterFunc(time.Until(end), func() { _ = s.resume(nil) })
	g.mu.Unlock()
	select {
	case <-d.done:
		return s, nil
	default:
	}
	select {
	case <-d.done:
		return s, nil
	case <-s.ended: // its deadline, or the volume is being closed
		return nil, fmt.Errorf("suspend %s: its requests took too long: %w", v.info.Name, ErrResumed)
	case <-ctx.Done():
		_ = s.resume(nil)
		return nil, fmt.Errorf("suspend %s: its requests took too long: %w", v.info.Name, context.Cause(ctx))
	}
}

// Resume lets the held I/O go on. ErrResumed: the deadline was first.
func (s *Suspension) Resume() error { return s.resume(nil) }

// resume has change done while nothing is inside, and lets the I/O go on. With ErrResumed nothing was changed.
func (s *Suspension) resume(change func()) error {
	g := &s.v.gate
	g.mu.Lock()
	if g.suspended != s {
		g.mu.Unlock()
		return ErrResumed
	}
	if change != nil {
		change()
	}
	s.lift()
	held := g.sort()
	g.mu.Unlock()
	s.v.letGo(held)
	return nil
}

// lift ends the suspension. Called with the gate's mu held; the gate's sort is to follow.
func (s *Suspension) lift() {
	s.timer.Stop()
	s.v.gate.suspended = nil
	close(s.ended)
}

// Suspended says whether the volume's I/O is being held by a suspension.
func (v *Volume) Suspended() bool {
	v.gate.mu.Lock()
	defer v.gate.mu.Unlock()
	return v.gate.suspended != nil
}

// setCutting says that a cut is being made: no grant meanwhile. It is refused while there is one.
func (g *gate) setCutting(cutting bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if cutting && g.divided {
		return ErrGranted
	}
	g.cutting = cutting
	return nil
}

// divide refuses suspensions from now on, until there is no grant any more; or is refused by one.
func (v *Volume) divide(divided bool) error {
	g := &v.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if divided && (g.cutting || g.suspended != nil && g.suspended.cut) {
		return fmt.Errorf("%s: %w", v.info.Name, ErrSuspended)
	}
	g.divided = divided
	return nil
}
