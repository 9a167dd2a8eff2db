package nbd

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// queue is a first-in first-out list of requests.
type queue struct{ head, tail *request }

func (l *queue) push(q *request) {
	q.next = nil
	if l.tail == nil {
		l.head = q
	} else {
		l.tail.next = q
	}
	l.tail = q
}

func (l *queue) pop() *request {
	q := l.head
	if q != nil {
		l.head = q.next
		q.next = nil
		if l.head == nil {
			l.tail = nil
		}
	}
	return q
}

// append moves all of other to the end of l.
func (l *queue) append(other *queue) {
	if other.head == nil {
		return
	}
	if l.tail == nil {
		l.head = other.head
	} else {
		l.tail.next = other.head
	}
	l.tail = other.tail
	*other = queue{}
}

// maxVectors bounds one sendmsg; the kernel's limit is 1024.
const maxVectors = 256

// sender holds what one sendmsg needs. It belongs to whoever set conn.sending.
type sender struct {
	msg  unix.Msghdr
	iov  [maxVectors]unix.Iovec
	sent int // bytes of the queue's first reply that already left
}

// gather fills the vectors from the queue's head and returns how many bytes they are.
func (o *sender) gather(l *queue) int {
	n, total, skip := 0, 0, o.sent
	add := func(b []byte) {
		if len(b) <= skip {
			skip -= len(b)
			return
		}
		b = b[skip:]
		skip = 0
		o.iov[n].Base = unsafe.SliceData(b)
		o.iov[n].SetLen(len(b))
		n++
		total += len(b)
	}
	for q := l.head; q != nil && n+2 <= maxVectors; q = q.next {
		add(q.head[:q.nhead])
		add(q.body)
	}
	o.msg.Iov = &o.iov[0]
	o.msg.SetIovlen(n)
	return total
}

// flush sends what this turn produced.
func (c *conn) flush() {
	if c.local.head == nil {
		return
	}
	c.localBytes = 0
	c.mu.Lock()
	c.queue.append(&c.local)
	c.send(true)
	c.mu.Unlock()
}

// send sends replies until there are none or the socket takes no more. mu is held, and let go around the
// system call: the others append to the queue meanwhile and need not wait. own says that this is the
// connection's goroutine: a reactor itself polls a full socket, with the rest it waits for.
func (c *conn) send(own bool) {
	if c.sending || c.blocked && !c.broken {
		return
	}
	c.sending = true
	for c.queue.head != nil && !c.broken {
		c.out.gather(&c.queue)
		fd := c.fd
		c.mu.Unlock()
		// Raw: with MSG_DONTWAIT it never sleeps, so the scheduler need not know.
		n, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&c.out.msg)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		c.mu.Lock()
		switch errno {
		case 0:
			c.retire(int(n))
		case unix.EINTR:
		case unix.EAGAIN:
			c.sending = false
			if c.broken {
				c.breakOff(c.reason)
				return
			}
			c.blocked = true
			if !own || c.ring == nil {
				c.polling = true
				go c.waitForRoom()
			}
			return
		default:
			c.sending = false
			c.breakOff(fmt.Errorf("sending replies: %w", errno))
			return
		}
	}
	c.sending = false
	if c.broken {
		c.breakOff(c.reason)
	}
	if c.waiting {
		c.waiting = false
		c.wake()
	}
}

// retire frees the requests whose replies are among the next n bytes that left. mu is held.
func (c *conn) retire(n int) {
	n += c.out.sent
	at := now()
	for q := c.queue.head; q != nil; q = c.queue.head {
		size := q.nhead + len(q.body)
		if n < size {
			break
		}
		n -= size
		c.queue.pop()
		if q.kind != kindNone {
			c.latencies.add(q.kind, at-q.arrived)
		}
		c.release(q)
	}
	c.out.sent = n
}

// waitForRoom waits until the socket takes bytes again. The connection, and with it the descriptor, stays
// until roomAgain.
func (c *conn) waitForRoom() {
	p := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLOUT}}
	for {
		if _, err := unix.Poll(p, -1); err != unix.EINTR {
			break
		}
	}
	c.roomAgain(false)
}

// roomAgain goes on sending after the socket was full.
func (c *conn) roomAgain(own bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.blocked = false
	if !own {
		c.polling = false
	}
	c.send(own)
	c.wake()
}
