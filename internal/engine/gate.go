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

// class is what a hand-over must tell apart: who may read may not always write, and a FLUSH changes nothing.
type class uint8

const (
	reading class = iota // reads and extents
	writing              // writes, zeroes, trims, and hydration
	flushing
	classes
)

func classOf(op blockdev.Op) class {
	switch op {
	case blockdev.OpRead:
		return reading
	case blockdev.OpFlush:
		return flushing
	}
	return writing
}

// rule is what is done with the requests of a class.
type rule uint8

const (
	pass   rule = iota
	hold        // until the rule changes
	refuse      // with the gate's refusal
)

// rules are one a class.
type rules [classes]rule

// gate counts the requests inside the target and holds new ones while the volume is suspended, as
// device-mapper does between suspend and resume, or while a hand-over's rules say so.
type gate struct {
	mu        sync.Mutex
	inside    [classes]int
	writes    uint64 // that were ever let in
	suspended *Suspension
	rules     rules
	refusal   error // of the classes whose rule is refuse
	closed    bool
	divided   bool // another host has, or may have, the volume open: no suspension but the engine's own
	cutting   bool // a cut is being made: no grant
	held      []heldRequest
	turn      chan struct{} // closed when somebody in enter may go on; nil: nobody waits there
	drains    []*drain
	onHold    func() // called, without mu, when a rule has held a request; must not block
}

// heldRequest is a request that waits outside.
type heldRequest struct {
	r  *blockdev.Request
	at time.Time // when it came
}

// drain is somebody who waits until all requests of some classes have left, while new ones are held.
type drain struct {
	of   [classes]bool
	done chan struct{}
}

func (g *gate) empty(of [classes]bool) bool {
	for c, n := range g.inside {
		if of[c] && n > 0 {
			return false
		}
	}
	return true
}

var all = [classes]bool{true, true, true}

// await returns a channel that is closed once no request of these classes is inside. Called with mu held.
func (g *gate) await(of [classes]bool) *drain {
	d := &drain{of: of, done: make(chan struct{})}
	if g.empty(of) {
		close(d.done)
	} else {
		g.drains = append(g.drains, d)
	}
	return d
}

// pass lets a request in (true), or keeps it to be given to whoever opens the gate (false). Closed, or refused: an error.
func (g *gate) pass(r *blockdev.Request) (bool, error) {
	c := classOf(r.Op)
	g.mu.Lock()
	held, err := g.stops(c)
	if err == nil && !held {
		g.let(c)
	}
	if held {
		g.held = append(g.held, heldRequest{r, time.Now()})
	}
	tell := held && g.rules[c] == hold
	g.mu.Unlock()
	if tell && g.onHold != nil {
		g.onHold()
	}
	return err == nil && !held, err
}

// let counts a request in. Called with mu held.
func (g *gate) let(c class) {
	g.inside[c]++
	if c == writing {
		g.writes++
	}
}

// written is how many writes were ever let in.
func (g *gate) written() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.writes
}

// stops says whether a request of a class is to be held, or why it is refused. Called with mu held.
func (g *gate) stops(c class) (held bool, err error) {
	switch {
	case g.closed:
		return false, ErrClosed
	case g.rules[c] == refuse:
		return false, g.refusal
	}
	return g.suspended != nil || g.rules[c] == hold, nil
}

// enter is pass for a caller that can wait.
func (g *gate) enter(ctx context.Context, c class) error {
	for {
		g.mu.Lock()
		held, err := g.stops(c)
		if !held || err != nil {
			if err == nil {
				g.let(c)
			}
			g.mu.Unlock()
			return err
		}
		if g.turn == nil {
			g.turn = make(chan struct{})
		}
		turn := g.turn
		g.mu.Unlock()
		select {
		case <-turn:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (g *gate) leave(c class) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside[c]--
	if g.inside[c] > 0 || len(g.drains) == 0 {
		return
	}
	still := g.drains[:0]
	for _, d := range g.drains {
		if g.empty(d.of) {
			close(d.done)
		} else {
			still = append(still, d)
		}
	}
	clear(g.drains[len(still):])
	g.drains = still
}

// sorted is what becomes of held requests.
type sorted struct {
	in      []*blockdev.Request // inside from now on
	refused []*blockdev.Request
	refusal error
}

// sort goes through what is held after something changed. Called with mu held; serve what it returns without.
func (g *gate) sort() (s sorted) {
	var still []heldRequest
	for _, h := range g.held {
		c := classOf(h.r.Op)
		held, err := g.stops(c)
		switch {
		case err != nil:
			s.refused, s.refusal = append(s.refused, h.r), err
		case held:
			still = append(still, h)
		default:
			g.let(c)
			s.in = append(s.in, h.r)
		}
	}
	g.held = still
	if g.turn != nil {
		close(g.turn)
		g.turn = nil
	}
	return s
}

func (v *Volume) letGo(s sorted) {
	for _, r := range s.in {
		r.Detached = true
		go v.serve(r)
	}
	for _, r := range s.refused {
		r.Detached = true
		v.refuse(r, s.refusal)
	}
}

// close lets nobody in any more and waits until all are out. What a suspension held is let through first, what a
// hand-over held is refused.
func (v *Volume) closeGate() {
	g := &v.gate
	g.mu.Lock()
	if g.suspended != nil {
		g.suspended.lift()
	}
	s := g.sort()
	g.closed = true
	rest := g.sort()
	d := g.await(all)
	g.mu.Unlock()
	v.letGo(s)
	v.letGo(rest)
	<-d.done
}
