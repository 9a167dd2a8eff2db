package blockdev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// LockMode is how a File is held against other processes of this host.
type LockMode int

// The modes of a lock: flock's.
const (
	LockNone LockMode = iota
	LockShared
	LockExclusive
)

// FileOptions say how to open a file or block device.
type FileOptions struct {
	ReadOnly bool
	Direct   bool // O_DIRECT: past the page cache, as a device that other hosts see must be
	Lock     LockMode
	// Exclusive takes a block device also from the kernel: nobody can mount it or make it part of another device, and
	// it can't be opened while somebody has.
	Exclusive bool
}

// File is a regular file or a block device of this host.
//
// The lock is a flock on the very descriptor that the I/O goes through: the kernel keeps it until the
// last request in flight has ended, even those of a killed process, so who has the lock need not fear a
// late write of a predecessor.
type File struct {
	f      *os.File
	fd     int
	info   Info
	block  bool // a block device
	direct bool
	id     DeviceID
	closed atomic.Bool
}

// DeviceID names an open file or device for as long as the host is up.
type DeviceID struct{ Dev, Ino, Rdev uint64 }

// OpenFile opens a regular file or block device. The context bounds the wait for the lock, or for a block device that
// is to be had exclusively, only; where it ends first the error is ErrLocked.
func OpenFile(ctx context.Context, path string, o FileOptions) (*File, error) {
	flags := unix.O_RDWR | unix.O_CLOEXEC
	if o.ReadOnly {
		flags = unix.O_RDONLY | unix.O_CLOEXEC
	}
	if o.Exclusive { // nothing to a regular file
		flags |= unix.O_EXCL
	}
	f, err := openFree(ctx, path, flags)
	if err != nil {
		return nil, err
	}
	d := &File{f: f, fd: int(f.Fd())}
	// With it, a ring takes every request for one that must not wait.
	if err := unix.SetNonblock(d.fd, false); err != nil {
		f.Close()
		return nil, &os.PathError{Op: "fcntl", Path: path, Err: err}
	}
	if err := d.init(path, o); err != nil {
		f.Close()
		return nil, err
	}
	if err := d.Lock(ctx, o.Lock); err != nil {
		f.Close()
		return nil, err
	}
	return d, nil
}

// openFree opens a file, and waits while the kernel has it as a block device for somebody else: a killed predecessor
// too, until its last request has ended.
func openFree(ctx context.Context, path string, flags int) (*os.File, error) {
	for {
		// Without O_NONBLOCK a named pipe given by mistake would block the open for ever.
		f, err := os.OpenFile(path, flags|unix.O_NONBLOCK, 0)
		if !errors.Is(err, unix.EBUSY) || flags&unix.O_EXCL == 0 {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %w: it is mounted, part of a RAID, LVM or multipath device, or served by another engine", path, ErrLocked)
		case <-time.After(lockPoll):
		}
	}
}

func (d *File) init(path string, o FileOptions) error {
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	d.id = DeviceID{Dev: st.Dev, Ino: st.Ino, Rdev: st.Rdev}
	d.info = Info{Name: path, Size: st.Size, BlockSize: SectorSize, ReadOnly: o.ReadOnly}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFBLK:
		d.block = true
		size, err := blockDeviceSize(d.fd)
		if err != nil {
			return &os.PathError{Op: "ioctl BLKGETSIZE64", Path: path, Err: err}
		}
		sector, err := unix.IoctlGetInt(d.fd, unix.BLKSSZGET)
		if err != nil {
			return &os.PathError{Op: "ioctl BLKSSZGET", Path: path, Err: err}
		}
		d.info.Size, d.info.BlockSize = size, sector
	default:
		return fmt.Errorf("%s: neither a regular file nor a block device", path)
	}
	if d.info.Size%SectorSize != 0 {
		return fmt.Errorf("%s: its size, %d bytes, is not a multiple of %d: truncate -s %%%d %s", path, d.info.Size, SectorSize, SectorSize, path)
	}
	if o.Direct {
		return d.setDirect(path)
	}
	return nil
}

// setDirect turns O_DIRECT on. A tmpfs, which may have none, is used through its page cache: Flush means as
// little there, and no other host can see such a file.
func (d *File) setDirect(path string) error {
	flags, err := unix.FcntlInt(uintptr(d.fd), unix.F_GETFL, 0)
	if err != nil {
		return &os.PathError{Op: "fcntl", Path: path, Err: err}
	}
	if _, err := unix.FcntlInt(uintptr(d.fd), unix.F_SETFL, flags|unix.O_DIRECT); err != nil {
		var fs unix.Statfs_t
		if serr := unix.Fstatfs(d.fd, &fs); serr == nil && fs.Type == unix.TMPFS_MAGIC {
			return nil
		}
		return fmt.Errorf("%s: its file system has no O_DIRECT, which a disk that other hosts may see needs: %w", path, err)
	}
	d.direct = true
	if !d.block {
		var stx unix.Statx_t
		err := unix.Statx(d.fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &stx)
		if err == nil && stx.Mask&unix.STATX_DIOALIGN != 0 && stx.Dio_offset_align > SectorSize {
			d.info.BlockSize = int(stx.Dio_offset_align)
		}
	}
	if d.info.BlockSize > 4096 || d.info.BlockSize&(d.info.BlockSize-1) != 0 {
		return fmt.Errorf("%s: logical sectors of %d bytes are not supported (512 to 4096 are)", path, d.info.BlockSize)
	}
	return nil
}

func blockDeviceSize(fd int) (int64, error) {
	var size uint64
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size))); errno != 0 {
		return 0, errno
	}
	return int64(size), nil
}

// lockPoll is how often a held lock is tried again.
const lockPoll = 20 * time.Millisecond

// Lock changes how the file is held, waiting until the context ends: then ErrLocked.
func (d *File) Lock(ctx context.Context, mode LockMode) error { return Flock(ctx, d.f, mode) }

// Flock locks an open file against other processes of this host, waiting until the context ends: then
// ErrLocked. It is tried at least once.
func Flock(ctx context.Context, f *os.File, mode LockMode) error {
	how := map[LockMode]int{LockNone: unix.LOCK_UN, LockShared: unix.LOCK_SH, LockExclusive: unix.LOCK_EX}[mode]
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case !errors.Is(err, unix.EWOULDBLOCK):
			return &os.PathError{Op: "flock", Path: f.Name(), Err: err}
		default:
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s: %w by another process of this host", f.Name(), ErrLocked)
			case <-time.After(lockPoll):
			}
		}
	}
}

// Info implements Device.
func (d *File) Info() Info { return d.info }

// Direct says whether I/O goes past the page cache.
func (d *File) Direct() bool { return d.direct }

// IsBlockDevice tells a block device from a regular file.
func (d *File) IsBlockDevice() bool { return d.block }

// ID names the file among those open on this host.
func (d *File) ID() DeviceID { return d.id }

// Fd is the descriptor, for a Ring and for ioctls.
func (d *File) Fd() int { return d.fd }

// Close implements Device.
func (d *File) Close() error {
	if d.closed.Swap(true) {
		return os.ErrClosed
	}
	return d.f.Close()
}

// check answers for a request as a whole: range, alignment, and that the file is open.
func (d *File) check(off, length int64, write bool) error {
	if d.closed.Load() {
		return fmt.Errorf("%s: %w", d.info.Name, os.ErrClosed)
	}
	if write && d.info.ReadOnly {
		return fmt.Errorf("%s: %w", d.info.Name, ErrReadOnly)
	}
	return CheckRange(d.info, off, length)
}

func (d *File) pathError(op string, off int64, err error) error {
	return fmt.Errorf("%s %s at %d: %w", op, d.info.Name, off, err)
}

// errShort is what a device that ends before its size is: it shrank.
var errShort = fmt.Errorf("the device ends before its size: %w: %w", unix.EIO, io.ErrUnexpectedEOF)
