package store

import (
	"context"
	"encoding/binary"
	"math/bits"
)

// ScanTable reads the whole table as it is on the device and returns how many chunks are in the store.
// bad is called for each leaf that can't be trusted; step with how much of the table was read, bytes;
// run with the runs of chunks that are in the store, in order, neighbours perhaps apart. step and run may
// be nil.
func (s *Store) ScanTable(ctx context.Context, bad func(error), step func(done, total int64), run func(first, count int64)) (set int64, err error) {
	h := s.Header()
	if h.CutLoose {
		return h.Chunks(), nil
	}
	return scanLeaves(ctx, s.Leaves(), s.LeafReady, s.ReadLeaf, bad, step, run)
}

// ScanFrozen is Store.ScanTable for the frozen table: chunks that were the clone's own at the cut.
func (s *Snapshot) ScanFrozen(ctx context.Context, bad func(error), step func(done, total int64), run func(first, count int64)) (set int64, err error) {
	always := func(int64) bool { return true }
	return scanLeaves(ctx, s.Leaves(), always, s.ReadFrozen, bad, step, run)
}

// scanLeaves scans the leaves of a table that are ready; the others are clear.
func scanLeaves(ctx context.Context, leaves int64, ready func(leaf int64) bool, read func(leaf int64, flags []byte) error,
	bad func(error), step func(done, total int64), run func(first, count int64)) (set int64, err error) {
	var flags [LeafFlags]byte
	for leaf := range leaves {
		if ctx.Err() != nil {
			return set, ctx.Err()
		}
		if step != nil {
			step(leaf*LeafBytes, leaves*LeafBytes)
		}
		if !ready(leaf) {
			continue
		}
		if err := read(leaf, flags[:]); err != nil {
			bad(err)
			continue
		}
		set += scanFlags(flags[:], leaf*LeafChunks, run)
	}
	return set, nil
}

// scanFlags counts the ones in flags, and tells their runs.
func scanFlags(flags []byte, base int64, run func(first, count int64)) (set int64) {
	for at := 0; at < len(flags); at += 8 {
		w := binary.LittleEndian.Uint64(flags[at:])
		set += int64(bits.OnesCount64(w))
		for run != nil && w != 0 {
			from := bits.TrailingZeros64(w)
			n := bits.TrailingZeros64(^(w >> from))
			run(base+int64(at*8+from), int64(n))
			if from+n == 64 {
				break
			}
			w &^= 1<<(from+n) - 1
		}
	}
	return set
}
