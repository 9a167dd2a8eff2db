package e2e

import (
	"os"
	"syscall"
	"testing"

	"github.com/virt-cow/virt-cow/internal/api"
)

// TestEngineKilledWhileStopped: what an engine that is killed while it is to close its store leaves to its exception
// cache is not left there for a reboot to take away: another engine closes the store.
func TestEngineKilledWhileStopped(t *testing.T) {
	b := newBed(t, lab0)
	store := b.adopted(t, "c1")
	b.run(t, "attach", "g1", "c1", "--no-hydrate")
	must(t, b.guest.Start(t.Context()))
	s := b.await(t, "c1", "attached", attached)
	must(t, b.Kill(t.Context(), s.PID, syscall.SIGSTOP)) // so that it is in the middle of it for as long as it takes
	must(t, b.guest.Destroy(t.Context()))
	b.await(t, "c1", "asked to end", func(v *api.VolumeStatus) bool {
		return v != nil && v.PID == s.PID && v.State == api.VolumeStopping
	})
	cache := b.Path(api.CachePath("/run/virt-cow", s.Engine.UUID))
	if _, err := os.Stat(cache); err != nil {
		t.Fatal("this test proves nothing: ", err)
	}
	must(t, b.Kill(t.Context(), s.PID, syscall.SIGKILL))
	b.await(t, "c1", "off", off)
	b.assertClosed(t, store)
	if _, err := os.Stat(cache); err == nil {
		t.Fatal("the store is closed, and yet its exception cache is there")
	}
}
