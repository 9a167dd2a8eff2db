package engine

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/handover"
	"github.com/virt-cow/virt-cow/internal/store"
)

// # Hand-over
//
// A volume that is not only read has a mover: one goroutine that runs the tables of package handover. It gathers what
// is known, asks the table, does what the table says, durably, and only then is in the next state. What the control
// API wants of it runs on the same goroutine, so that all header and slot writes come one after the other. An
// action that fails leaves the state as it is and is tried again.
//
// The gate does what a state asks for (guard.go): the tables' "hold writes" is there, not here.

// mover runs a volume's hand-overs.
type mover struct {
	v       *Volume
	me      cowfmt.Owner
	claims  store.Claiming
	onKick  chan struct{}
	calls   chan func()
	quit    chan struct{}
	ended   chan struct{} // closed when the runner is; what was to be done last is in last
	dying   sync.Once
	guest   guestTold
	clients atomic.Pointer[func() int] // nil: not known

	mu    sync.Mutex // for those who ask; changed by the runner only, but for closing
	role  role
	state handover.State
	since time.Time
	grant cowfmt.Grant // the open one; zero: none
	giver cowfmt.Owner // a receiver's: who gave it
	peer  handover.Slot
	past  *Handover       // of a hand-over that is over
	last  handover.Action // Nothing: it runs

	wrote   bool             // receiver: the guest may have written here
	closing bool             // the volume is to be closed; set by who asks for it
	trouble error            // why the last action or poll failed
	wanted  cowfmt.CacheMode // once this host is alone

	// The runner's own.
	asked      *cowfmt.Grant
	slot       int  // this host's
	peerSlot   int  // the other's; -1: not found yet
	seen       bool // giver: the receiver's slot said that it has the volume open
	peerClosed bool
	waited     bool // requests waited when it was looked last
	fenced     bool // the receiver is proven dead: its slot says nothing any more
	mine       bool // receiver: the header names it
	dead       *store.Dead
	leftover   uuid.UUID        // a grant that a predecessor was about to end when it died
	unwritten  cowfmt.SlotState // a slot that could not be written and may be on the device all the same; 0: none
	looked     time.Time        // at the header, for its epoch
	lastOps    uint64
	told       error // the last trouble that was logged
}

// role is this host's in a hand-over. Who is alone is a giver of nothing.
type role uint8

const (
	giver role = iota
	receiver
)

func (r role) String() string { return [...]string{"giver", "receiver"}[r] }

func newMover(v *Volume, me cowfmt.Owner) *mover {
	m := &mover{
		v: v, me: me, state: handover.Alone, since: time.Now(), peerSlot: -1, wanted: cowfmt.CacheOn,
		onKick: make(chan struct{}, 1), calls: make(chan func()), quit: make(chan struct{}), ended: make(chan struct{}),
	}
	m.guest.turn = uint64(time.Now().UnixNano()) // of no engine before this one: who tells may have asked that one for its turn
	return m
}

// wake has the runner look at once. It never blocks.
func (m *mover) wake() {
	select {
	case m.onKick <- struct{}{}:
	default:
	}
}

// call runs f on the runner's goroutine, and waits for it.
func (m *mover) call(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	select {
	case m.calls <- func() { done <- f() }:
		return <-done
	case <-m.ended:
		return fmt.Errorf("%s: %w", m.v.info.Name, ErrClosed)
	case <-ctx.Done():
		return fmt.Errorf("%s: it is busy with its hand-over: %w", m.v.info.Name, ctx.Err())
	}
}

// hasEnded says whether the runner has: the volume is being closed.
func (m *mover) hasEnded() bool {
	select {
	case <-m.ended:
		return true
	default:
		return false
	}
}

func (m *mover) now() handover.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

// undivided refuses what can't be done while another host has the volume open, or has had it and is the owner now.
func (m *mover) undivided(what string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.role == giver && m.state == handover.Alone:
		return nil
	case m.state == handover.Given:
		return fmt.Errorf("%s %s: it was handed over to %s", what, m.v.info.Name, m.peerName())
	}
	says := slotName(m.peer)
	if says == "" {
		says = "nothing yet"
	}
	return fmt.Errorf("%s %s: %w: %s has it open since %s (its slot says %s, this host's %v)", what, m.v.info.Name, ErrGranted, m.peerName(),
		time.Unix(m.grant.Since, 0).Format(time.RFC3339), says, m.state)
}

// want notes what is wanted of the cache. Only the runner does.
func (m *mover) want(mode cowfmt.CacheMode) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wanted = mode
}

// wantsOff says whether the cache is to stay off also once this host is alone.
func (m *mover) wantsOff() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wanted == cowfmt.CacheOff
}

// granted says whether another host has, or may have, the volume open.
func (m *mover) granted() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state != handover.Alone && m.state != handover.Given
}

// ErrGranted says that another host has the volume open, or may open it.
var ErrGranted = store.ErrGranted

func (m *mover) run() {
	defer close(m.ended)
	for {
		err := m.poll()
		if err == nil {
			err = m.step()
		}
		if err == nil {
			err = m.settleCache()
		}
		m.note(err)
		if m.isLast() {
			return
		}
		t := time.NewTimer(m.pace(err))
		select {
		case <-m.quit:
			t.Stop()
			return
		case f := <-m.calls:
			f()
		case <-m.onKick:
		case <-t.C:
		}
		t.Stop()
		if m.isLast() {
			return
		}
	}
}

func (m *mover) isLast() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last != handover.Nothing
}

// kill ends the runner wherever it stands, between two actions.
func (m *mover) kill() {
	m.dying.Do(func() { close(m.quit) })
	<-m.ended
}
