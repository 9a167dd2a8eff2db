package reader_test

import (
	"errors"
	"flag"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/reader"
)

var cutSeeds = flag.Uint64("reader.cuts", 2, "runs of each shape with power cuts, and with deaths of the engine")

// crash is a disk that can lose its power.
func crash(name string, size int64) blockdev.Device {
	return blockdevtest.NewCrash(blockdevtest.NewMemory(name, size, 512), blockdevtest.CrashOptions{})
}

// again opens the disks anew, for another engine process; hook is called before each operation that changes one of them.
func (r *rig) again(hook func()) {
	for _, d := range r.devices() {
		c := (*d).(*blockdevtest.Crash).Open(false)
		c.OnOp = func(int, string, int64, int64) { hook() }
		*d = c
	}
}

func (r *rig) devices() []*blockdev.Device {
	if r.origin == nil {
		return []*blockdev.Device{&r.store, &r.snapshot}
	}
	return []*blockdev.Device{&r.store, &r.snapshot, &r.origin}
}

// probe cuts the power of all disks at this moment, as it may come, and has the snapshot read from what is left.
func (r *rig) probe(choose blockdevtest.Chooser) (*rig, error) {
	var crashes []*blockdevtest.Crash
	for _, d := range r.devices() {
		crashes = append(crashes, (*d).(*blockdevtest.Crash))
	}
	left := *r
	for i, m := range blockdevtest.Moments(crashes...) {
		*left.devices()[i] = m.PowerCut(choose)
	}
	v, err := reader.Open(background, left.config())
	if err == nil {
		err = left.whole(v)
	}
	return &left, err
}

// guests change the volume, n times each, until something fails.
func (r *rig) guests(seed uint64, n int) error {
	v := r.v
	var all sync.WaitGroup
	errs := make([]error, 2)
	for i := range errs {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			for range n {
				if errs[i] = change(v, rng); errs[i] != nil {
					return
				}
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// chooser is a random one that several goroutines may use.
type chooser struct {
	mu  sync.Mutex
	rng *rand.Rand
}

func newChooser(seed uint64) *chooser { return &chooser{rng: rand.New(rand.NewPCG(seed, 77))} }

func (c *chooser) IntN(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rng.IntN(n)
}

// The power is cut at every write and flush of a guest at work: what is left of the snapshot reads as of the cut, and so it
// does while another engine goes on from there.
func TestPowerCuts(t *testing.T) {
	for _, s := range shapes {
		t.Run(s.name, func(t *testing.T) {
			var probes atomic.Int64
			for seed := range *cutSeeds {
				choose := newChooser(seed)
				r := s.disks(t, crash)
				r.snap(t)
				check(t, r.v.Close())
				r.again(func() {
					if t.Failed() || choose.IntN(2) > 0 {
						return
					}
					probes.Add(1)
					if _, err := r.probe(choose); err != nil {
						t.Errorf("seed %d: %v", seed, err)
					}
				})
				r.open(t)
				check(t, r.guests(seed, 12))
				left, err := r.probe(choose)
				check(t, err)
				check(t, r.v.Close())
				left.open(t)
				check(t, left.guests(seed, 5))
				check(t, left.whole(left.view(t)))
				check(t, left.v.Close())
			}
			t.Logf("%d power cuts", probes.Load())
		})
	}
}

// kill has an engine die at operation n of its devices, while guests work. It never comes to its end by itself.
func (r *rig) kill(t *testing.T, seed uint64, n int) (late []*blockdevtest.Late) {
	var mu sync.Mutex
	over := make(chan struct{})
	devices := r.devices()
	r.again(func() {
		mu.Lock()
		defer mu.Unlock()
		if n--; n == 0 {
			for _, d := range devices {
				late = append(late, (*d).(*blockdevtest.Crash).Kill())
			}
			close(over)
		}
	})
	r.open(t)
	go func() { _ = r.guests(seed, 1000) }()
	<-over
	mu.Lock()
	defer mu.Unlock()
	return late
}

// An engine is killed at any write or flush, what it had under way lands late or never, and the power is cut while the next one
// goes on. A flag that the dead one wrote and did not flush must not be taken for one that lasts.
func TestKilledThenPowerCut(t *testing.T) {
	for _, s := range shapes {
		t.Run(s.name, func(t *testing.T) {
			var probes atomic.Int64
			for seed := range 4 * *cutSeeds {
				choose := newChooser(seed)
				r := s.disks(t, crash)
				r.snap(t)
				check(t, r.v.Close())
				late := r.kill(t, seed, 15+choose.IntN(40))
				for _, l := range late {
					if choose.IntN(2) == 0 {
						l.LandAll()
					} else {
						l.Drop()
					}
				}
				r.again(func() {
					if t.Failed() {
						return
					}
					probes.Add(1)
					if _, err := r.probe(choose); err != nil {
						t.Errorf("seed %d: %v", seed, err)
					}
				})
				r.open(t)
				check(t, r.guests(seed, 4))
				check(t, r.whole(r.view(t)))
				check(t, r.v.Close())
			}
			t.Logf("%d power cuts", probes.Load())
		})
	}
}
