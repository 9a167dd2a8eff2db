package engine

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// Whoever has a range alone has it alone; sharers share.
func TestInflightExclusion(t *testing.T) {
	const chunks = 40
	var table inflight
	var alone, shared [chunks]atomic.Int32
	var wg sync.WaitGroup
	for k := range uint64(8) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(k, 1))
			for range 3000 {
				first := rng.Int64N(chunks)
				last := min(first+rng.Int64N(6), chunks-1)
				share := rng.IntN(2) == 0
				var s *span
				if rng.IntN(3) == 0 {
					if s = table.tryLock(first, last, share); s == nil {
						continue
					}
				} else {
					s = table.lock(first, last, share)
				}
				for c := first; c <= last; c++ {
					if share {
						shared[c].Add(1)
					} else if alone[c].Add(1) != 1 {
						t.Errorf("two have chunk %d alone", c)
					}
					if alone[c].Load() > 0 && shared[c].Load() > 0 {
						t.Errorf("chunk %d is had alone and shared", c)
					}
				}
				for c := first; c <= last; c++ {
					if share {
						shared[c].Add(-1)
					} else {
						alone[c].Add(-1)
					}
				}
				table.unlock(s)
			}
		})
	}
	wg.Wait()
	if len(table.held) > 0 || len(table.wait) > 0 {
		t.Errorf("%d held and %d waiting at the end", len(table.held), len(table.wait))
	}
}

func (t *inflight) waiting() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.wait)
}

// Nobody overtakes a waiting span that it overlaps; others go on.
func TestInflightFairness(t *testing.T) {
	var table inflight
	var order []string
	var wg sync.WaitGroup
	holder := table.lock(0, 10, true)
	next := make(chan struct{})
	wait := func(name string, first, last int64, shared bool) {
		n := table.waiting()
		wg.Go(func() {
			s := table.lock(first, last, shared)
			order = append(order, name) // the spans overlap, so one at a time
			<-next
			table.unlock(s)
		})
		eventually(t, "waiting", func() bool { return table.waiting() > n })
	}
	wait("writer", 5, 6, false)
	if s := table.tryLock(6, 7, true); s != nil {
		t.Fatal("a sharer overtook a waiting span it overlaps")
	}
	wait("sharer", 6, 7, true)
	wait("second writer", 7, 7, false)
	for _, free := range []struct {
		first, last int64
		shared      bool
	}{{0, 4, true}, {8, 10, true}, {11, 20, false}} {
		s := table.tryLock(free.first, free.last, free.shared)
		if s == nil {
			t.Fatalf("%+v had to wait for spans it does not conflict with", free)
		}
		table.unlock(s)
	}
	table.unlock(holder)
	for range 3 {
		next <- struct{}{}
	}
	wg.Wait()
	if len(order) != 3 || order[0] != "writer" || order[1] != "sharer" || order[2] != "second writer" {
		t.Errorf("order %q", order)
	}
}
