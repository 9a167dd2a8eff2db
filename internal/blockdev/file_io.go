package blockdev

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// aligned says whether the kernel takes this memory for O_DIRECT as it is. 512 bytes is what every
// device asks for at least; Alloc gives a page.
func (d *File) aligned(p []byte) bool {
	return !d.direct || len(p) == 0 || uintptr(unsafe.Pointer(&p[0]))&uintptr(d.info.BlockSize-1) == 0
}

// ReadAt implements Device.
func (d *File) ReadAt(p []byte, off int64) (int, error) {
	if err := d.check(off, int64(len(p)), false); err != nil {
		return 0, err
	}
	if !d.aligned(p) {
		bounce := Alloc(len(p))
		defer Free(bounce)
		n, err := d.transfer(unix.Pread, "read", bounce, off)
		return copy(p, bounce[:n]), err
	}
	return d.transfer(unix.Pread, "read", p, off)
}

// WriteAt implements Device.
func (d *File) WriteAt(p []byte, off int64) (int, error) {
	if err := d.check(off, int64(len(p)), true); err != nil {
		return 0, err
	}
	if !d.aligned(p) {
		bounce := Alloc(len(p))
		defer Free(bounce)
		copy(bounce, p)
		p = bounce
	}
	return d.transfer(unix.Pwrite, "write", p, off)
}

// transfer moves all of p, going on after a short or interrupted call.
func (d *File) transfer(call func(int, []byte, int64) (int, error), op string, p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := call(d.fd, p[done:], off+int64(done))
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return done, d.pathError(op, off+int64(done), err)
		case n == 0:
			return done, d.pathError(op, off+int64(done), errShort)
		}
		done += n
	}
	return done, nil
}

// ReadCached fills p from the page cache, and returns false, with p in any state, where that would have
// had to wait for the disk. It never blocks.
func (d *File) ReadCached(p []byte, off int64) bool {
	if len(p) == 0 || d.direct || d.check(off, int64(len(p)), false) != nil {
		return false
	}
	iov := unix.Iovec{Base: &p[0], Len: uint64(len(p))}
	n, _, errno := unix.Syscall6(unix.SYS_PREADV2, uintptr(d.fd), uintptr(unsafe.Pointer(&iov)), 1, uintptr(off), 0, unix.RWF_NOWAIT)
	return errno == 0 && int(n) == len(p)
}

// WriteZeroes implements Device with fallocate, which promises zeros on files and on block devices or
// fails: PUNCH_HOLE gives the room back, ZERO_RANGE keeps it.
func (d *File) WriteZeroes(off, length int64, unmap bool) error {
	if err := d.check(off, length, true); err != nil || length == 0 {
		return err
	}
	mode := uint32(unix.FALLOC_FL_ZERO_RANGE)
	if unmap {
		mode = unix.FALLOC_FL_PUNCH_HOLE
	}
	for {
		err := unix.Fallocate(d.fd, mode|unix.FALLOC_FL_KEEP_SIZE, off, length)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOSYS):
			return ErrNotSupported
		default:
			return d.pathError("zero", off, err)
		}
	}
}

// Allocate gives a part of a regular file its room, ahead of writes; what it reads as stays. A block device
// has its room.
func (d *File) Allocate(off, length int64) error {
	if err := d.check(off, length, true); err != nil || length == 0 || d.block {
		return err
	}
	if err := unix.Fallocate(d.fd, unix.FALLOC_FL_KEEP_SIZE, off, length); err != nil {
		return d.pathError("allocate", off, err)
	}
	return nil
}

// Flush implements Device: fdatasync, which also flushes the write cache of a block device.
func (d *File) Flush() error {
	if err := d.check(0, 0, false); err != nil {
		return err
	}
	for {
		err := unix.Fdatasync(d.fd)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return d.pathError("flush", 0, err)
		}
		return nil
	}
}

// Extents implements Device with SEEK_DATA and SEEK_HOLE; block devices can't tell.
func (d *File) Extents(off, length int64) ([]Extent, error) {
	if err := d.check(off, length, false); err != nil || length == 0 {
		return nil, err
	}
	if d.block {
		return []Extent{{Offset: off, Length: length}}, nil
	}
	var out []Extent
	for end := off + length; off < end; {
		data, err := unix.Seek(d.fd, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) && !d.shrunk() { // no data from here on
			data = end
		} else if err != nil {
			return append(out, Extent{Offset: off, Length: end - off}), nil
		}
		if data = min(data, end); data > off {
			out = append(out, Extent{Offset: off, Length: data - off, Zero: true, Hole: true})
			off = data
			continue
		}
		hole, err := unix.Seek(d.fd, off, unix.SEEK_HOLE)
		if err != nil {
			hole = end
		}
		// A hole that appears right here just now would make no progress: call it data.
		hole = min(max(hole, off+SectorSize), end)
		out = append(out, Extent{Offset: off, Length: hole - off})
		off = hole
	}
	return out, nil
}

// shrunk says that a regular file is shorter than it was: what it had behind its end is gone, not zeros.
func (d *File) shrunk() bool {
	var st unix.Stat_t
	return unix.Fstat(d.fd, &st) != nil || st.Size < d.info.Size
}

// DropCache makes later reads through the page cache come from the disk: another host may have written
// there since this one last looked. Unlike BLKFLSBUF, which does the same to what is clean, it takes no
// privilege.
func (d *File) DropCache() error {
	if err := unix.Fadvise(d.fd, 0, 0, unix.FADV_DONTNEED); err != nil {
		return d.pathError("drop the page cache of", 0, err)
	}
	return nil
}
