package nbd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/uring"
)

// receiveBuffer is how many bytes of requests a connection takes at once: a full queue of 4 KiB writes.
const receiveBuffer = 256 << 10

// conn is one client's connection. The fields of the first group are set in the handshake and constant
// afterwards, those of the second belong to the goroutine that runs the connection, mu guards the third.
type conn struct {
	srv        *Server
	limits     Limits
	info       blockdev.Info
	structured bool // structured replies were negotiated
	status     bool // base:allocation was negotiated
	fd         int
	ring       *uring.Ring // nil: the plain loop

	parser
	local      queue // replies made on this goroutine in this turn
	localBytes int
	arrived    time.Duration // when bytes came last, see now
	mine       *request      // free requests, taken from free
	nmine      int
	react      reactor

	mu        sync.Mutex
	latencies latencies
	uc        *net.UnixConn // nil after the handshake
	queue     queue         // replies to be sent
	out       sender
	free      *request // requests that are nobody's
	nfree     int
	nalloc    int  // requests made
	sending   bool // a goroutine is in send
	blocked   bool // the socket took no more; whoever waits for it clears this
	polling   bool // and that is a goroutine, in waitForRoom
	broken    bool
	draining  atomic.Bool
	waiting   bool       // the loop wants to hear of requests coming free
	woken     bool       // it was told
	wakeup    *sync.Cond // for the plain loop
	eventFd   int        // for the reactor; -1 none
	reason    error      // why the connection ended, the first
	bytes     atomic.Int64
}

func newConn(s *Server, uc *net.UnixConn, l Limits) *conn {
	c := &conn{srv: s, limits: l, uc: uc, fd: -1, eventFd: -1}
	uc.SetDeadline(time.Now().Add(l.Handshake))
	c.wakeup = sync.NewCond(&c.mu)
	return c
}

// run lives as long as the connection.
func (c *conn) run() {
	err := c.handshake()
	if err == nil {
		err = c.takeOver()
	}
	if err != nil {
		c.uc.Close()
		if c.draining.Load() {
			err = ErrClosed
		}
		c.log(err, 0)
		return
	}
	start := time.Now()
	if !c.runRing() {
		c.runPlain()
	}
	c.mu.Lock()
	unix.Close(c.fd)
	c.fd = -1
	err = c.reason
	c.mu.Unlock()
	c.log(err, time.Since(start))
}

func (c *conn) log(err error, lived time.Duration) {
	switch {
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, errAborted), errors.Is(err, ErrClosed):
		c.srv.Log.Debug().Dur("lived", lived).AnErr("reason", err).Msg("nbd: connection closed")
	default:
		c.srv.Log.Warn().Dur("lived", lived).AnErr("reason", err).Msg("nbd: connection closed")
	}
}

// takeOver takes the socket from Go's netpoller: the hot path blocks on it itself.
func (c *conn) takeOver() error {
	raw, err := c.uc.SyscallConn()
	if err != nil {
		return err
	}
	fd := -1
	var dupErr error
	if err := raw.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) }); err != nil {
		return err
	}
	if dupErr != nil {
		return fmt.Errorf("nbd: dup of the socket: %w", dupErr)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return fmt.Errorf("nbd: socket to blocking mode: %w", err)
	}
	// A whole queue of large replies should fit: each time the socket is full costs a wake-up. Only root
	// may go beyond net.core.wmem_max; any size works.
	for _, o := range [][2]int{{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}, {unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[0], c.limits.Socket) != nil {
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[1], c.limits.Socket)
		}
	}
	c.mu.Lock()
	c.uc.Close()
	c.uc, c.fd = nil, fd
	if c.draining.Load() { // told between the handshake's last word and now
		unix.Shutdown(fd, unix.SHUT_RD)
	}
	if c.broken {
		unix.Shutdown(fd, unix.SHUT_RDWR)
	}
	c.mu.Unlock()
	return nil
}

// drain ends the connection when the requests it already has are answered.
func (c *conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.draining.Store(true)
	if c.uc != nil {
		c.uc.SetDeadline(time.Now()) // a handshake has nothing to finish
	} else if c.fd >= 0 {
		unix.Shutdown(c.fd, unix.SHUT_RD) // the receive that is waiting returns
	}
	c.wake()
}

// abort breaks the connection.
func (c *conn) abort() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.draining.Store(true)
	if c.uc != nil {
		c.uc.SetDeadline(time.Now())
	}
	c.breakOff(ErrClosed)
}

// breakOff ends the connection for a reason: nothing is sent any more. mu is held.
func (c *conn) breakOff(reason error) {
	c.because(reason)
	if !c.broken {
		c.broken = true
		if c.fd >= 0 {
			unix.Shutdown(c.fd, unix.SHUT_RDWR) // receives and waits for room return
		}
	}
	if !c.sending {
		for q := c.queue.pop(); q != nil; q = c.queue.pop() {
			c.release(q)
		}
	}
	c.wake()
}

// because notes why the connection ends, if that is not known yet. mu is held.
func (c *conn) because(reason error) {
	if c.reason == nil {
		c.reason = reason
	}
}

// fail is breakOff for the connection's goroutine.
func (c *conn) fail(reason error) {
	c.stopped = true
	c.mu.Lock()
	c.breakOff(reason)
	c.mu.Unlock()
}

// wake makes the loop look again. mu is held, so the event descriptor is open.
func (c *conn) wake() {
	if c.woken {
		return
	}
	c.woken = true
	c.wakeup.Broadcast()
	if c.eventFd >= 0 {
		one := [8]byte{1}
		unix.Write(c.eventFd, one[:]) // a counter: can't fail before 2^64-1 wakes
	}
}

type verdict int

const (
	wait  verdict = iota // for bytes, I/O or a wake-up
	again                // parse again: there is room now
	over                 // every request is done and sent
)

// rest decides what a loop does after it parsed and flushed.
func (c *conn) rest() verdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken || c.draining.Load() {
		c.stopped = true
	}
	idle := c.nfree + c.nmine
	if c.cur != nil && c.stopped && !c.react.recv.Pending() {
		q := c.cur
		c.cur = nil
		c.release(q)
		idle++
	}
	switch {
	case c.stopped && idle == c.nalloc && !c.sending && !c.polling:
		return over
	case c.starved && !c.stopped && c.room(c.want):
		return again
	}
	c.waiting = c.stopped || c.starved
	return wait
}
