package nbd

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/uring"
)

// ringEntries is how many operations a connection hands to the kernel at once; more wait in a queue.
const ringEntries = 256

// reactor is what a connection with a ring needs besides: its three waits.
type reactor struct {
	recv, out, event uring.Op
	counter          [8]byte // the eventfd's
}

// runRing serves the connection on a ring of its own. It returns false, having done nothing, where
// io_uring can't be had.
func (c *conn) runRing() bool {
	if c.srv.NoRing {
		return false
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ring, err := uring.New(ringEntries)
	if err != nil {
		c.srv.ringOnce.Do(func() {
			c.srv.Log.Warn().Err(err).Msg("nbd: no io_uring, serving with blocking system calls")
		})
		return false
	}
	eventFd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		ring.Close()
		return false
	}
	c.mu.Lock()
	c.ring, c.eventFd = ring, eventFd
	c.woken = false // what woke us before had no descriptor to write to; turns looks at everything first
	c.mu.Unlock()
	c.buf = make([]byte, receiveBuffer)
	c.react.recv.Done = func(res int32) {
		if res < 0 {
			c.received(0, unix.Errno(-res))
		} else {
			c.received(int(res), 0)
		}
	}
	c.react.out.Done = func(int32) { c.roomAgain(true) }
	c.react.event.Done = func(int32) {
		c.mu.Lock()
		c.woken = false
		c.mu.Unlock()
	}
	c.turns()
	err = ring.Close()
	c.mu.Lock()
	if err != nil && c.reason == nil {
		c.reason = err
	}
	unix.Close(eventFd)
	c.eventFd = -1
	c.mu.Unlock()
	return true
}

// turns is the reactor: parse what came, send what is done, wait for more.
func (c *conn) turns() {
	for {
		c.parse()
		c.flush()
		switch c.rest() {
		case over:
			return
		case again:
			continue
		}
		if c.onlySocket() {
			c.received(c.read())
			continue
		}
		c.arm()
		if err := c.ring.Turn(true); err != nil {
			// The ring is gone, and with it what was in flight: there is no way to serve or end this.
			panic(fmt.Sprintf("nbd: io_uring_enter: %v", err))
		}
	}
}

// onlySocket says whether the socket is all there is to wait for: then a plain read is quicker than a
// receive on the ring. Nothing but its bytes or its shutdown can be of interest: requests being served on
// goroutines send their replies themselves.
func (c *conn) onlySocket() bool {
	armed := 0
	if c.react.event.Pending() {
		armed = 1
	}
	if c.stopped || c.starved || c.ring.InFlight() > armed {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.blocked || c.polling
}

// arm puts the waits in place that are needed and not there.
func (c *conn) arm() {
	r := &c.react
	if !r.event.Pending() {
		c.ring.Read(c.eventFd, r.counter[:], &r.event)
	}
	if !r.out.Pending() {
		c.mu.Lock()
		blocked := c.blocked && !c.polling
		c.mu.Unlock()
		if blocked {
			c.ring.Poll(c.fd, unix.POLLOUT, &r.out)
		}
	}
	if !r.recv.Pending() && !c.stopped && !c.starved {
		payload, buf := c.target()
		if len(payload) > 0 {
			c.ring.Readv(c.fd, payload, buf, &r.recv)
		} else {
			c.ring.Recv(c.fd, buf, &r.recv)
		}
	}
}
