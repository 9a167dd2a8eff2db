package e2e

import (
	"errors"
	"testing"

	"github.com/virt-cow/virt-cow/test/lab"
)

// panicsSurvived is how many panics of its guest a test survives; one that migrates it hundreds of times survives all.
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

// survive goes on after a panic of the guest's kernel, as emulated guests have them after they moved (lab.ErrPanicked), and fails
// for any other error. The guest has started again by itself. What it had flushed must be on its volumes; then it writes to them
// again, and the test goes on where it was.
func (c *crossing) survive(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, lab.ErrPanicked) || c.guest.Moves() == c.stays || c.panics >= panicsSurvived && !*soak {
		t.Fatal(err)
	}
	c.panics++
	t.Logf("SURVIVED, panic %d of this test's emulated guest: %v\n%s", c.panics, err, c.guest.ConsoleLog())
	logs := c.died(t)
	must(t, c.guest.WaitUp(t.Context()))
	c.anew(t, logs)
}

// panic has the guest's kernel panic.
func (c *crossing) panic(t *testing.T) {
	t.Helper()
	in(t, c.guest, "(sleep 1; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &")
	before := c.panics
	eventually(t, "the panic is seen", func() bool { c.writes(t, 1); return c.panics > before })
}
