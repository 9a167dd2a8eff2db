package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/bits"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/virt-cow/virt-cow/internal/store"
)

// load reads a leaf into the cache, unless it is there.
func (t *table) load(leaf int64) error {
	t.loading.Lock()
	defer t.loading.Unlock()
	if atomic.LoadUint32(t.cache.state(leaf)) != leafUnread {
		return nil
	}
	return t.read(leaf)
}

// refresh reads a leaf from the device and takes over the ones in it: with the cache off another host
// may have set them.
func (t *table) refresh(leaf int64) error {
	if !t.st.LeafReady(leaf) { // as far as the header was read
		if err := t.st.Reread(); err != nil {
			return err
		}
	}
	return t.read(leaf)
}

// reconcile makes this host's knowledge of all leaves that it read while the cache was off good again: it takes over the ones
// that another host has set meanwhile, and finds those that are in this host's memory only, to be committed. Nobody else may
// be writing the table.
func (t *table) reconcile(ctx context.Context) error {
	var reads errgroup.Group
	reads.SetLimit(reconcileAtOnce)
	for leaf := range t.cache.leaves {
		if atomic.LoadUint32(t.cache.state(leaf)) == leafUnread {
			continue
		}
		if ctx.Err() != nil {
			break
		}
		reads.Go(func() error {
			var flags [store.LeafFlags]byte
			if err := t.st.ReadLeaf(leaf, flags[:]); err != nil {
				return err
			}
			t.mu.Lock()
			defer t.mu.Unlock()
			if err := t.merge(leaf, flags[:]); err != nil {
				return err
			}
			if _, going := t.going[leaf]; !going && !bytes.Equal(t.flags(leaf), flags[:]) {
				t.dirty[leaf] = struct{}{}
				t.countUnsaved()
			}
			return nil
		})
	}
	return errors.Join(reads.Wait(), ctx.Err())
}

// reconcileAtOnce bounds how many leaves are read at a time.
const reconcileAtOnce = 16

// read takes over what the device has of a leaf.
func (t *table) read(leaf int64) error {
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
