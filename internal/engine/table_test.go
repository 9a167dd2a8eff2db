package engine

import (
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// tableOn is a table over a device, with a cache of its own.
func tableOn(t *testing.T, dev blockdev.Device, cache string) *table {
	t.Helper()
	st, err := store.Open(dev)
	check(t, err)
	c, err := createCache(cache, st.Header(), uuid.New(), st.Leaves())
	check(t, err)
	t.Cleanup(func() { check(t, c.close(cache != "")) })
	return newTable(st, c, false)
}

// naive is what a table should be.
type naive []bool

func (n naive) run(c, limit int64) (bool, int64) {
	end := min(c+limit, int64(len(n)))
	at := c
	for at < end && n[at] == n[c] {
		at++
	}
	return n[c], at - c
}

func (n naive) compare(t *testing.T, tb *table, rng *rand.Rand) {
	t.Helper()
	edges := []int64{0, store.LeafChunks - 1, store.LeafChunks, 2*store.LeafChunks - 1, 2 * store.LeafChunks, int64(len(n)) - 1}
	for range 40 {
		c := rng.Int64N(int64(len(n)))
		if rng.IntN(2) == 0 {
			c = min(max(edges[rng.IntN(len(edges))]+rng.Int64N(130)-65, 0), int64(len(n))-1)
		}
		limit := 1 + rng.Int64N(min(200, int64(len(n))-c))
		if rng.IntN(4) == 0 {
			limit = int64(len(n)) - c
		}
		set, got, err := tb.run(c, limit)
		if wantSet, want := n.run(c, limit); err != nil || set != wantSet || got != want {
			t.Fatalf("run(%d, %d) = %v %d %v, want %v %d", c, limit, set, got, err, wantSet, want)
		}
	}
}

// randomRange begins and ends near leaves' ends half of the time, and is whole leaves now and then.
func randomRange(rng *rand.Rand, chunks int64) (c, n int64) {
	switch rng.IntN(8) {
	case 0:
		leaf := rng.Int64N((chunks + store.LeafChunks - 1) / store.LeafChunks)
		c = leaf * store.LeafChunks
		n = min(store.LeafChunks*(1+rng.Int64N(2)), chunks-c)
	case 1, 2, 3:
		c = max(min((1+rng.Int64N(2))*store.LeafChunks-rng.Int64N(100), chunks-1), 0)
		n = min(1+rng.Int64N(200), chunks-c)
	default:
		c = rng.Int64N(chunks)
		n = min(1+rng.Int64N(500), chunks-c)
	}
	return c, n
}

// Random flags are set, written by a commit, read back by other tables, and merged from others' writes.
func TestTableModel(t *testing.T) {
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 9))
		chunks := 2*int64(store.LeafChunks) + 1 + rng.Int64N(200)
		dev := memoryStore(t, chunks*4096, 4096, sector, false)
		cache := ""
		if seed%2 == 0 {
			cache = filepath.Join(cacheDir(t), "c")
		}
		mine := tableOn(t, dev, cache)
		model := make(naive, chunks)
		device := make(naive, chunks) // what was committed
		ones := int64(0)
		for range 60 {
			c, n := randomRange(rng, chunks)
			check(t, mine.prepare(c, n))
			if !mine.ready(c, n) {
				t.Fatalf("not ready for %d, %d after prepare", c, n)
			}
			mine.set(c, n)
			for i := c; i < c+n; i++ {
				if !model[i] {
					ones++
				}
				model[i] = true
			}
			model.compare(t, mine, rng)
			if rng.IntN(5) > 0 {
				continue
			}
			leaves := mine.capture()
			if mine.isDirty() || !slices.IsSortedFunc(leaves, func(a, b store.Leaf) int { return int(a.Index - b.Index) }) {
				t.Fatal("captured leaves are out of order, or some are dirty still")
			}
			if rng.IntN(4) == 0 {
				mine.committed(io.ErrUnexpectedEOF)
				continue
			}
			err := mine.st.WriteLeaves(leaves)
			mine.committed(err)
			check(t, err)
			copy(device, model)
		}
		for leaf := range mine.leaves { // a leaf nobody touched counts when it is read
			check(t, mine.load(leaf))
		}
		if got := mine.ones.Load(); got != ones {
			t.Errorf("ones %d, want %d", got, ones)
		}
		device.compare(t, tableOn(t, dev, ""), rng)
	}
}

// With the cache off, a table takes over what another one wrote.
func TestTableRefresh(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	chunks := int64(store.LeafChunks) + 77
	dev := memoryStore(t, chunks*4096, 4096, sector, false)
	writer, reader := tableOn(t, dev, ""), tableOn(t, dev, "")
	model := make(naive, chunks)
	for i := range 80 {
		c, n := randomRange(rng, chunks)
		if i%3 > 0 {
			n = min(n, 3)
		}
		check(t, writer.prepare(c, n))
		writer.set(c, n)
		for j := c; j < c+n; j++ {
			model[j] = true
		}
		check(t, writer.st.WriteLeaves(writer.capture()))
		for leaf := range reader.leaves {
			check(t, reader.refresh(leaf))
		}
		model.compare(t, reader, rng)
	}
	if reader.ones.Load() != writer.ones.Load() || reader.isDirty() {
		t.Errorf("ones %d, want %d; dirty %v", reader.ones.Load(), writer.ones.Load(), reader.isDirty())
	}
}

// A flag that turns while it is looked up leaves a run that begins with that chunk, in one state or the other.
func TestTableLookupWhileSetting(t *testing.T) {
	dev := memoryStore(t, store.LeafChunks*4096, 4096, sector, false)
	for range 10 {
		tb := tableOn(t, dev, "")
		check(t, tb.prepare(0, 1))
		var wg sync.WaitGroup
		wg.Go(func() {
			for c := int64(0); c < store.LeafChunks; c++ {
				tb.set(c, 1)
			}
		})
		for c := int64(0); c < store.LeafChunks; {
			set, n, known := tb.lookup(c, 1)
			if !known || n != 1 {
				t.Errorf("lookup(%d, 1) = %v %d %v: want a run of one", c, set, n, known)
				break
			}
			if set {
				c++
			}
		}
		wg.Wait()
	}
}

// What a killed engine left half done in a page that was not published yet does no harm.
func TestTableHalfDonePage(t *testing.T) {
	dev := memoryStore(t, 100*4096, 4096, sector, false)
	for _, state := range []uint32{leafUnread, leafClear} {
		path := filepath.Join(cacheDir(t), "c")
		tb := tableOn(t, dev, path)
		*tb.memory.state(0) = state
		tb.memory.words(0)[0] = 0xff0
		next := newTable(tb.st, tb.memory.(*cacheFile), true)
		check(t, next.prepare(20, 1))
		next.set(20, 1)
		if set, n, err := next.run(0, 100); set || n != 20 || err != nil {
			t.Errorf("state %d: run = %v %d %v, want 20 clear chunks", state, set, n, err)
		}
		if next.ones.Load() != 1 {
			t.Errorf("state %d: %d ones, want 1", state, next.ones.Load())
		}
	}
}

// What was in the cache and perhaps not on the device is written again after a death.
func TestTableRecovered(t *testing.T) {
	chunks := 3 * int64(store.LeafChunks)
	dev := memoryStore(t, chunks*4096, 4096, sector, false)
	tb := tableOn(t, dev, filepath.Join(cacheDir(t), "c"))
	check(t, tb.prepare(0, 5))
	tb.set(0, 5)
	check(t, tb.prepare(store.LeafChunks, store.LeafChunks))
	tb.set(store.LeafChunks, store.LeafChunks)
	check(t, tb.load(2))
	next := newTable(tb.st, tb.memory.(*cacheFile), true)
	if got := next.ones.Load(); got != 5+store.LeafChunks {
		t.Errorf("ones %d", got)
	}
	check(t, next.st.WriteLeaves(next.capture()))
	fresh := tableOn(t, dev, "")
	for _, want := range []struct {
		c, n int64
		set  bool
	}{{0, 5, true}, {5, store.LeafChunks - 5, false}, {store.LeafChunks, store.LeafChunks, true}, {2 * store.LeafChunks, store.LeafChunks, false}} {
		if set, n, err := fresh.run(want.c, chunks); set != want.set || n != want.n || err != nil {
			t.Errorf("run(%d) = %v %d %v, want %v %d", want.c, set, n, err, want.set, want.n)
		}
	}
}

// A bad table sector is an error for what needs it, and nothing is cached.
func TestTableBadSector(t *testing.T) {
	dev := memoryStore(t, 100*4096, 4096, sector, false)
	tb := tableOn(t, dev, "")
	check(t, tb.prepare(7, 1))
	tb.set(7, 1)
	check(t, tb.st.WriteLeaves(tb.capture()))
	p := make([]byte, sector)
	at := tb.st.Header().Layout.Table[0]
	_, err := dev.ReadAt(p, at)
	check(t, err)
	for _, i := range []int{0, 100, 505, 511} {
		p[i] ^= 4
		_, err = dev.WriteAt(p, at)
		check(t, err)
		other := tableOn(t, dev, "")
		if _, _, err := other.run(0, 1); err == nil {
			t.Errorf("a flipped bit in byte %d of a table sector was not noticed", i)
		}
		p[i] ^= 4
		_, err = dev.WriteAt(p, at)
		check(t, err)
		if set, _, err := other.run(7, 1); !set || err != nil {
			t.Errorf("after the sector was mended: %v %v", set, err)
		}
	}
}

// A volume of 64 TiB in chunks of 4 KiB is open at once, and takes memory for what is used only.
func TestTableHuge(t *testing.T) {
	size := int64(cowfmt.MaxSize)
	dev := memoryStore(t, size, 4096, sector, true)
	master := blockdevtest.NewMemory("master", size, sector)
	boot, cache := uuid.New(), filepath.Join(cacheDir(t), "c")
	v := mustOpen(t, dev, master.Open(true), boot, cache)
	p := filled(size-4096, 4096, 1)
	for _, off := range []int64{0, 33 << 40, size - 4096} {
		fill(p, off, 1)
		_, err := v.WriteAt(p[:1024], off)
		check(t, err)
	}
	check(t, v.Close())
	v = mustOpen(t, dev, master.Open(true), boot, cache)
	defer func() { check(t, v.Close()) }()
	for _, off := range []int64{0, 33 << 40, size - 4096} {
		fill(p, off, 1)
		clear(p[1024:])
		got := make([]byte, 4096)
		_, err := v.ReadAt(got, off)
		if check(t, err); string(got) != string(p) {
			t.Errorf("other data at %d", off)
		}
	}
	if set := v.table.ones.Load(); set != 3 {
		t.Errorf("%d chunks are set, want 3", set)
	}
}

// Flags are set while commits find nothing to do.
func TestTableCaptureWhileSetting(t *testing.T) {
	chunks := 64 * int64(store.LeafChunks)
	tb := tableOn(t, memoryStore(t, chunks*4096, 4096, sector, false), "")
	done := make(chan int)
	go func() {
		captured := 0
		for captured < 64 {
			captured += len(tb.capture())
		}
		done <- captured
	}()
	for leaf := range int64(64) {
		check(t, tb.prepare(leaf*store.LeafChunks, 1))
		tb.set(leaf*store.LeafChunks, 1)
	}
	if n := <-done; n != 64 || tb.isDirty() {
		t.Errorf("captured %d leaves of 64; dirty: %v", n, tb.isDirty())
	}
}
