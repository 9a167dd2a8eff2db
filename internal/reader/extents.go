package reader

import "github.com/virt-cow/virt-cow/internal/blockdev"

// Extents implements blockdev.Device: what is Zero reads as zeros as of the cut, if Verify says so afterwards. That is what the
// master has no data for, and holes of the origin that were not filled since the cut: they are asked for before the flags are
// read, as data is. What is saved counts as data.
func (v *View) Extents(off, length int64) ([]blockdev.Extent, error) {
	if err := v.check(off, length); err != nil || length == 0 {
		return nil, err
	}
	s, err := v.span(off, length)
	if err != nil {
		return nil, err
	}
	var holes []blockdev.Extent
	if v.tells {
		if holes, err = v.origin.extents(off, off+length); err != nil {
			return nil, err
		}
		if err := v.settle(&s); err != nil {
			return nil, err
		}
	}
	var out extents
	for i := 0; i < len(s.from); {
		n := i + 1
		for n < len(s.from) && s.from[n] == s.from[i] {
			n++
		}
		start, end := max((s.first+int64(i))*v.chunk, off), min((s.first+int64(n))*v.chunk, off+length)
		switch {
		case s.from[i] == fromOrigin && v.tells:
			out.clip(holes, start, end)
		case s.from[i] == fromMaster:
			part, err := v.master.extents(start, end)
			if err != nil {
				return nil, err
			}
			out.clip(part, start, end)
		default:
			out.add(start, end, false)
		}
		i = n
	}
	lower(&v.unjudged, off)
	return out, nil
}

// extents is what the device says of a range that may go past its end, perhaps with more at both sides.
func (d part) extents(from, to int64) (out []blockdev.Extent, err error) {
	if from < d.size {
		start, end := from&^(d.block-1), min((to+d.block-1)&^(d.block-1), d.size)
		if out, err = d.dev.Extents(start, end-start); err != nil {
			return nil, err
		}
	}
	if to > d.size {
		start := max(from, d.size)
		out = append(out, blockdev.Extent{Offset: start, Length: to - start, Zero: true})
	}
	return out, nil
}

// extents are in order and without gaps, and neighbours differ.
type extents []blockdev.Extent

func (e *extents) add(from, to int64, zero bool) {
	if n := len(*e); n > 0 && (*e)[n-1].Zero == zero {
		(*e)[n-1].Length += to - from
		return
	}
	*e = append(*e, blockdev.Extent{Offset: from, Length: to - from, Zero: zero, Hole: zero})
}

// clip adds the part of others between from and to.
func (e *extents) clip(others []blockdev.Extent, from, to int64) {
	for _, o := range others {
		if start, end := max(o.Offset, from), min(o.Offset+o.Length, to); start < end {
			e.add(start, end, o.Zero)
		}
	}
}
