package engine

import (
	"maps"
	"slices"

	"github.com/virt-cow/virt-cow/internal/store"
)

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
	t.countUnsaved()
}

// pending says whether flags of these chunks, which a lookup found set, may not be on the device yet.
func (t *table) pending(c, n int64) bool {
	if t.unsaved.Load() == 0 {
		return false
	}
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
