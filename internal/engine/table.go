package engine

import (
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// table is the exception table of an open store: the exception cache over the table on the device.
//
// Flags only go from 0 to 1, so a one that was seen can be trusted for ever, without a lock. A zero can
// be trusted only with the cache on.
//
// Lock order: loading, then mu. Neither is held over the other's I/O: mu never covers I/O.
type table struct {
	st     *store.Store
	cache  *cacheFile
	chunks int64
	mode   atomic.Uint32 // cowfmt.CacheMode

	loading sync.Mutex // one leaf is read at a time

	mu    sync.Mutex // flags are set, and captured for a commit
	count []uint16   // set flags of a leaf, if it is read
	dirty map[int64]struct{}
	going map[int64]struct{} // leaves of the commit that is running
	ones  atomic.Int64       // set flags of the leaves that are read

	unsaved atomic.Int64 // 0: no flag that a lookup has seen is missing on the device
}

// newTable puts a table over the cache. After the death of a process of this boot the cache holds flags
// that were never committed: with recovered, every leaf it knows is to be written again.
func newTable(st *store.Store, cache *cacheFile, recovered bool) *table {
	h := st.Header()
	t := &table{st: st, cache: cache, chunks: h.Chunks(), count: make([]uint16, cache.leaves), dirty: map[int64]struct{}{}}
	t.mode.Store(uint32(h.Cache))
	if !recovered {
		return t
	}
	for leaf := range cache.leaves {
		switch atomic.LoadUint32(cache.state(leaf)) {
		case leafMixed:
			n := 0
			for _, w := range cache.words(leaf) {
				n += bits.OnesCount64(w)
			}
			t.count[leaf] = uint16(n)
		case leafFull:
			t.count[leaf] = uint16(t.chunksOf(leaf))
		default:
			continue
		}
		t.ones.Add(int64(t.count[leaf]))
		if h.Cache == cowfmt.CacheOn {
			t.dirty[leaf] = struct{}{}
		}
	}
	t.countUnsaved()
	return t
}

// chunksOf is how many chunks a leaf covers: LeafChunks, fewer for the last.
func (t *table) chunksOf(leaf int64) int64 {
	return min(store.LeafChunks, t.chunks-leaf*store.LeafChunks)
}

// off says whether zeros in memory can't be trusted.
func (t *table) off() bool { return cowfmt.CacheMode(t.mode.Load()) == cowfmt.CacheOff }

// lookup tells the state of chunk c and for how many chunks from there, at most limit, it is the same.
// known is false where the leaf must be loaded first. It takes no lock.
func (t *table) lookup(c, limit int64) (set bool, n int64, known bool) {
	leaf, at := c/store.LeafChunks, c%store.LeafChunks
	limit = min(limit, t.chunksOf(leaf)-at)
	switch atomic.LoadUint32(t.cache.state(leaf)) {
	case leafUnread:
		return false, 0, false
	case leafClear:
		return false, limit, true
	case leafFull:
		return true, limit, true
	}
	words := t.cache.words(leaf)
	w := atomic.LoadUint64(&words[at/64]) // once: the run has at least the chunk whose state it is of
	var flip uint64                       // turns the run looked for into zeros
	if set = w>>(at%64)&1 == 1; set {
		flip = ^uint64(0)
	}
	for i := at; ; w = atomic.LoadUint64(&words[i/64]) {
		if rest := (w ^ flip) >> (i % 64); rest != 0 {
			return set, min(i+int64(bits.TrailingZeros64(rest))-at, limit), true
		}
		if i += 64 - i%64; i-at >= limit {
			return set, limit, true
		}
	}
}

// run is lookup that loads what it must, and goes on over leaves.
func (t *table) run(c, limit int64) (set bool, n int64, err error) {
	limit = min(limit, t.chunks-c)
	for n < limit {
		state, m, known := t.lookup(c+n, limit-n)
		if !known {
			if err := t.load((c + n) / store.LeafChunks); err != nil {
				return false, 0, err
			}
			continue
		}
		if n > 0 && state != set {
			break
		}
		set = state
		n += m
	}
	return set, n, nil
}

// leafRange is the part of chunks [c, c+n) inside a leaf, from first to last exclusive, counted in the leaf.
func (t *table) leafRange(leaf, c, n int64) (first, last int64, whole bool) {
	base := leaf * store.LeafChunks
	first, last = max(c-base, 0), min(c+n-base, t.chunksOf(leaf))
	return first, last, first == 0 && last == t.chunksOf(leaf)
}

// ready says whether set could set these flags without I/O and without failing.
func (t *table) ready(c, n int64) bool {
	for leaf := c / store.LeafChunks; leaf <= (c+n-1)/store.LeafChunks; leaf++ {
		switch atomic.LoadUint32(t.cache.state(leaf)) {
		case leafUnread:
			return false
		case leafClear:
			if _, _, whole := t.leafRange(leaf, c, n); !whole {
				return false
			}
		}
	}
	return true
}

// prepare makes ready true: a set after the data was written must not fail.
func (t *table) prepare(c, n int64) error {
	for leaf := c / store.LeafChunks; leaf <= (c+n-1)/store.LeafChunks; leaf++ {
		if err := t.load(leaf); err != nil {
			return err
		}
		if _, _, whole := t.leafRange(leaf, c, n); whole {
			continue
		}
		t.mu.Lock()
		var err error
		if state := t.cache.state(leaf); atomic.LoadUint32(state) == leafClear {
			if err = t.mix(leaf); err == nil {
				atomic.StoreUint32(state, leafMixed)
			}
		}
		t.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// set sets the flags of n chunks from c on: their data is in the store. ready must hold. The caller
// holds the chunks in the inflight table.
func (t *table) set(c, n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unsaved.Add(1) // before a lookup may see a one
	defer t.countUnsaved()
	for leaf := c / store.LeafChunks; leaf <= (c+n-1)/store.LeafChunks; leaf++ {
		state := t.cache.state(leaf)
		if atomic.LoadUint32(state) == leafFull {
			continue
		}
		before := t.count[leaf]
		first, last, whole := t.leafRange(leaf, c, n)
		if whole {
			t.account(leaf, int(last)-int(before))
			atomic.StoreUint32(state, leafFull)
		} else {
			words := t.cache.words(leaf)
			for i := first / 64; i <= (last-1)/64; i++ {
				mask := ^uint64(0)
				if i == first/64 {
					mask &= ^uint64(0) << (first % 64)
				}
				if i == (last-1)/64 {
					mask &= ^uint64(0) >> (63 - (last-1)%64)
				}
				t.or(leaf, words, int(i), mask)
			}
			t.settle(leaf)
		}
		if t.count[leaf] != before {
			t.dirty[leaf] = struct{}{}
		}
	}
}

// countUnsaved brings unsaved up to date. Called with mu held.
func (t *table) countUnsaved() { t.unsaved.Store(int64(len(t.dirty) + len(t.going))) }
