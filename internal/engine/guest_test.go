package engine

import (
	"math"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/handover"
)

// TestGuestTurns: what is told of the turn that was told of counts, whatever number an engine begins with; what is of a turn
// before does not.
func TestGuestTurns(t *testing.T) {
	for _, first := range []uint64{0, 1 << 24, uint64(time.Now().UnixNano()), math.MaxUint64} {
		g := &guestTold{turn: first}
		turn := g.turnNow(7)
		g.set(handover.GuestRuns, turn, time.Now(), time.Minute)
		if s, _ := g.now(); s != handover.GuestRuns {
			t.Errorf("first turn %d: what was told does not count: %v", first, s)
		}
		g.forget()
		g.set(handover.GuestStopped, turn, time.Now(), time.Minute)
		if s, _ := g.now(); s != handover.GuestUnknown {
			t.Errorf("first turn %d: what was told of the turn before counts: %v", first, s)
		}
	}
}
