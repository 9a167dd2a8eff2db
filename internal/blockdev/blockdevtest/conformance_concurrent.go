package blockdevtest

import (
	"math/rand/v2"
	"sync"
	"testing"
)

// testConcurrent has several goroutines use blocks of their own, side by side: a device that reads,
// modifies and writes more than the block it was asked for loses a neighbour's write.
func (s *suite) testConcurrent(t *testing.T) {
	d := s.device(t)
	const workers, rounds = 8, 200
	for _, w := range d.windows(64 << 10) {
		blocks := min(w[1], 192<<10) / d.block
		stripes := blocks / workers // worker k owns blocks k, k+workers, k+2*workers…
		if stripes == 0 {
			t.Fatalf("%d blocks of %d bytes: the suite needs %d", blocks, d.block, workers)
		}
		d.write(t, make([]byte, blocks*d.block), w[0])
		var wg sync.WaitGroup
		for k := range int64(workers) {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(k), 1))
				model := make([][]byte, stripes)
				for i := range model {
					model[i] = make([]byte, d.block)
				}
				f := &goroutineFatal{t: t}
				for r := 0; r < rounds && !f.failed; r++ {
					i := rng.Int64N(stripes)
					off := w[0] + (i*workers+k)*d.block
					switch op := rng.IntN(16); {
					case op < 8:
						pattern(model[i], rng.Uint64())
						d.write(f, model[i], off)
					case op < 10:
						if d.zero(f, off, d.block, op == 9) {
							clear(model[i])
						}
					case op == 10:
						if err := d.Flush(); err != nil {
							f.Fatalf("Flush: %v", err)
						}
					case op == 11:
						if _, err := d.Extents(off, d.block); err != nil {
							f.Fatalf("Extents: %v", err)
						}
					}
					if !f.failed {
						d.expect(f, model[i], off, "among other goroutines")
					}
				}
				for i := range stripes {
					if !f.failed {
						d.expect(f, model[i], w[0]+(i*workers+k)*d.block, "after other goroutines")
					}
				}
			})
		}
		wg.Wait()
	}
}

// goroutineFatal reports errors of goroutines that can't end the test themselves.
type goroutineFatal struct {
	t      *testing.T
	failed bool
}

func (f *goroutineFatal) Helper() {}

func (f *goroutineFatal) Fatalf(format string, args ...any) {
	f.failed = true
	f.t.Errorf(format, args...)
}

// testConcurrentFlush flushes from several goroutines while one writes.
func (s *suite) testConcurrentFlush(t *testing.T) {
	d := s.device(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 8 {
				if err := d.Flush(); err != nil {
					t.Errorf("Flush: %v", err)
				}
			}
		})
	}
	var p []byte
	for i := range uint64(32) {
		p = patterned(4*d.block, i)
		d.write(t, p, 0)
	}
	wg.Wait()
	d.expect(t, p, 0, "writes among flushes")
}
