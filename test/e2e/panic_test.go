package e2e

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/test/lab"
)

// panicsSurvived is how many faults of its emulated guest a test survives; one that moves it hundreds of times survives all.
const panicsSurvived = 2

// writes waits until all checkers have written so much more, and have found nothing wrong.
func (c *crossing) writes(t *testing.T, n int) {
	t.Helper()
	for _, v := range c.volumes {
		for err := c.checkers[v].Await(t.Context(), n); err != nil; err = c.checkers[v].Await(t.Context(), n) {
			c.survive(t, err)
		}
	}
}

// survive goes on after what befalls emulated guests once they have moved (lab.ErrPanicked): the kernel panics, or something in it
// waits for ever. It fails for anything else. What the guest had flushed must be on its volumes; then it writes to them again, and
// the test goes on where it was.
func (c *crossing) survive(t *testing.T, err error) {
	t.Helper()
	panicked := errors.Is(err, lab.ErrPanicked)
	if !panicked && !errors.Is(err, context.DeadlineExceeded) || c.guest.Moves() == c.stays || c.panics >= panicsSurvived && !*soak {
		t.Fatal(err)
	}
	c.panics++
	t.Logf("SURVIVED, fault %d of this test's emulated guest: %v\n%s", c.panics, err, c.guest.ConsoleLog())
	logs := c.died(t)
	if !panicked { // else it starts again by itself
		c.owedNothing(t)
		c.on().virsh(t, "reset", "g1")
	}
	must(t, c.guest.WaitUp(t.Context()))
	c.anew(t, logs)
}

// owedNothing fails if an engine has not answered a request of the guest: QEMU stops only once it has all answers.
func (c *crossing) owedNothing(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	on := c.on()
	if _, err := on.Virsh(ctx, "suspend", "g1"); err != nil {
		t.Fatalf("the guest writes no more, and QEMU waits for an answer: %v", err)
	}
	on.virsh(t, "resume", "g1")
}

// panic has the guest's kernel panic.
func (c *crossing) panic(t *testing.T) {
	t.Helper()
	in(t, c.guest, "(sleep 5; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &")
	before := c.panics
	eventually(t, "the panic is seen", func() bool { c.writes(t, 1); return c.panics > before })
}
