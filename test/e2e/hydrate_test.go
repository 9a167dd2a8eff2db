package e2e

import (
	"strings"
	"syscall"
	"testing"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/plugin"
	"github.com/virt-cow/virt-cow/test/lab"
)

// TestTwoGuestsOneMaster: two guests write to clones of one master while these are hydrated, slowly, paused, and at
// full speed. A third clone is hydrated although nobody uses it, over the death of the daemon. The master never changes.
func TestTwoGuestsOneMaster(t *testing.T) {
	b := newBed(t, lab0)
	b.recordEvents(t)
	g2, err := b.Define(t.Context(), lab.GuestConfig{Name: "g2"})
	must(t, err)
	first, second, third := b.clone(t, "c1"), b.clone(t, "c2"), b.adopted(t, "c3")
	b.run(t, "attach", "g1", "--store", first, "--no-hydrate")
	b.run(t, "attach", "g2", "--store", second, "--rate", "4K")
	must(t, b.guest.Start(t.Context()))
	must(t, g2.Boot(t.Context()))
	must(t, b.guest.WaitUp(t.Context()))
	w1, w2 := startWriter(t, b.guest, b.disk(t, first), "w"), startWriter(t, g2, b.diskOf(t, g2, second), "w")

	hydration := func(state string, rate int64) func(*api.VolumeStatus) bool {
		return func(s *api.VolumeStatus) bool {
			return s != nil && s.Engine != nil && s.Engine.Hydration.State == state && (rate < 0 || s.Engine.Hydration.Rate == rate)
		}
	}
	b.await(t, "c2", "hydrated slowly", hydration(api.HydrationRunning, 4096))
	b.run(t, "hydrate", "start", "c1", "--rate", "8K")
	b.await(t, "c1", "hydrated slowly", hydration(api.HydrationRunning, 8192))
	b.run(t, "hydrate", "pause", "c1")
	b.await(t, "c1", "paused", hydration(api.HydrationPaused, -1))

	b.run(t, "hydrate", "start", "c3", "--rate", "64K")
	pid := b.await(t, "c3", "held for its hydration", func(s *api.VolumeStatus) bool {
		return s != nil && s.State == api.VolumeServed && s.Held == api.HeldHydration
	}).PID
	must(t, b.vc.Daemon().Stop(syscall.SIGKILL))
	_, err = b.vc.StartDaemon(t.Context())
	must(t, err)
	b.await(t, "c3", "adopted, and held still", func(s *api.VolumeStatus) bool {
		return s != nil && s.PID == pid && s.Held == api.HeldHydration && hydration(api.HydrationRunning, 64<<10)(s)
	})
	b.run(t, "hydrate", "rate", "c3", "0")
	b.await(t, "c3", "let go when it was cut loose", gone)
	b.assertClosed(t, third)

	b.run(t, "hydrate", "start", "c1", "--rate", "0")
	b.run(t, "hydrate", "rate", "c2", "0")
	for guest, w := range map[string]writer{"c1": w1, "c2": w2} {
		b.await(t, guest, "cut loose", cutLoose)
		w.await(t, 20)
	}
	log1, log2 := w1.stop(t), w2.stop(t)
	b.assertMasterUnchanged(t)
	for _, v := range []string{"c1", "c2", "c3"} {
		eventually(t, v+" told", func() bool { return strings.Contains(b.eventNames(t, v, plugin.After...), "hydrated") })
		if names := b.eventNames(t, v, plugin.After...); strings.Count(names, "hydrated") != 1 {
			t.Errorf("%s: told %s", v, names)
		}
		info, err := b.daemon().Volume(t.Context(), v)
		if must(t, err); !info.CutLoose {
			t.Errorf("the catalogue does not know that %s is cut loose", v)
		}
	}
	must(t, b.guest.PowerOff(t.Context()))
	must(t, g2.PowerOff(t.Context()))
	b.await(t, "c1", "off", off)
	b.await(t, "c2", "off", off)
	b.verifyOutside(t, first, log1)
	b.verifyOutside(t, second, log2)
}
