package records

import (
	"fmt"
	"io"
)

// Instant makes sure that a disk is as it was at one instant of this writer's work, as its Seed tells: for each worker it holds all
// of the worker's writes up to one, whole, and nothing of any later one; of the last write itself each record may be there or
// not. It returns how far each worker had got.
func (w *Writer) Instant(r io.ReaderAt, alloc func(size int) []byte) (upTo []uint64, err error) {
	upTo = make([]uint64, w.Workers)
	buf := alloc(Size)
	for id := range upTo {
		own := w.Slots / w.Workers
		holds := make([]uint64, own)
		for i := range holds {
			slot := id*own + i
			if _, err := r.ReadAt(buf, int64(slot)*Size); err != nil {
				return nil, fmt.Errorf("read slot %d: %w", slot, err)
			}
			if holds[i], err = Check(buf, slot); err != nil {
				holds[i] = 0 // never written, which only a slot that was written must not be
			}
			upTo[id] = max(upTo[id], holds[i])
		}
		should := make([]uint64, own)
		before := make([]uint64, own)
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
