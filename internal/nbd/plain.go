package nbd

import (
	"golang.org/x/sys/unix"
)

// runPlain serves the connection with blocking reads of the socket. Requests have no ring, so the
// backend finishes what it can't do at once on goroutines of its own.
func (c *conn) runPlain() {
	c.buf = make([]byte, receiveBuffer)
	for {
		c.parse()
		c.flush()
		switch c.rest() {
		case over:
			return
		case again:
			continue
		}
		if c.stopped || c.starved {
			c.mu.Lock()
			for !c.woken {
				c.wakeup.Wait()
			}
			c.woken = false
			c.mu.Unlock()
			continue
		}
		c.received(c.read())
	}
}

// read waits for bytes. They end with the socket's shutdown, by the client, drain or breakOff.
func (c *conn) read() (int, unix.Errno) {
	payload, buf := c.target()
	var n int
	var err error
	if len(payload) > 0 {
		c.iovScratch = [2][]byte{payload, buf}
		n, err = unix.Readv(c.fd, c.iovScratch[:])
	} else {
		n, err = unix.Read(c.fd, buf)
	}
	if err != nil {
		return 0, err.(unix.Errno)
	}
	return n, 0
}
