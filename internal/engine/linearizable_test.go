package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// access is one request as one sector sees it.
type access struct {
	write bool
	word  uint64 // written
}

// register is a sector: a read returns what was written last.
var register = porcupine.Model{
	Init: func() any { return uint64(0) },
	Step: func(state, input, output any) (bool, any) {
		if a := input.(access); a.write {
			return true, a.word
		}
		return output.(uint64) == state.(uint64), state
	},
	DescribeOperation: func(input, output any) string {
		if a := input.(access); a.write {
			return fmt.Sprintf("write %#x", a.word)
		}
		return fmt.Sprintf("read %#x", output)
	},
}

// jitter is a device whose operations take their time, so that they overlap.
type jitter struct{ blockdev.Device }

func (j jitter) pause() {
	switch rand.IntN(8) {
	case 0:
		time.Sleep(time.Duration(rand.IntN(50)) * time.Microsecond)
	case 1, 2, 3:
		runtime.Gosched()
	}
}

func (j jitter) ReadAt(p []byte, off int64) (int, error) {
	j.pause()
	defer j.pause()
	return j.Device.ReadAt(p, off)
}

func (j jitter) WriteAt(p []byte, off int64) (int, error) {
	j.pause()
	defer j.pause()
	return j.Device.WriteAt(p, off)
}

func (j jitter) Flush() error {
	j.pause()
	return j.Device.Flush()
}

// history is what happened to each sector, on a clock that counts events.
type history struct {
	clock   atomic.Int64
	version atomic.Uint32
	mu      sync.Mutex
	sectors map[int64][]porcupine.Operation
	hosts   map[int]*site // of clients, where there are several
	noTrim  bool          // beside snapshots a trim may do nothing: zeroes are made instead
}

// do makes one request and writes it into the history.
func (h *history) do(v *Volume, client int, r *blockdev.Request) error {
	var version uint32
	if h.noTrim && r.Op == blockdev.OpTrim {
		r.Op = blockdev.OpWriteZeroes
	}
	switch r.Op {
	case blockdev.OpWrite:
		version = h.version.Add(1)
		r.Buf = filled(r.Off, r.Length, version)
	case blockdev.OpRead:
		r.Buf = make([]byte, r.Length)
	}
	call := h.clock.Add(1)
	err := request(v, r)
	ret := h.clock.Add(1)
	if err != nil || r.Op == blockdev.OpFlush {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for at := r.Off / sector; at < (r.Off+r.Length)/sector; at++ {
		op := porcupine.Operation{ClientId: client, Call: call, Return: ret}
		switch r.Op {
		case blockdev.OpRead:
			i := at*sector - r.Off
			w, err := wordOf(r.Buf[i : i+sector])
			if err != nil {
				return fmt.Errorf("sector %d: %w", at, err)
			}
			op.Input, op.Output = access{}, w
		case blockdev.OpWrite:
			op.Input = access{true, word(version, at)}
		default:
			op.Input = access{true, 0}
		}
		h.sectors[at] = append(h.sectors[at], op)
	}
	return nil
}

// randomRequest is mostly reads and writes of a few sectors; trims are whole chunks, which all targets
// treat alike.
func randomRequest(rng *rand.Rand, size, chunk int64) *blockdev.Request {
	n := (1 + rng.Int64N(10)) * sector
	r := &blockdev.Request{Off: rng.Int64N((size-n)/sector+1) * sector, Length: n}
	switch k := rng.IntN(20); {
	case k < 8:
		r.Op = blockdev.OpRead
	case k < 16:
		r.Op, r.FUA = blockdev.OpWrite, k == 15
	case k == 16:
		r.Op = blockdev.OpWriteZeroes
	case k == 17:
		r.Op = blockdev.OpTrim
		r.Off, r.Length = r.Off/chunk*chunk, min(chunk, size-r.Off/chunk*chunk)
	case k == 18:
		r.Off, r.Length = r.Off/chunk*chunk, min(chunk, size-r.Off/chunk*chunk)
		r.Op = blockdev.OpWrite
	default:
		r.Op, r.Off, r.Length = blockdev.OpFlush, 0, 0
	}
	return r
}

// Requests of several clients at the same time are linearizable, sector by sector, while hydration runs
// and ends in cutting loose, and while the volume is suspended and resumed, by hand and by deadline.
func TestLinearizable(t *testing.T) {
	const clients, each, chunk = 5, 60, 8192
	sectors, operations := 0, 0
	for seed := range uint64(24) {
		block, cacheOff := 512, seed%6 == 5
		if seed%3 == 1 {
			block = 4096
		}
		const size = 5*chunk - 4096
		m := memoryMaster(size, true, 0, size)
		h := &history{sectors: map[int64][]porcupine.Operation{}}
		for at, p := int64(0), contents(t, m, size); at < size/sector; at++ {
			w, _ := wordOf(p[at*sector:])
			h.sectors[at] = []porcupine.Operation{{Input: access{true, w}, Call: -2, Return: -1}}
		}
		v := mustOpen(t, jitter{memoryStore(t, size, chunk, block, true)}, jitter{m}, uuid.New(), "", func(o *Options) {
			o.CommitEvery = time.Millisecond
			if cacheOff {
				o.CacheMode = cowfmt.CacheOff
			}
		})
		var wg, background sync.WaitGroup
		stop := make(chan struct{})
		background.Go(func() {
			for rng := rand.New(rand.NewPCG(seed, 77)); ; {
				select {
				case <-stop:
					return
				case <-time.After(200 * time.Microsecond):
				}
				s, err := v.Suspend(context.Background(), time.Duration(rng.IntN(400)+1)*time.Microsecond)
				if err == nil && rng.IntN(2) == 0 {
					_ = s.Resume()
				}
			}
		})
		if !cacheOff {
			v.SetHydrationRate(int64(seed%4) * mib)
			check(t, v.StartHydration())
		}
		for k := range clients {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(seed, uint64(k)))
				for range each {
					if err := h.do(v, k, randomRequest(rng, size, chunk)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		close(stop)
		background.Wait()
		for at, ops := range h.sectors {
			sectors, operations = sectors+1, operations+len(ops)
			switch porcupine.CheckOperationsTimeout(register, ops, time.Minute) {
			case porcupine.Illegal:
				t.Errorf("seed %d: sector %d is not linearizable:", seed, at)
				for _, op := range ops {
					t.Logf("client %d %d-%d %s", op.ClientId, op.Call, op.Return, register.DescribeOperation(op.Input, op.Output))
				}
				t.FailNow()
			case porcupine.Unknown:
				t.Errorf("seed %d: sector %d could not be checked within a minute", seed, at)
			}
		}
		check(t, v.Close())
	}
	t.Logf("%d operations on %d sectors", operations, sectors)
}
