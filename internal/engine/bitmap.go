package engine

import (
	"encoding/binary"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/virt-cow/virt-cow/internal/store"
)

// bitmap is a flag a chunk: a table on a device, in leaves that are read when they are first asked for.
//
// Flags only go from 0 to 1, so a one that was seen can be trusted for ever, without a lock. What a zero is worth
// depends on who else may write the table.
//
// Lock order: loading, then mu. Neither is held over the other's I/O: mu never covers I/O.
type bitmap struct {
	source func(leaf int64, flags []byte) error // reads a leaf from the device
	memory leafMemory
	leaves int64
	chunks int64

	loading sync.Mutex // one leaf is read at a time

	mu       sync.Mutex   // flags are set, and captured for a commit
	count    []uint16     // set flags of a leaf, if it is read
	most     []uint16     // the same, or what it was when it was last read or surveyed: no leaf has fewer
	total    atomic.Int64 // their sum
	ones     atomic.Int64 // set flags of the leaves that are read
	outdated int          // moves on where reads of leaves that began before don't count
}

// leafMemory is where the leaves of a bitmap are. populate gets the memory for a leaf's words, state begins as leafUnread.
type leafMemory interface {
	state(leaf int64) *uint32
	words(leaf int64) []uint64
	populate(leaf int64) error
}

func newBitmap(source func(leaf int64, flags []byte) error, memory leafMemory, leaves, chunks int64) bitmap {
	return bitmap{source: source, memory: memory, leaves: leaves, chunks: chunks, count: make([]uint16, leaves), most: make([]uint16, leaves)}
}

// chunksOf is how many chunks a leaf covers: LeafChunks, fewer for the last.
func (b *bitmap) chunksOf(leaf int64) int64 {
	return min(store.LeafChunks, b.chunks-leaf*store.LeafChunks)
}

// lookup tells the state of chunk c and for how many chunks from there, at most limit, it is the same.
// known is false where the leaf must be loaded first. It takes no lock.
func (b *bitmap) lookup(c, limit int64) (set bool, n int64, known bool) {
	leaf, at := c/store.LeafChunks, c%store.LeafChunks
	limit = min(limit, b.chunksOf(leaf)-at)
	switch atomic.LoadUint32(b.memory.state(leaf)) {
	case leafUnread:
		return false, 0, false
	case leafClear:
		return false, limit, true
	case leafFull:
		return true, limit, true
	}
	words := b.memory.words(leaf)
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

// countSet is how many flags of chunks [c, c+n) are known to be set. It takes no lock.
func (b *bitmap) countSet(c, n int64) (ones int64) {
	for end := c + n; c < end; {
		set, m, known := b.lookup(c, end-c)
		if !known {
			m = store.LeafChunks - c%store.LeafChunks
		} else if set {
			ones += m
		}
		c += m
	}
	return ones
}

// run is lookup that loads what it must, and goes on over leaves.
func (b *bitmap) run(c, limit int64) (set bool, n int64, err error) {
	limit = min(limit, b.chunks-c)
	for n < limit {
		state, m, known := b.lookup(c+n, limit-n)
		if !known {
			if err := b.load((c + n) / store.LeafChunks); err != nil {
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
func (b *bitmap) leafRange(leaf, c, n int64) (first, last int64, whole bool) {
	base := leaf * store.LeafChunks
	first, last = max(c-base, 0), min(c+n-base, b.chunksOf(leaf))
	return first, last, first == 0 && last == b.chunksOf(leaf)
}

// ready says whether set could set these flags without I/O and without failing.
func (b *bitmap) ready(c, n int64) bool {
	for leaf := c / store.LeafChunks; leaf <= (c+n-1)/store.LeafChunks; leaf++ {
		switch atomic.LoadUint32(b.memory.state(leaf)) {
		case leafUnread:
			return false
		case leafClear:
			if _, _, whole := b.leafRange(leaf, c, n); !whole {
				return false
			}
		}
	}
	return true
}

// prepare makes ready true: a set after the data was written must not fail.
func (b *bitmap) prepare(c, n int64) error {
	for leaf := c / store.LeafChunks; leaf <= (c+n-1)/store.LeafChunks; leaf++ {
		if err := b.load(leaf); err != nil {
			return err
		}
		if _, _, whole := b.leafRange(leaf, c, n); whole {
			continue
		}
		b.mu.Lock()
		var err error
		if state := b.memory.state(leaf); atomic.LoadUint32(state) == leafClear {
			if err = b.mix(leaf); err == nil {
				atomic.StoreUint32(state, leafMixed)
			}
		}
		b.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// setLeaf sets those of the flags of n chunks from c on that are in a leaf, and says whether that changed any. ready must
// hold. Called with mu held.
func (b *bitmap) setLeaf(leaf, c, n int64) bool {
	state := b.memory.state(leaf)
	if atomic.LoadUint32(state) == leafFull {
		return false
	}
	before := b.count[leaf]
	first, last, whole := b.leafRange(leaf, c, n)
	if whole {
		b.account(leaf, int(last)-int(before))
		atomic.StoreUint32(state, leafFull)
	} else {
		words := b.memory.words(leaf)
		for i := first / 64; i <= (last-1)/64; i++ {
			mask := ^uint64(0)
			if i == first/64 {
				mask &= ^uint64(0) << (first % 64)
			}
			if i == (last-1)/64 {
				mask &= ^uint64(0) >> (63 - (last-1)%64)
			}
			b.or(leaf, words, int(i), mask)
		}
		b.settle(leaf)
	}
	return b.count[leaf] != before
}

// mark sets the flags of chunks. ready must hold for each.
func (b *bitmap) mark(chunks []int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range chunks {
		b.setLeaf(c/store.LeafChunks, c, 1)
	}
}

// with is the leaves of some chunks, sorted, as they are once these have their flags. ready must hold for each.
func (b *bitmap) with(chunks []int64) (out []store.Leaf) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range chunks {
		leaf, at := c/store.LeafChunks, c%store.LeafChunks
		if n := len(out); n == 0 || out[n-1].Index != leaf {
			out = append(out, store.Leaf{Index: leaf, Flags: b.flags(leaf)})
		}
		out[len(out)-1].Flags[at/8] |= 1 << (at % 8)
	}
	return out
}

// load reads a leaf into the cache, unless it is there.
func (b *bitmap) load(leaf int64) error {
	b.loading.Lock()
	defer b.loading.Unlock()
	if atomic.LoadUint32(b.memory.state(leaf)) != leafUnread {
		return nil
	}
	return b.read(leaf)
}

// read takes over what the device has of a leaf.
func (b *bitmap) read(leaf int64) error {
	var flags [store.LeafFlags]byte
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		was := b.outdated
		b.mu.Unlock()
		err := b.source(leaf, flags[:])
		b.mu.Lock()
		if err != nil {
			return err
		}
		if b.outdated == was {
			return b.merge(leaf, flags[:])
		}
	}
}

// forget makes every leaf unread that has a zero: somebody else may have set flags. Nobody may be setting any here.
func (b *bitmap) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.outdated++
	for leaf := range b.leaves {
		state := b.memory.state(leaf)
		if s := atomic.LoadUint32(state); s == leafClear || s == leafMixed {
			atomic.StoreUint32(state, leafUnread)
			b.account(leaf, -int(b.count[leaf]))
		}
	}
}

// merge adds the device's ones to a leaf and makes it known. Called with mu held.
func (b *bitmap) merge(leaf int64, flags []byte) error {
	n := countOnes(flags)
	state := b.memory.state(leaf)
	was := atomic.LoadUint32(state)
	switch {
	case was == leafFull:
		return nil
	case int64(n) == b.chunksOf(leaf):
		b.account(leaf, n-int(b.count[leaf]))
		atomic.StoreUint32(state, leafFull)
		return nil
	case n == 0:
		if was == leafUnread {
			atomic.StoreUint32(state, leafClear)
		}
		return nil
	}
	if err := b.mix(leaf); err != nil {
		return err
	}
	words := b.memory.words(leaf)
	for i := range words {
		b.or(leaf, words, i, binary.LittleEndian.Uint64(flags[i*8:]))
	}
	// Only now: until here a reader of an unread leaf must not see a part of it.
	atomic.StoreUint32(state, leafMixed)
	b.settle(leaf)
	return nil
}

// mix gives a leaf that is not mixed yet a page of zeros. Called with mu held.
func (b *bitmap) mix(leaf int64) error {
	if atomic.LoadUint32(b.memory.state(leaf)) == leafMixed {
		return nil
	}
	if err := b.memory.populate(leaf); err != nil {
		return err
	}
	clear(b.memory.words(leaf)) // of what a killed process may have left half done
	return nil
}

// or sets flags of one word. Called with mu held.
func (b *bitmap) or(leaf int64, words []uint64, i int, mask uint64) {
	old := words[i]
	if fresh := mask &^ old; fresh != 0 {
		atomic.StoreUint64(&words[i], old|mask)
		b.account(leaf, bits.OnesCount64(fresh))
	}
}

func (b *bitmap) account(leaf int64, n int) {
	b.count[leaf] += uint16(n)
	b.ones.Add(int64(n))
	b.reach(leaf, b.count[leaf])
}

// reach notes that a leaf has at least so many set flags. Called with mu held.
func (b *bitmap) reach(leaf int64, n uint16) {
	if more := int64(n) - int64(b.most[leaf]); more > 0 {
		b.most[leaf] = n
		b.total.Add(more)
	}
}

// survey counts the flags of a leaf that is not read, and keeps nothing else of it.
func (b *bitmap) survey(leaf int64, source func(leaf int64, flags []byte) error) error {
	if atomic.LoadUint32(b.memory.state(leaf)) != leafUnread {
		return nil
	}
	var flags [store.LeafFlags]byte
	if err := source(leaf, flags[:]); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reach(leaf, uint16(countOnes(flags[:])))
	return nil
}

func countOnes(flags []byte) (n int) {
	for i := 0; i < len(flags); i += 8 {
		n += bits.OnesCount64(binary.LittleEndian.Uint64(flags[i:]))
	}
	return n
}

// settle makes a leaf full that has become so. Its page stays: a reader may be in it.
func (b *bitmap) settle(leaf int64) {
	if int64(b.count[leaf]) == b.chunksOf(leaf) {
		atomic.StoreUint32(b.memory.state(leaf), leafFull)
	}
}

// flags are the bytes of a leaf that is read. Called with mu held.
func (b *bitmap) flags(leaf int64) []byte {
	out := make([]byte, store.LeafFlags)
	switch atomic.LoadUint32(b.memory.state(leaf)) {
	case leafFull:
		n := b.chunksOf(leaf)
		for i := range n / 8 {
			out[i] = 0xff
		}
		if n%8 != 0 {
			out[n/8] = 1<<(n%8) - 1
		}
	case leafMixed:
		for i, w := range b.memory.words(leaf) {
			binary.LittleEndian.PutUint64(out[i*8:], w)
		}
	}
	return out
}
