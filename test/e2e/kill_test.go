package e2e

import (
	"syscall"
	"testing"

	"github.com/virt-cow/virt-cow/internal/api"
)

// TestKillEngineUnderWrites kills the engine process three times while the guest writes: the guest goes on,
// sees no error, and nothing acknowledged is lost.
func TestKillEngineUnderWrites(t *testing.T) {
	b := newBed(t, lab0)
	store := b.clone(t, "c1")
	b.run(t, "attach", "g1", "--store", store, "--no-hydrate")
	must(t, b.guest.Boot(t.Context()))
	pid := b.await(t, "c1", "attached", attached).PID
	dev := b.disk(t, store)
	b.startWriter(t, dev)
	for range 3 {
		must(t, b.Kill(t.Context(), pid, syscall.SIGKILL))
		old := pid
		pid = b.await(t, "c1", "served by a new engine", func(s *api.VolumeStatus) bool { return attached(s) && s.PID != old }).PID
		b.awaitWrites(t, 100)
	}
	b.assertNoIOErrors(t)
	log := b.stopWriter(t, dev)
	must(t, b.guest.PowerOff(t.Context()))
	b.await(t, "c1", "off", off)
	b.verifyOutside(t, store, log)
	b.assertMasterUnchanged(t)
}

// TestKillDaemonUnderWrites kills the daemon while the guest writes and the clone is hydrated: neither the
// guest nor the engine notices; a new daemon adopts the engine and can detach it.
func TestKillDaemonUnderWrites(t *testing.T) {
	b := newBed(t, lab0)
	store := b.clone(t, "c1")
	b.run(t, "attach", "g1", "--store", store, "--rate", "1M")
	must(t, b.guest.Boot(t.Context()))
	pid := b.await(t, "c1", "attached", attached).PID
	dev := b.disk(t, store)
	b.startWriter(t, dev)
	must(t, b.vc.Daemon().Stop(syscall.SIGKILL))
	b.awaitWrites(t, 100)

	_, err := b.vc.StartDaemon(t.Context())
	must(t, err)
	s := b.await(t, "c1", "adopted", attached)
	if s.PID != pid {
		t.Fatalf("engine %d was not adopted, there is %d", pid, s.PID)
	}
	if s.Domain != "g1" || s.Engine.Hydration.Rate != 1<<20 {
		t.Fatalf("adopted as %+v, %+v", s, s.Engine.Hydration)
	}

	// The adopted engine is looked after like any other: it is started again when it dies.
	must(t, b.Kill(t.Context(), pid, syscall.SIGKILL))
	b.await(t, "c1", "served by a new engine", func(s *api.VolumeStatus) bool { return attached(s) && s.PID != pid })
	b.awaitWrites(t, 100)
	b.assertNoIOErrors(t)
	log := b.stopWriter(t, dev)
	b.run(t, "detach", "g1", "c1")
	b.verifyOutside(t, store, log)

	// Stopped cleanly the daemon leaves guests and engines alone too.
	b.run(t, "attach", "g1", "--store", store, "--no-hydrate")
	pid = b.await(t, "c1", "attached", attached).PID
	must(t, b.vc.Daemon().Stop(syscall.SIGTERM))
	must(t, b.Kill(t.Context(), pid, 0))
	must(t, b.guest.PowerOff(t.Context()))
	_, err = b.vc.StartDaemon(t.Context())
	must(t, err)
	b.await(t, "c1", "off: its guest ended while no daemon was there", off)
	b.assertClosed(t, store)
}
