// Package blockdev is the lowest floor: what a block device is to virt-cow, and the files and block
// devices of the host that are one.
//
// A Device is plain random access with the three promises the engine stands on:
//
//   - a ReadAt or WriteAt that returns nil did all of it;
//   - after Flush returned nil, every write that had returned before Flush was called survives a power
//     cut;
//   - without a Flush, after a power cut each 512-byte sector of a write holds its old or its new bytes,
//     independently of its neighbours.
//
// Offsets and lengths are bytes, multiples of Info.BlockSize, and inside [0, Info.Size): CheckRange is
// the one place that says so. Every implementation passes the suite in blockdevtest.
package blockdev

import (
	"errors"
	"fmt"
	"io"
)

// SectorSize is the unit of sizes and of atomicity: a device's size is a multiple of it, in bytes.
const SectorSize = 512

var (
	// ErrRange says that a request leaves the device.
	ErrRange = errors.New("outside the device")
	// ErrAlign says that a request is not a multiple of the device's block size.
	ErrAlign = errors.New("not a multiple of the block size")
	// ErrReadOnly says that a write reached a device opened for reading.
	ErrReadOnly = errors.New("device is read-only")
	// ErrNotSupported says that the device can't do this at all; the caller has another way.
	ErrNotSupported = errors.New("not supported by the device")
	// ErrLocked says that another process holds the device.
	ErrLocked = errors.New("already in use")
)

// Info is what a device says of itself; it does not change while the device is open.
type Info struct {
	Name      string // path or address, for error messages
	Size      int64  // bytes
	BlockSize int    // bytes, a power of two, 512 to 4096: its logical sector, the unit of requests
	ReadOnly  bool
}

// Extent is a run of bytes of one kind.
type Extent struct {
	Offset, Length int64 // bytes
	Zero           bool  // reads as zeros
	Hole           bool  // takes no room; a hole that is not Zero may read as anything
}

// Device is a random-access block device. All methods may be called at the same time; Close once, last.
type Device interface {
	io.ReaderAt // all of p, or an error
	io.WriterAt // all of p, or an error

	// WriteZeroes makes length bytes at off read as zeros. With unmap the room may be given back. It
	// returns ErrNotSupported, having done nothing, where only writing zeros would do it.
	WriteZeroes(off, length int64, unmap bool) error
	// Flush makes every write that returned before it was called survive a power cut.
	Flush() error
	// Extents describes [off, off+length) in order and without gaps. A device that can't tell answers
	// one extent that is neither Zero nor Hole.
	Extents(off, length int64) ([]Extent, error)
	Info() Info
	Close() error
}

// CheckRange returns ErrRange or ErrAlign, wrapped with the request, for a request the device can't
// serve, and nil for one it can. A length of zero is served.
func CheckRange(info Info, off, length int64) error {
	switch {
	case off < 0 || length < 0 || off > info.Size || length > info.Size-off:
		return fmt.Errorf("%s: offset %d length %d of %d bytes: %w", info.Name, off, length, info.Size, ErrRange)
	case (off|length)&int64(info.BlockSize-1) != 0:
		return fmt.Errorf("%s: offset %d length %d, block size %d: %w", info.Name, off, length, info.BlockSize, ErrAlign)
	}
	return nil
}
