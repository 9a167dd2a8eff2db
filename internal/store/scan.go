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
	var flags [LeafFlags]byte
	for leaf := range s.Leaves() {
		if ctx.Err() != nil {
			return set, ctx.Err()
		}
		if step != nil {
			step(leaf*LeafBytes, s.Leaves()*LeafBytes)
		}
		if !s.LeafReady(leaf) {
			continue
		}
		if err := s.ReadLeaf(leaf, flags[:]); err != nil {
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
