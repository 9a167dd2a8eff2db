package uring

import (
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// Submit queues a read or write of a file; the next Turn hands it to the kernel.
func (r *Ring) Submit(io *blockdev.IO) {
	e := r.entry()
	e.opcode = opRead
	if io.Write {
		e.opcode = opWrite
		if io.DSync {
			e.opFlags = rwfDSync
		}
	}
	e.fd, e.off, e.len = int32(io.Fd), uint64(io.Off), uint32(len(io.Buf))
	e.addr = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(io.Buf))))
	e.userData = r.take(io, nil)
}

// Recv queues receiving at least one byte from a socket in blocking mode into buf. Result 0 is its end.
func (r *Ring) Recv(fd int, buf []byte, op *Op) { r.plain(opRecv, fd, 0, buf, op) }

// Read queues a read of a descriptor that has no offset, such as an eventfd.
func (r *Ring) Read(fd int, buf []byte, op *Op) { r.plain(opRead, fd, ^uint64(0), buf, op) }

func (r *Ring) plain(code uint8, fd int, off uint64, buf []byte, op *Op) {
	e := r.entry()
	e.opcode, e.fd, e.off, e.len = code, int32(fd), off, uint32(len(buf))
	e.addr = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(buf))))
	op.buf = buf
	e.userData = r.take(nil, op)
}

// Readv queues a read that fills a, then b. Neither may be empty.
func (r *Ring) Readv(fd int, a, b []byte, op *Op) {
	op.iov[0].Base, op.iov[1].Base = &a[0], &b[0]
	op.iov[0].SetLen(len(a))
	op.iov[1].SetLen(len(b))
	e := r.entry()
	e.opcode, e.fd, e.off, e.len = opReadv, int32(fd), ^uint64(0), 2
	e.addr = uint64(uintptr(unsafe.Pointer(&op.iov[0])))
	e.userData = r.take(nil, op)
}

// Poll queues waiting once for events (POLLIN, POLLOUT of poll(2)); the result is the events.
func (r *Ring) Poll(fd int, events uint16, op *Op) {
	e := r.entry()
	e.opcode, e.fd, e.opFlags = opPollAdd, int32(fd), uint32(events)
	e.userData = r.take(nil, op)
}

// entry returns a cleared submission entry: one of the kernel's, or while those are all taken one of
// the backlog.
func (r *Ring) entry() *sqe {
	if len(r.backlog) == 0 && r.tail-atomic.LoadUint32(r.sqHead) < uint32(len(r.sqes)) {
		e := &r.sqes[r.tail&r.sqMask]
		*e = sqe{}
		r.tail++
		return e
	}
	r.backlog = append(r.backlog, sqe{})
	return &r.backlog[len(r.backlog)-1]
}

// take gives an operation its slot and returns its user data.
func (r *Ring) take(io *blockdev.IO, op *Op) uint64 {
	i := r.free
	if i == 0 {
		i = uint64(len(r.slots))
		r.slots = append(r.slots, slot{})
	} else {
		r.free = r.slots[i].next
	}
	r.slots[i] = slot{io: io, op: op}
	r.inFlight++
	if op != nil {
		op.pending, op.slot = true, i
	}
	return i
}

// enter is io_uring_enter, but for tests.
var enter = unix.Syscall6

// Turn submits everything queued and, if told to wait, waits until at least one operation completed.
// It then runs the callbacks of all that completed.
func (r *Ring) Turn(wait bool) error {
	for {
		r.fill()
		var minComplete uintptr
		if wait && len(r.backlog) == 0 && r.ready() == 0 {
			minComplete = 1
		}
		atomic.StoreUint32(r.sqTail, r.tail)
		queued := r.tail - atomic.LoadUint32(r.sqHead)
		r.enters++
		_, _, errno := enter(unix.SYS_IO_URING_ENTER, uintptr(r.enterFd), uintptr(queued), minComplete,
			enterGetEvents|r.enterFlags, 0, 0)
		n := r.reap()
		switch errno {
		case 0, unix.EINTR:
		case unix.EAGAIN, unix.EBUSY:
			// No memory for requests, or completions overflowed: those just reaped made room. With none
			// there is only time to give. After those no other may come: what their callbacks want is for the caller to do.
			if n == 0 {
				time.Sleep(time.Millisecond)
			}
			wait = wait && n == 0
			continue
		default:
			return errno
		}
		if len(r.backlog) == 0 && (!wait || n > 0) {
			return nil
		}
		wait = wait && n == 0
	}
}

// fill moves the backlog to the kernel's entries, as many as there is room for.
func (r *Ring) fill() {
	if len(r.backlog) == 0 {
		return
	}
	room := uint32(len(r.sqes)) - (r.tail - atomic.LoadUint32(r.sqHead))
	n := min(int(room), len(r.backlog))
	for _, e := range r.backlog[:n] {
		r.sqes[r.tail&r.sqMask] = e
		r.tail++
	}
	r.backlog = r.backlog[:copy(r.backlog, r.backlog[n:])]
}

func (r *Ring) ready() uint32 { return atomic.LoadUint32(r.cqTail) - *r.cqHead }

// reap runs the callbacks of what completed and returns how many there were.
func (r *Ring) reap() int {
	n := 0
	head, tail := *r.cqHead, atomic.LoadUint32(r.cqTail)
	for ; head != tail; head++ {
		c := r.cqes[head&r.cqMask]
		i := c.userData
		if i == 0 {
			continue
		}
		s := r.slots[i]
		r.slots[i] = slot{next: r.free}
		r.free = i
		r.inFlight--
		n++
		if s.io != nil {
			s.io.Done(s.io, c.res)
			continue
		}
		s.op.pending, s.op.buf = false, nil
		s.op.iov = [2]unix.Iovec{}
		s.op.Done(c.res)
	}
	atomic.StoreUint32(r.cqHead, head)
	return n
}

// Close cancels every Op, waits until all that is in flight completed, file I/O included, and gives the
// ring back. Callbacks run, the cancelled ones with -ECANCELED; they queue no Op again.
func (r *Ring) Close() error {
	for i := range r.slots {
		if r.slots[i].op != nil {
			e := r.entry()
			e.opcode, e.fd, e.addr = opAsyncCancel, -1, uint64(i)
		}
	}
	var err error
	for r.inFlight > 0 && err == nil {
		err = r.Turn(true)
	}
	if err != nil {
		// The kernel may still write to our buffers: leave the mappings, and the ring, to the process's end.
		return err
	}
	r.unregisterSelf()
	unblockSignals(&r.signals)
	return r.unmap()
}

func (r *Ring) unmap() error {
	unix.Munmap(r.sqeMem)
	unix.Munmap(r.ringMem)
	return unix.Close(r.fd)
}
