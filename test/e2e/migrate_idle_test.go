package e2e

import "testing"

// TestMigrateIdle moves a guest that writes nothing for a while, to and fro: nobody takes its volume back meanwhile, and then
// it writes.
func TestMigrateIdle(t *testing.T) {
	s := newSite(t, nil, nil, "v1")
	a, b := s.beds[0], s.beds[1]
	s.boot(t, "v1")
	dev := a.disk(t, "/dev/disk/by-id/v1")
	for _, step := range []struct{ from, to *bed }{{a, b}, {b, a}, {a, b}} {
		s.move(t, step.from, step.to)
		s.awaitSettled(t, step.to, "v1")
		in(t, s.guest, "dd if=/dev/urandom of="+dev+" bs=64k count=4 conv=fsync 2>/dev/null")
	}
	must(t, s.guest.PowerOff(t.Context()))
}
