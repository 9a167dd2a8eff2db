package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
)

// phase is what goes on while a victim is killed.
type phase struct {
	name     string
	volume   string        // whose engine is the victim
	lasts    time.Duration // how long it takes, if that is known beforehand
	rehearse bool          // it is gone through once to see how long it takes; else it takes as long as a boot

	before func(*testing.T, *cell)            // has the guest as it is when the phase begins
	run    func(context.Context, *cell) error // the phase, up to its end; ctx ends when the victim is back
	then   func(*testing.T, *cell)            // what must have come about after all; nil: either outcome is well
}

// Hydration takes 6 s at this rate, and by this time it can't be over.
const (
	hydrationRate  = masterMiB << 20 / 6
	hydrationLasts = 4 * time.Second
)

var phases = []phase{
	{
		name: "attach", volume: hot, rehearse: true,
		before: func(t *testing.T, c *cell) {
			c.writeTo(t, boot)
			if c.wanted(t)[hot] {
				c.run(t, "detach", "g1", hot)
			}
		},
		run: func(ctx context.Context, c *cell) error {
			_, err := c.daemon().Attach(ctx, api.AttachRequest{Domain: "g1", Volume: hot})
			return err
		},
	},
	{
		name: "detach", volume: hot, rehearse: true,
		before: func(t *testing.T, c *cell) {
			if !c.wanted(t)[hot] {
				c.run(t, "attach", "g1", hot, "--no-hydrate")
			}
			if c.kept == nil {
				w := startWriter(t, c.guest, c.disk(t, c.stores[hot]), "kept")
				log := w.stop(t)
				c.kept = &log
			}
			c.writeTo(t, boot)
		},
		run: func(ctx context.Context, c *cell) error {
			_, err := c.daemon().Detach(ctx, api.DetachRequest{Domain: "g1", Volume: hot})
			return err
		},
	},
	{
		name: "hydration", volume: hot, lasts: hydrationLasts,
		before: func(t *testing.T, c *cell) {
			c.run(t, "attach", "g1", hot, "--no-hydrate")
			c.writeTo(t, hot)
		},
		run: func(ctx context.Context, c *cell) error {
			yes, rate := true, int64(hydrationRate)
			_, err := c.daemon().Hydration(ctx, api.VolumeHydrationRequest{
				Volume: hot, HydrationRequest: api.HydrationRequest{Run: &yes, Rate: &rate},
			})
			<-ctx.Done() // it goes on in the background
			return err
		},
		then: func(t *testing.T, c *cell) {
			c.await(t, hot, "cut loose", cutLoose)
			c.converge(t)
		},
	},
	{
		name: "boot", volume: boot,
		before: func(t *testing.T, c *cell) { must(t, c.guest.Destroy(t.Context())) },
		run: func(ctx context.Context, c *cell) error {
			if err := c.guest.Start(context.WithoutCancel(ctx)); err != nil {
				return err
			}
			return c.guest.WaitUp(ctx)
		},
	},
}
