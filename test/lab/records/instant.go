package records

import (
	"fmt"
	"io"
	"slices"
)

// Held is the sequence number of the record in each slot of a disk, 0 where there is none.
func Held(r io.ReaderAt, slots int, alloc func(size int) []byte) ([]uint64, error) {
	held := make([]uint64, slots)
	buf := alloc(Size)
	for i := range held {
		if _, err := r.ReadAt(buf, int64(i)*Size); err != nil {
			return nil, fmt.Errorf("read slot %d: %w", i, err)
		}
		if seq, err := Check(buf, i); err == nil {
			held[i] = seq
		}
	}
	return held, nil
}

// Instant makes sure that a disk is as it was at one instant of this writer's work, as its Seed tells: for each worker it holds all
// of the worker's writes up to one, whole, and nothing of any later one; of the last write itself each record may be there or
// not. Slots that were not written by then hold what is under them: what they held (Held) before this writer began, nil for nothing.
// It returns how far each worker had got.
func (w *Writer) Instant(r io.ReaderAt, under []uint64, alloc func(size int) []byte) (upTo []uint64, err error) {
	upTo = make([]uint64, w.Workers)
	all, err := Held(r, w.Slots, alloc) // no record: never written, which only a slot that was written must not be
	if err != nil {
		return nil, err
	}
	if under == nil {
		under = make([]uint64, w.Slots)
	}
	for id := range upTo {
		own := w.Slots / w.Workers
		holds, should := all[id*own:(id+1)*own], slices.Clone(under[id*own:(id+1)*own])
		for i, seq := range holds {
			if seq != should[i] {
				upTo[id] = max(upTo[id], seq)
			}
		}
		before := slices.Clone(should)
		next := w.places(id, w.Seed)
		for seq := uint64(1); seq <= upTo[id]; seq++ {
			if seq == upTo[id] {
				copy(before, should)
			}
			first, n := next()
			for i := range n {
				should[first-id*own+i] = seq
			}
		}
		for i, seq := range holds {
			if seq != should[i] && (should[i] != upTo[id] || seq != before[i]) {
				return nil, fmt.Errorf("slot %d holds record %d, but %d when worker %d had come to %d: not one instant",
					id*own+i, seq, should[i], id, upTo[id])
			}
		}
	}
	return upTo, nil
}
