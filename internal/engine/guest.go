package engine

import (
	"sync"
	"time"

	"github.com/virt-cow/virt-cow/internal/handover"
)

// guestTold is what this engine was told of its domain.
type guestTold struct {
	mu      sync.Mutex
	turn    uint64 // moves on whenever what was told is forgotten
	writes  uint64 // of the volume when libvirt was asked, if stopped
	state   handover.Guest
	since   time.Time   // without a gap
	until   time.Time   // then it is unknown
	stopped []time.Time // when it was told GuestStopped, without a gap
}

// stoppedTold bounds guestTold.stopped.
const stoppedTold = 64

// A turn that is told has both: how often what was known was forgotten, and how many writes had come. A giver's guest that has
// written since libvirt was asked is not stopped, whatever libvirt said.
const turnBits = 40

func turnOf(forgotten, writes uint64) uint64 { return forgotten<<turnBits | writes&(1<<turnBits-1) }

// SetGuest tells what the domain is doing on this host; it holds for so long. It must have been found out after
// Handover told of this turn, and is passed over otherwise.
func (v *Volume) SetGuest(s handover.Guest, turn uint64, holds time.Duration) {
	v.moving.guest.set(s, turn, time.Now(), holds)
	v.moving.wake()
}

// forget makes unknown what was told, and what is being found out now.
func (g *guestTold) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.turn++
	g.state, g.stopped = handover.GuestUnknown, nil
}

func (g *guestTold) turnNow(writes uint64) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return turnOf(g.turn, writes)
}

// wrote has it forgotten that the guest is stopped, if that was found out before the last of so many writes.
func (g *guestTold) wrote(writes uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state == handover.GuestStopped && turnOf(0, writes) != g.writes {
		g.state, g.stopped = handover.GuestUnknown, nil
	}
}

func (g *guestTold) set(s handover.Guest, turn uint64, now time.Time, holds time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if turn>>turnBits != turnOf(g.turn, 0)>>turnBits { // which is cut to what is left of 64 bits
		return
	}
	g.writes = turn & (1<<turnBits - 1)
	if s != g.state || now.After(g.until) {
		g.state, g.since, g.stopped = s, now, nil
	}
	g.until = now.Add(holds)
	// Not each of many tellings: enough of them to go back by more than stoppedApart.
	if n := len(g.stopped); s == handover.GuestStopped && (n == 0 || now.Sub(g.stopped[n-1]) > stoppedApart/10) {
		if len(g.stopped) == stoppedTold {
			g.stopped = append(g.stopped[:0], g.stopped[1:]...)
		}
		g.stopped = append(g.stopped, now)
	}
}

// now is what is known, and since when.
func (g *guestTold) now() (handover.Guest, time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := time.Now(); g.state == handover.GuestUnknown || now.After(g.until) {
		return handover.GuestUnknown, now
	}
	return g.state, g.since
}

// stoppedSince says before which moment a write must have come that no running guest made: after it was told twice, a second
// apart, that the guest does not run here, and not later than latest. sure is false where nobody knows.
func (g *guestTold) stoppedSince(latest time.Time) (before time.Time, sure bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state != handover.GuestStopped || time.Now().After(g.until) || len(g.stopped) == 0 {
		return time.Time{}, false
	}
	last := g.stopped[len(g.stopped)-1]
	for _, at := range g.stopped {
		if last.Sub(at) >= stoppedApart {
			before = at // the latest telling that has another one a second after it
		}
	}
	if before.IsZero() {
		return time.Time{}, false
	}
	if latest.Before(before) {
		before = latest
	}
	return before, true
}

// stoppedApart is how far apart two tellings must be to count as two.
const stoppedApart = time.Second
