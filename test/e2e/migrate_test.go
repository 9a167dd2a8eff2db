package e2e

import (
	"testing"

	"github.com/virt-cow/virt-cow/test/lab/records"
)

// TestMigrate moves a guest there and back under plain `virsh migrate`, while it writes to two disks.
func TestMigrate(t *testing.T) {
	for _, chunk := range []string{"4K", "64K"} {
		t.Run(chunk, func(t *testing.T) {
			s := newSite(t, nil, []string{"--chunk", chunk}, "v1", "v2")
			a, b := s.beds[0], s.beds[1]
			s.boot(t, "v1", "v2")
			w1 := startWriter(t, s.guest, a.disk(t, "/dev/disk/by-id/v1"), "w1", 1)
			w2 := startWriter(t, s.guest, a.disk(t, "/dev/disk/by-id/v2"), "w2", 2)
			for _, step := range []struct{ from, to *bed }{{a, b}, {b, a}} {
				s.move(t, step.from, step.to)
				w1.await(t, 50)
				w2.await(t, 50)
				s.awaitSettled(t, step.to, "v1", "v2")
			}
			logs := map[string]records.Log{"v1": w1.stop(t), "v2": w2.stop(t)}
			s.verifyAll(t, a, logs)
		})
	}
}
