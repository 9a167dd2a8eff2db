package engine

import (
	"math/bits"
	"sync/atomic"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// table is the exception table of an open store: the exception cache over the table on the device. A zero can be trusted
// only with the cache on.
type table struct {
	bitmap
	st   *store.Store
	mode atomic.Uint32 // cowfmt.CacheMode

	// Under mu.
	dirty map[int64]struct{}
	going map[int64]struct{} // leaves of the commit that is running

	unsaved atomic.Int64 // 0: no flag that a lookup has seen is missing on the device
}

// newTable puts a table over the cache. After the death of a process of this boot the cache holds flags
// that were never committed: with recovered, every leaf it knows is to be written again.
func newTable(st *store.Store, cache *cacheFile, recovered bool) *table {
	h := st.Header()
	t := &table{bitmap: newBitmap(st.ReadLeaf, cache, cache.leaves, h.Chunks()), st: st, dirty: map[int64]struct{}{}}
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

// off says whether zeros in memory can't be trusted.
func (t *table) off() bool { return cowfmt.CacheMode(t.mode.Load()) == cowfmt.CacheOff }

// set sets the flags of n chunks from c on: their data is in the store. ready must hold. The caller
// holds the chunks in the inflight table.
func (t *table) set(c, n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unsaved.Add(1) // before a lookup may see a one
	defer t.countUnsaved()
	for leaf := c / store.LeafChunks; leaf <= (c+n-1)/store.LeafChunks; leaf++ {
		if t.setLeaf(leaf, c, n) {
			t.dirty[leaf] = struct{}{}
		}
	}
}

// countUnsaved brings unsaved up to date. Called with mu held.
func (t *table) countUnsaved() { t.unsaved.Store(int64(len(t.dirty) + len(t.going))) }
