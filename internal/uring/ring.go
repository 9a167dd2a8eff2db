// Package uring drives one io_uring of the kernel without cgo: reads and writes of files, receiving from
// sockets and waiting for descriptors, all submitted and waited for with one system call a turn.
//
// A Ring belongs to the thread that made it: the goroutine calls runtime.LockOSThread before New and
// stays on that thread until Close returned. Every callback runs inside Turn or Close, on that thread.
//
// Nothing is allocated for an operation in steady state. What the kernel reads or writes is also held
// in Go memory (slots, Op) until its completion was seen, so the garbage collector can't take it.
package uring

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// Op is an operation that is not a file's read or write: its owner keeps it and may use it again once
// it is no longer Pending.
type Op struct {
	Done func(res int32) // result, or a negative errno

	buf     []byte
	iov     [2]unix.Iovec
	slot    uint64 // user data of the operation in flight
	pending bool
}

// Pending says whether the operation is in flight.
func (o *Op) Pending() bool { return o.pending }

type slot struct {
	io   *blockdev.IO
	op   *Op
	next uint64 // free list
}

// Ring is one io_uring.
type Ring struct {
	fd         int
	enterFd    int // fd, or its index among the thread's registered rings
	enterFlags uintptr

	ringMem, sqeMem []byte
	sqHead, sqTail  *uint32
	sqes            []sqe
	sqMask          uint32
	tail            uint32 // ours; published at enter
	cqHead, cqTail  *uint32
	cqes            []cqe
	cqMask          uint32

	slots    []slot // index 0 is nobody's: user data 0 needs no answer
	free     uint64 // first free slot, 0 none
	inFlight int
	backlog  []sqe // waiting for room in the submission queue
	enters   uint64

	signals unix.Sigset_t // that were blocked on the thread before
}

// New makes a ring with room for that many submissions a turn. It fails where io_uring is missing, too
// old (before 5.7), switched off (sysctl kernel.io_uring_disabled) or forbidden (seccomp); callers then
// do without.
func New(entries int) (*Ring, error) {
	if entries < 1 || entries > 1<<15 {
		return nil, fmt.Errorf("io_uring: %d entries: want 1 to 32768", entries)
	}
	var p params
	var fd uintptr
	var errno unix.Errno
	// Deferred task work keeps completions from interrupting the thread: they come when it asks. Kernels
	// before 6.1 refuse the flags.
	for _, flags := range []uint32{setupClamp | setupSingleIssuer | setupDeferTaskrun, setupClamp} {
		p = params{flags: flags}
		fd, _, errno = unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&p)), 0)
		if errno != unix.EINVAL {
			break
		}
	}
	if errno != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	r := &Ring{fd: int(fd), enterFd: int(fd), slots: make([]slot, 1, 2*entries+1)}
	if p.features&featRequired != featRequired {
		unix.Close(r.fd)
		return nil, fmt.Errorf("io_uring: features %#x of this kernel are too few, 5.7 or newer is needed", p.features)
	}
	if err := r.mmap(&p); err != nil {
		unix.Close(r.fd)
		return nil, err
	}
	var err error
	if r.signals, err = blockSignals(); err != nil {
		r.unmap()
		return nil, err
	}
	r.registerSelf()
	return r, nil
}

func (r *Ring) mmap(p *params) error {
	size := max(p.sq.array+p.sqEntries*4, p.cq.cqes+p.cqEntries*uint32(unsafe.Sizeof(cqe{})))
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	mem, err := unix.Mmap(r.fd, offSQRing, int(size), prot, flags)
	if err != nil {
		return fmt.Errorf("io_uring: mmap of the rings: %w", err)
	}
	sqeMem, err := unix.Mmap(r.fd, offSQEs, int(p.sqEntries)*int(unsafe.Sizeof(sqe{})), prot, flags)
	if err != nil {
		unix.Munmap(mem)
		return fmt.Errorf("io_uring: mmap of the submission entries: %w", err)
	}
	r.ringMem, r.sqeMem = mem, sqeMem
	word := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&mem[off])) }
	r.sqHead, r.sqTail = word(p.sq.head), word(p.sq.tail)
	r.cqHead, r.cqTail = word(p.cq.head), word(p.cq.tail)
	r.sqMask, r.cqMask = *word(p.sq.ringMask), *word(p.cq.ringMask)
	r.sqes = unsafe.Slice((*sqe)(unsafe.Pointer(&sqeMem[0])), p.sqEntries)
	r.cqes = unsafe.Slice((*cqe)(unsafe.Pointer(&mem[p.cq.cqes])), p.cqEntries)
	// The array maps queue positions to entries; entry i is always at position i.
	array := unsafe.Slice(word(p.sq.array), p.sqEntries)
	for i := range array {
		array[i] = uint32(i)
	}
	r.tail = atomic.LoadUint32(r.sqTail)
	return nil
}

// registerSelf spares the kernel the look-up of the ring's descriptor at each enter (5.18); without it
// all works the same.
func (r *Ring) registerSelf() {
	u := ringUpdate{offset: ^uint32(0), data: uint64(r.fd)}
	n, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), registerRingFds,
		uintptr(unsafe.Pointer(&u)), 1, 0, 0)
	if errno == 0 && n == 1 {
		r.enterFd, r.enterFlags = int(u.offset), enterRegisteredRing
	}
}

// unregisterSelf undoes registerSelf, or the thread would keep the ring alive.
func (r *Ring) unregisterSelf() {
	if r.enterFlags == 0 {
		return
	}
	u := ringUpdate{offset: uint32(r.enterFd)}
	unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), unregisterRingFds, uintptr(unsafe.Pointer(&u)), 1, 0, 0)
}

// InFlight returns how many operations were submitted and have not completed.
func (r *Ring) InFlight() int { return r.inFlight }

// Enters returns how often the kernel was entered.
func (r *Ring) Enters() uint64 { return r.enters }
