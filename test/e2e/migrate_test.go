package e2e

import "testing"

// TestMigrate moves a guest there and back under plain `virsh migrate`, while it writes to two disks. In one of two its kernel panics
// where it came: what it had flushed is there, and it moves on all the same.
func TestMigrate(t *testing.T) {
	for _, chunk := range []string{"4K", "64K"} {
		t.Run(chunk, func(t *testing.T) {
			c := newCrossing(t, nil, []string{"--chunk", chunk}, "v1", "v2")
			c.move(t, c.on(), c.other())
			c.verdict(t)
			if chunk == "64K" {
				c.panic(t)
			}
			c.finish(t)
		})
	}
}
