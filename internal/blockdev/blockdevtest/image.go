package blockdevtest

import (
	"maps"
	"slices"
	"sync/atomic"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

const (
	sectorSize  = blockdev.SectorSize
	leafSectors = 128
	leafSize    = leafSectors * sectorSize // bytes
)

// sector is never changed once an image holds it, so images share sectors freely. A nil *sector is a
// hole and reads as zeros.
type sector [sectorSize]byte

// zeroSector is what WriteZeroes leaves where the room is kept.
var zeroSector = new(sector)

type leaf struct {
	owner   uint64 // the image that may change this leaf in place
	sectors [leafSectors]*sector
}

// image is the contents of a disk: sparse, and cheap to fork because leaves are copied when they are
// first changed. Reads may run at the same time, changes may not.
type image struct {
	id     uint64
	leaves map[int64]*leaf // by offset / leafSize

	lastNo int64 // the leaf changed last, if last is not nil
	last   *leaf
}

var imageIDs atomic.Uint64

func newImage() *image {
	return &image{id: imageIDs.Add(1), leaves: map[int64]*leaf{}}
}

// fork returns an independent image with the same contents.
func (im *image) fork() *image {
	im.id, im.last = imageIDs.Add(1), nil // its leaves are shared from now on
	return im.copyFrozen()
}

// copyFrozen is fork for an image that nobody changes any more. It may be called at the same time as
// itself.
func (im *image) copyFrozen() *image {
	return &image{id: imageIDs.Add(1), leaves: maps.Clone(im.leaves)}
}

// own returns leaf no ready to be changed.
func (im *image) own(no int64) *leaf {
	if im.last != nil && im.lastNo == no {
		return im.last
	}
	l := im.leaves[no]
	switch {
	case l == nil:
		l = &leaf{owner: im.id}
		im.leaves[no] = l
	case l.owner != im.id:
		l = &leaf{owner: im.id, sectors: l.sectors}
		im.leaves[no] = l
	}
	im.last, im.lastNo = l, no
	return l
}

// sector returns the sector with that number, nil for a hole.
func (im *image) sector(no int64) *sector {
	if l := im.leaves[no/leafSectors]; l != nil {
		return l.sectors[no%leafSectors]
	}
	return nil
}

// read fills p, a multiple of the sector size, from off.
func (im *image) read(p []byte, off int64) {
	for no := off / sectorSize; len(p) > 0; no++ {
		if s := im.sector(no); s != nil {
			copy(p, s[:])
		} else {
			clear(p[:sectorSize])
		}
		p = p[sectorSize:]
	}
}

// put makes data, which must not change any more, the contents at off.
func (im *image) put(data []byte, off int64) {
	for no := off / sectorSize; len(data) > 0; no++ {
		im.own(no / leafSectors).sectors[no%leafSectors] = (*sector)(data)
		data = data[sectorSize:]
	}
}

// zero makes length bytes at off read as zeros. A hole stays a hole; with unmap the rest becomes one.
func (im *image) zero(off, length int64, unmap bool) {
	from, to := off/sectorSize, (off+length)/sectorSize
	for _, no := range im.leavesIn(off, length) {
		l := im.own(no)
		for s := max(from, no*leafSectors); s < min(to, (no+1)*leafSectors); s++ {
			switch p := &l.sectors[s%leafSectors]; {
			case unmap:
				*p = nil
			case *p != nil:
				*p = zeroSector
			}
		}
		if l.sectors == [leafSectors]*sector{} {
			delete(im.leaves, no)
			im.last = nil
		}
	}
}

// leavesIn returns the numbers of the leaves that touch the range, in order.
func (im *image) leavesIn(off, length int64) []int64 {
	if length == 0 {
		return nil
	}
	first, last := off/leafSize, (off+length-1)/leafSize
	var nos []int64
	if last-first < int64(len(im.leaves)) {
		for no := first; no <= last; no++ {
			if im.leaves[no] != nil {
				nos = append(nos, no)
			}
		}
		return nos
	}
	for no := range im.leaves {
		if first <= no && no <= last {
			nos = append(nos, no)
		}
	}
	slices.Sort(nos)
	return nos
}

// extents describes the range: holes, zeroed room and data.
func (im *image) extents(off, length int64) []blockdev.Extent {
	var out []blockdev.Extent
	add := func(from, to int64, zero, hole bool) {
		if from == to {
			return
		}
		if n := len(out) - 1; n >= 0 && out[n].Zero == zero && out[n].Hole == hole {
			out[n].Length += to - from
			return
		}
		out = append(out, blockdev.Extent{Offset: from, Length: to - from, Zero: zero, Hole: hole})
	}
	at, end := off, off+length
	for _, no := range im.leavesIn(off, length) {
		start := max(at, no*leafSize)
		add(at, start, true, true)
		for at = start; at < min(end, (no+1)*leafSize); at += sectorSize {
			s := im.leaves[no].sectors[at/sectorSize%leafSectors]
			add(at, at+sectorSize, s == nil || s == zeroSector, s == nil)
		}
	}
	add(at, end, true, true)
	return out
}
