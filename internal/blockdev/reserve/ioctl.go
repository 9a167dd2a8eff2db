package reserve

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// linux/pr.h.
const (
	iocRegister     = 0x401870c8 // _IOW('p', 200, struct pr_registration)
	iocReserve      = 0x401070c9 // _IOW('p', 201, struct pr_reservation)
	iocPreemptAbort = 0x401870cc // _IOW('p', 204, struct pr_preempt)

	typeWriteExclusiveRegOnly = 3 // PR_WRITE_EXCLUSIVE_REG_ONLY; SPC-4 counts otherwise

	flagIgnoreKey = 1 // PR_FL_IGNORE_KEY
)

type registration struct {
	oldKey, newKey uint64
	flags, _       uint32
}

type reservation struct {
	key         uint64
	kind, flags uint32
}

type preemption struct {
	oldKey, newKey uint64
	kind, flags    uint32
}

func register(dev *blockdev.File, old, key uint64, flags uint32) error {
	r := registration{oldKey: old, newKey: key, flags: flags}
	return ioctl(dev, iocRegister, unsafe.Pointer(&r))
}

func reserve(dev *blockdev.File, key uint64) error {
	r := reservation{key: key, kind: typeWriteExclusiveRegOnly}
	return ioctl(dev, iocReserve, unsafe.Pointer(&r))
}

// preempt: Documentation/block/pr.rst has the two keys the other way round, but Linux sends old_key as the key of who asks and
// new_key as the one to be preempted, to SCSI and NVMe both. The wrong order is refused as a conflict.
func preempt(dev *blockdev.File, mine, theirs uint64) error {
	p := preemption{oldKey: mine, newKey: theirs, kind: typeWriteExclusiveRegOnly}
	return ioctl(dev, iocPreemptAbort, unsafe.Pointer(&p))
}

// The SCSI status of a command.
const (
	statusGood           = 0x00
	statusCheckCondition = 0x02
	statusBusy           = 0x08
	statusConflict       = 0x18
	statusTaskSetFull    = 0x28
)

// A command is tried again where the LUN only had something to tell first (a unit attention: other hosts'
// reservations do that to this one), or was busy.
const (
	attempts   = 8
	retryAfter = 50 * time.Millisecond
)

// ioctl carries out one of IOC_PR_*. Their result is no errno alone: a positive one is the SCSI status, in the lowest
// byte; above it are the host's own troubles.
func ioctl(dev *blockdev.File, request uintptr, arg unsafe.Pointer) error {
	for n := 1; ; n++ {
		result, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dev.Fd()), request, uintptr(arg))
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return ioctlError(errno)
		case result == 0:
			return nil
		}
		switch status := result & 0xff; {
		case status == statusConflict:
			return ErrConflict
		case n < attempts && (status == statusCheckCondition || status == statusBusy || status == statusTaskSetFull):
			time.Sleep(retryAfter)
		default:
			return fmt.Errorf("refused by the LUN, or no way to it: result %#x: %w", result, unix.EIO)
		}
	}
}

// ioctlError tells what the kernel has no such call for from what went wrong.
func ioctlError(errno unix.Errno) error {
	switch {
	case errno == unix.EBADE: // as block devices say it
		return ErrConflict
	case errno == unix.ENOTTY, errno == unix.EOPNOTSUPP, errno == unix.EINVAL, errno == unix.ENOSYS:
		return errors.Join(blockdev.ErrNotSupported, errno)
	}
	return errno
}
