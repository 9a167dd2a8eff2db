package engine

import "sync/atomic"

// heapLeaves is the memory of a bitmap that need not outlive the process. Only mixed leaves take any.
type heapLeaves struct {
	states []uint32
	pages  []atomic.Pointer[[wordsOfLeafFlags]uint64]
}

func newHeapLeaves(leaves int64) *heapLeaves {
	return &heapLeaves{states: make([]uint32, leaves), pages: make([]atomic.Pointer[[wordsOfLeafFlags]uint64], leaves)}
}

func (h *heapLeaves) state(leaf int64) *uint32  { return &h.states[leaf] }
func (h *heapLeaves) words(leaf int64) []uint64 { return h.pages[leaf].Load()[:] }

func (h *heapLeaves) populate(leaf int64) error {
	if h.pages[leaf].Load() == nil {
		h.pages[leaf].Store(new([wordsOfLeafFlags]uint64))
	}
	return nil
}
