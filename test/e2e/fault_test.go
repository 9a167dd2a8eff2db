package e2e

import (
	"context"
	"flag"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/test/lab"
	"github.com/virt-cow/virt-cow/test/lab/records"
)

var (
	soak = flag.Bool("e2e.soak", false, "also what takes long: each victim killed in each phase, builds replaced under a guest")
	seed = flag.Uint64("e2e.seed", 0, "decides at which moments the victims are killed; 0 for at random")
)

// everyRun are the cells of the matrix that every run of the tests has: each victim and each phase once.
var everyRun = map[string]bool{"daemon-attach": true, "libvirtd-detach": true, "engine-hydration": true, "qemu-boot": true}

// TestFaults kills each victim with SIGKILL in the middle of each phase and brings it back as its supervisor or an
// operator would. Then the host must come to what the domain's metadata and definition say, by itself, with nothing
// lost and nothing left over.
func TestFaults(t *testing.T) {
	for _, v := range victims {
		for _, p := range phases {
			name := v.name + "-" + p.name
			if !everyRun[name] && !*soak {
				continue
			}
			t.Run(name, func(t *testing.T) {
				s := *seed
				if s == 0 {
					s = rand.Uint64()
				}
				t.Logf("once more: -run TestFaults/%s -e2e.soak -e2e.seed=%d", name, s)
				c := newCell(t, p, s)
				c.strike(t, v)
				c.settle(t)
				if p.then != nil {
					p.then(t, c)
				}
				c.finish(t)
			})
		}
	}
}

// The volumes of a cell.
const (
	boot = "boot" // in the guest's definition
	hot  = "hot"  // attached and detached
)

// cell is a guest, in one phase, to which one fault happens.
type cell struct {
	*bed
	phase  phase
	random *rand.Rand
	lasts  time.Duration     // the phase, without a fault
	stores map[string]string // by volume

	writer   *writer // nil before the first
	seed     uint64  // of the writer, never 0
	qemu     int     // process of the guest with the writer, as seen on the host
	promised records.Log
	kept     *records.Log // what is on hot, if the writer does not write there
}

// newCell has a guest that runs, and knows how long the phase takes.
func newCell(t *testing.T, p phase, seed uint64) *cell {
	c := &cell{phase: p, random: rand.New(rand.NewPCG(seed, 0)), seed: seed | 1, stores: map[string]string{}}
	c.bed = newBedOn(t, lab.Config{Hook: program}, lab.GuestConfig{Devices: bootDisk(boot)})
	for _, v := range []string{boot, hot} {
		c.stores[v] = c.adopted(t, v)
	}
	began := time.Now()
	must(t, c.guest.Boot(t.Context()))
	c.lasts = time.Since(began)
	c.await(t, boot, "attached", attached)
	switch {
	case p.lasts > 0:
		c.lasts = p.lasts
	case p.rehearse:
		p.before(t, c)
		began = time.Now()
		must(t, p.run(t.Context(), c))
		c.lasts = time.Since(began)
	}
	return c
}

// strike begins the phase, kills the victim at a random moment within it, and brings it back after a random while. A
// phase that was over too soon is gone through once more.
func (c *cell) strike(t *testing.T, v victim) {
	t.Helper()
	for share := c.random.Float64(); share > 0.01; share /= 2 {
		c.phase.before(t, c)
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		over := make(chan error, 1)
		go func() { over <- c.phase.run(ctx, c) }()
		if moment := time.Duration(share * float64(c.lasts)); c.kill(v, moment, over) {
			t.Logf("%s killed %s after the beginning of %s, which takes %s without that",
				v.name, time.Since(began).Round(time.Millisecond), c.phase.name, c.lasts.Round(time.Millisecond))
			time.Sleep(time.Duration(c.random.Int64N(int64(4 * time.Second))))
			if v.back != nil {
				v.back(t, c)
			}
			cancel()
			t.Logf("%s is back; %s came to its end with: %v", v.name, c.phase.name, <-over)
			return
		}
		cancel()
		must(t, <-over)
	}
	t.Fatalf("%s was always over before %s could be killed", c.phase.name, v.name)
}

// kill kills the victim once it is there, from a moment on, unless the phase is over before.
func (c *cell) kill(v victim, moment time.Duration, over chan error) bool {
	for wait := moment; ; wait = 10 * time.Millisecond {
		select {
		case err := <-over:
			over <- err
			return false
		case <-time.After(wait):
		}
		if v.kill(c) == nil {
			return true
		}
	}
}
