package engine

import (
	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// target is how the volume is mapped, as in device-mapper. Its methods block, may be called at the same
// time, and take offsets and lengths in multiples of 512 bytes inside the volume.
type target interface {
	name() string
	read(p []byte, off int64) error
	write(p []byte, off int64, durable bool) error
	zero(off, length int64, unmap, durable bool) error
	trim(off, length int64) error
	flush() error
	extents(off, length int64) ([]blockdev.Extent, error)

	// fast serves a read or write without blocking, now or through r.Ring, and returns true; or it
	// returns false, having done nothing.
	fast(v *Volume, r *blockdev.Request) bool
}

// area is a data area: a device with requests that need not be multiples of its block size.
type area struct {
	blockdev.Device
	file  *blockdev.File // under the device, or nil
	base  int64          // of the device in the file
	block int64
}

func newArea(dev blockdev.Device) area {
	a := area{Device: dev, block: int64(dev.Info().BlockSize)}
	if f, base, ok := blockdev.FileOf(dev); ok {
		a.file, a.base = f, base
	}
	return a
}

// alignedTo says whether a request is whole blocks.
func (a *area) alignedTo(off, length int64) bool { return (off|length)&(a.block-1) == 0 }

// around is the smallest run of whole blocks that holds a request.
func (a *area) around(off, length int64) (start, end int64) {
	return off &^ (a.block - 1), (off + length + a.block - 1) &^ (a.block - 1)
}

func (a *area) read(p []byte, off int64) error {
	n := int64(len(p))
	if a.alignedTo(off, n) {
		_, err := a.ReadAt(p, off)
		return err
	}
	start, end := a.around(off, n)
	buf := blockdev.Alloc(int(end - start))
	defer blockdev.Free(buf)
	if _, err := a.ReadAt(buf, start); err != nil {
		return err
	}
	copy(p, buf[off-start:])
	return nil
}

// write writes p. Where it is not whole blocks it reads what is around it first: then nobody else may
// write to these blocks.
func (a *area) write(p []byte, off int64) error {
	n := int64(len(p))
	if a.alignedTo(off, n) {
		_, err := a.WriteAt(p, off)
		return err
	}
	start, end := a.around(off, n)
	buf := blockdev.Alloc(int(end - start))
	defer blockdev.Free(buf)
	for _, edge := range [2]int64{start, end - a.block} {
		if _, err := a.ReadAt(buf[edge-start:edge-start+a.block], edge); err != nil {
			return err
		}
	}
	copy(buf[off-start:], p)
	_, err := a.WriteAt(buf, start)
	return err
}

// room asks a file for the room of writes to come, in one piece: cheaper than piece by piece, and less
// scattered. Where it fails the writes will tell.
func (a *area) room(off, length int64) {
	if a.file != nil {
		_ = a.file.Allocate(a.base+off, length)
	}
}

// zeroPiece is how much is zeroed at a time where the device has no way of its own.
const zeroPiece = 1 << 20

// zero makes whole blocks read as zeros, whatever it takes.
func (a *area) zero(off, length int64, unmap bool) error {
	err := a.WriteZeroes(off, length, unmap)
	if err != blockdev.ErrNotSupported {
		return err
	}
	buf := blockdev.Alloc(int(min(length, zeroPiece)))
	defer blockdev.Free(buf)
	clear(buf)
	for length > 0 {
		n := min(length, zeroPiece)
		if _, err := a.WriteAt(buf[:n], off); err != nil {
			return err
		}
		off, length = off+n, length-n
	}
	return nil
}
