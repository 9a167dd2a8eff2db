package engine

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// The cache is switched off and on while clients work and hydration goes on: no request fails, and what they see is one disk.
func TestCacheSwitchUnderLoad(t *testing.T) {
	const clients, each = 4, 120
	for seed := range uint64(6) {
		chunk := int64(4096) << (seed % 2 * 4)
		size := 7*chunk - 4096
		m := memoryMaster(size, true, 0, size)
		h := &history{sectors: map[int64][]porcupine.Operation{}}
		for at, p := int64(0), contents(t, m, size); at < size/sector; at++ {
			w, _ := wordOf(p[at*sector:])
			h.sectors[at] = []porcupine.Operation{{Input: access{true, w}, Call: -2, Return: -1}}
		}
		dev := memoryStore(t, size, chunk, sector, true)
		v := mustOpen(t, jitter{dev}, jitter{m}, uuid.New(), newCachePath(cacheDir(t)), func(o *Options) { o.CommitEvery = time.Millisecond })
		v.SetHydrationRate(1 << 20)
		check(t, v.StartHydration())
		var wg, switching sync.WaitGroup
		stop := make(chan struct{})
		switches := 0
		switching.Go(func() {
			for mode := cowfmt.CacheOff; ; mode = cowfmt.CacheOn + cowfmt.CacheOff - mode {
				if err := v.SetCache(context.Background(), mode); err != nil {
					t.Error(err)
					return
				}
				switches++
				// What the header says is never more than what is so.
				if st, err := store.Open(dev.Open(true)); err != nil || st.Header().Cache != mode {
					t.Errorf("switched to %v, the header says %v (%v)", mode, st.Header().Cache, err)
				}
				select {
				case <-stop:
					if mode == cowfmt.CacheOn {
						return
					}
				case <-time.After(300 * time.Microsecond):
				}
			}
		})
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
		switching.Wait()
		for at, ops := range h.sectors {
			if porcupine.CheckOperationsTimeout(register, ops, time.Minute) == porcupine.Illegal {
				t.Fatalf("seed %d: sector %d is not linearizable", seed, at)
			}
		}
		if switches < 2 {
			t.Errorf("switched %d times only", switches)
		}
		if got := v.Hydration().State; got != HydrationRunning && got != HydrationDone {
			t.Errorf("hydration is %s after the last switch", got)
		}
		check(t, v.Close())
	}
}

// Where the header says that the cache was off, one that is missing is no loss; a flush that failed still is.
func TestMissingCacheWhileOff(t *testing.T) {
	dev, boot, path := memoryStore(t, ownSize, 4096, sector, false), uuid.New(), newCachePath(cacheDir(t))
	v := mustOpen(t, dev, nil, boot, path)
	check(t, v.SetCache(t.Context(), cowfmt.CacheOff))
	want := filled(8192, 4096, 3)
	check(t, request(v, &blockdev.Request{Op: blockdev.OpWrite, Off: 8192, Buf: want}))
	abandon(v)
	check(t, os.Remove(path))
	v = mustOpen(t, dev, nil, boot, path)
	if got := contents(t, v, ownSize)[8192:12288]; string(got) != string(want) {
		t.Error("an acknowledged write is gone")
	}
	if v.CacheMode() != cowfmt.CacheOn || v.Header().Cache != cowfmt.CacheOn {
		t.Error("the cache stayed off though nothing asks for it")
	}
	abandon(v)
	check(t, os.Remove(path))
	if _, err := openOn(dev, nil, boot, path); !errors.Is(err, ErrLoss) {
		t.Errorf("the cache was on, and is missing: %v", err)
	}
	v = mustOpen(t, dev, nil, boot, path, func(o *Options) { o.AcceptLoss, o.CacheMode = true, cowfmt.CacheOff })
	v.cache.setFlushFailed()
	abandon(v)
	if _, err := openOn(dev, nil, boot, path); !errors.Is(err, ErrLoss) {
		t.Errorf("a flush had failed: %v", err)
	}
}

// With the cache off every flag is on the device before its write is acknowledged: a power cut that spares what is durable of
// a flushed volume needs no memory; and an engine that is killed between data and flag goes on.
func TestKilledWhileOff(t *testing.T) {
	for n := 1; ; n++ {
		mem := memoryStore(t, ownSize, 4096, sector, false)
		disk := blockdevtest.NewCrash(mem, blockdevtest.CrashOptions{})
		boot, path := uuid.New(), newCachePath(cacheDir(t))
		off := func(o *Options) { o.CacheMode = cowfmt.CacheOff }
		v := mustOpen(t, disk, nil, boot, path, off)
		killed, before := false, disk.Ops()
		disk.OnOp = func(at int, _ string, _, _ int64) {
			if at == before+n {
				killed = true
				disk.Kill().LandAll()
			}
		}
		acked := map[int64]bool{}
		for chunk := range int64(4) {
			if request(v, &blockdev.Request{Op: blockdev.OpWrite, Off: chunk << 12, Buf: filled(chunk<<12, 4096, 5)}) == nil {
				acked[chunk] = true
			}
		}
		_ = v.Abandon()
		check(t, forgetFailedFlush(path))
		after := mustOpen(t, disk.Open(false), nil, boot, path, off)
		other := mustOpen(t, disk.Open(true), nil, uuid.New(), "", off, func(o *Options) { o.ReadOnly, o.Owner.Host = true, uuid.New() })
		for chunk := range int64(4) {
			here, there := make([]byte, 4096), make([]byte, 4096)
			_, err := after.ReadAt(here, chunk<<12)
			check(t, err)
			_, err = other.ReadAt(there, chunk<<12)
			check(t, err)
			if string(here) != string(there) || acked[chunk] && string(here) != string(filled(chunk<<12, 4096, 5)) {
				t.Errorf("killed at operation %d: chunk %d (acknowledged: %v) differs", n, chunk, acked[chunk])
			}
		}
		check(t, other.Close())
		check(t, after.Close())
		if !killed {
			if n < 10 {
				t.Errorf("killed at %d operations only", n-1)
			}
			return
		}
	}
}
