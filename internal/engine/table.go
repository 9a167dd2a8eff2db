package engine

import (
	"encoding/binary"
	"maps"
	"math/bits"
	"slices"
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
		t.dirty[leaf] = struct{}{}
	}
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

// load reads a leaf into the cache, unless it is there.
func (t *table) load(leaf int64) error {
	t.loading.Lock()
	defer t.loading.Unlock()
	if atomic.LoadUint32(t.cache.state(leaf)) != leafUnread {
		return nil
	}
	var flags [store.LeafFlags]byte
	if err := t.st.ReadLeaf(leaf, flags[:]); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.merge(leaf, flags[:])
}

// refresh reads a leaf from the device and takes over the ones in it: with the cache off another host
// may have set them.
func (t *table) refresh(leaf int64) error {
	if !t.st.LeafReady(leaf) { // as far as the header was read
		if err := t.st.Reread(); err != nil {
			return err
		}
	}
	var flags [store.LeafFlags]byte
	if err := t.st.ReadLeaf(leaf, flags[:]); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.merge(leaf, flags[:])
}

// merge adds the device's ones to a leaf and makes it known. Called with mu held.
func (t *table) merge(leaf int64, flags []byte) error {
	n := 0
	for i := 0; i < len(flags); i += 8 {
		n += bits.OnesCount64(binary.LittleEndian.Uint64(flags[i:]))
	}
	state := t.cache.state(leaf)
	was := atomic.LoadUint32(state)
	switch {
	case was == leafFull:
		return nil
	case int64(n) == t.chunksOf(leaf):
		t.account(leaf, n-int(t.count[leaf]))
		atomic.StoreUint32(state, leafFull)
		return nil
	case n == 0:
		if was == leafUnread {
			atomic.StoreUint32(state, leafClear)
		}
		return nil
	}
	if err := t.mix(leaf); err != nil {
		return err
	}
	words := t.cache.words(leaf)
	for i := range words {
		t.or(leaf, words, i, binary.LittleEndian.Uint64(flags[i*8:]))
	}
	// Only now: until here a reader of an unread leaf must not see a part of it.
	atomic.StoreUint32(state, leafMixed)
	t.settle(leaf)
	return nil
}

// mix gives a leaf that is not mixed yet a page of zeros. Called with mu held.
func (t *table) mix(leaf int64) error {
	if atomic.LoadUint32(t.cache.state(leaf)) == leafMixed {
		return nil
	}
	if err := t.cache.populate(leaf); err != nil {
		return err
	}
	clear(t.cache.words(leaf)) // of what a killed process may have left half done
	return nil
}

// or sets flags of one word. Called with mu held.
func (t *table) or(leaf int64, words []uint64, i int, mask uint64) {
	old := words[i]
	if fresh := mask &^ old; fresh != 0 {
		atomic.StoreUint64(&words[i], old|mask)
		t.account(leaf, bits.OnesCount64(fresh))
	}
}

func (t *table) account(leaf int64, n int) {
	t.count[leaf] += uint16(n)
	t.ones.Add(int64(n))
}

// settle makes a leaf full that has become so. Its page stays: a reader may be in it.
func (t *table) settle(leaf int64) {
	if int64(t.count[leaf]) == t.chunksOf(leaf) {
		atomic.StoreUint32(t.cache.state(leaf), leafFull)
	}
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

// capture takes what a commit is to write, sorted: every flag that was set before, and so whose data was
// complete before. Leaf by leaf, so that the guest's writes don't wait for all of it; a flag that is set
// meanwhile is captured or makes its leaf dirty again.
func (t *table) capture() []store.Leaf {
	t.mu.Lock()
	dirty := t.dirty
	if len(dirty) == 0 {
		t.mu.Unlock()
		return nil
	}
	t.dirty, t.going = map[int64]struct{}{}, dirty
	t.mu.Unlock()
	out := make([]store.Leaf, 0, len(dirty))
	for _, leaf := range slices.Sorted(maps.Keys(dirty)) {
		t.mu.Lock()
		out = append(out, store.Leaf{Index: leaf, Flags: t.flags(leaf)})
		t.mu.Unlock()
	}
	return out
}

// committed ends a capture: the leaves are on the device, or with an error are dirty again.
func (t *table) committed(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		maps.Copy(t.dirty, t.going)
	}
	t.going = nil
}

// pending says whether flags of these chunks may not be on the device yet.
func (t *table) pending(c, n int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for leaf := c / store.LeafChunks; leaf <= (c+n-1)/store.LeafChunks; leaf++ {
		_, dirty := t.dirty[leaf]
		_, going := t.going[leaf]
		if dirty || going {
			return true
		}
	}
	return false
}

func (t *table) isDirty() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.dirty) > 0
}

// flags are the bytes of a leaf that is read. Called with mu held.
func (t *table) flags(leaf int64) []byte {
	out := make([]byte, store.LeafFlags)
	switch atomic.LoadUint32(t.cache.state(leaf)) {
	case leafFull:
		n := t.chunksOf(leaf)
		for i := range n / 8 {
			out[i] = 0xff
		}
		if n%8 != 0 {
			out[n/8] = 1<<(n%8) - 1
		}
	case leafMixed:
		for i, w := range t.cache.words(leaf) {
			binary.LittleEndian.PutUint64(out[i*8:], w)
		}
	}
	return out
}
