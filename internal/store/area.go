package store

import (
	"bytes"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// area is one table area of a store, under one header. It knows nothing of who may write, nor of which groups are
// initialised.
type area struct {
	dev    blockdev.Device
	h      *cowfmt.Header
	at     int64 // where it begins on the device
	frozen bool  // it is a snapshot's frozen table, whose sectors have a check sum of their own
}

// activeArea is the table area that a header says is in use.
func activeArea(dev blockdev.Device, h *cowfmt.Header) area {
	return area{dev: dev, h: h, at: h.Layout.Table[h.ActiveTable]}
}

// frozenArea is a snapshot's frozen table.
func frozenArea(dev blockdev.Device, h *cowfmt.Header) area {
	return area{dev: dev, h: h, at: h.Layout.Frozen, frozen: true}
}

// leaves is how many leaves the table of a header has.
func leaves(h *cowfmt.Header) int64 {
	return (h.TableSectors() + LeafSectors - 1) / LeafSectors
}

// readLeaf reads one leaf's flags from the device into flags, LeafFlags bytes.
func (a area) readLeaf(index int64, flags []byte) error {
	buf := blockdev.Alloc(LeafBytes)
	defer blockdev.Free(buf)
	if _, err := a.dev.ReadAt(buf, a.at+index*LeafBytes); err != nil {
		return fmt.Errorf("read exception table: %w", err)
	}
	return a.decodeLeaf(index, buf, flags)
}

// decodeLeaf reads a leaf's flags out of its bytes on the device.
func (a area) decodeLeaf(index int64, buf, flags []byte) error {
	decode := a.h.DecodeSector
	if a.frozen {
		decode = a.h.DecodeFrozenSector
	}
	for i := range int64(LeafSectors) {
		part := flags[i*sectorFlags : (i+1)*sectorFlags]
		if index*LeafSectors+i >= a.h.TableSectors() {
			clear(part)
			continue
		}
		got, _, err := decode(buf[i*blockdev.SectorSize:(i+1)*blockdev.SectorSize], index*LeafSectors+i)
		if err != nil {
			return fmt.Errorf("%s: %w", a.dev.Info().Name, err)
		}
		copy(part, got)
	}
	return nil
}

// readGroup reads a group that is initialised, and returns its leaves that have a flag.
func (a area) readGroup(g int) (found []Leaf, err error) {
	buf := blockdev.Alloc(int(min(groupLeaves, leaves(a.h)-int64(g)*groupLeaves) * LeafBytes))
	defer blockdev.Free(buf)
	if _, err := a.dev.ReadAt(buf, a.at+int64(g)*groupLeaves*LeafBytes); err != nil {
		return nil, fmt.Errorf("read exception table: %w", err)
	}
	for i := int64(0); i < int64(len(buf))/LeafBytes; i++ {
		l := Leaf{Index: int64(g)*groupLeaves + i, Flags: make([]byte, LeafFlags)}
		if err := a.decodeLeaf(l.Index, buf[i*LeafBytes:], l.Flags); err != nil {
			return nil, err
		}
		if !bytes.Equal(l.Flags, clearLeaf[:]) {
			found = append(found, l)
		}
	}
	return found, nil
}

var clearLeaf [LeafFlags]byte

// writesAtOnce bounds how many runs of leaves are written at a time.
const writesAtOnce = 16

// writeRuns writes leaves of groups that are initialised, neighbours in one write.
func (a area) writeRuns(leaves []Leaf) error {
	var runs errgroup.Group
	runs.SetLimit(writesAtOnce)
	for i := 0; i < len(leaves); {
		n := i + 1
		for n < len(leaves) && leaves[n].Index == leaves[n-1].Index+1 {
			n++
		}
		run := leaves[i:n]
		if len(run) == len(leaves) {
			return a.writeSpan(run[0].Index, int64(len(run)), run)
		}
		runs.Go(func() error { return a.writeSpan(run[0].Index, int64(len(run)), run) })
		i = n
	}
	return runs.Wait()
}

// writeGroup writes all of a group, to the end of the area's capacity: the volume may grow into it.
func (a area) writeGroup(group int, leaves []Leaf) error {
	first := int64(group) * groupLeaves
	count := min(groupLeaves, a.h.Layout.TableSectors/LeafSectors-first)
	return a.writeSpan(first, count, leaves)
}

var clearFlags [sectorFlags]byte

// writeSpan writes count leaves from first on; those not in leaves are all clear.
func (a area) writeSpan(first, count int64, leaves []Leaf) error {
	buf := blockdev.Alloc(int(count) * LeafBytes)
	defer blockdev.Free(buf)
	encode := a.h.EncodeSector
	if a.frozen {
		encode = a.h.EncodeFrozenSector
	}
	for i := range count {
		var flags []byte
		if len(leaves) > 0 && leaves[0].Index == first+i {
			flags, leaves = leaves[0].Flags, leaves[1:]
		}
		for j := range int64(LeafSectors) {
			part := clearFlags[:]
			if flags != nil {
				part = flags[j*sectorFlags : (j+1)*sectorFlags]
			}
			at := (i*LeafSectors + j) * blockdev.SectorSize
			encode(buf[at:at+blockdev.SectorSize], (first+i)*LeafSectors+j, part, a.h.Epoch)
		}
	}
	if _, err := a.dev.WriteAt(buf, a.at+first*LeafBytes); err != nil {
		return fmt.Errorf("write exception table: %w", err)
	}
	return nil
}
