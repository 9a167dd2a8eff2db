package nbd

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// call is one request of a client.
type call struct {
	cmd, flags uint16
	off        int64
	length     uint32
	buf        []byte // read: filled, write: the data
	extents    []blockdev.Extent

	got  []span // read: the parts of buf that have come
	err  error  // what the server said
	done chan struct{}
}

// span is [from, to) of a call's buffer.
type span struct{ from, to int64 }

func (q *call) name() string {
	switch q.cmd {
	case cmdRead:
		return "read"
	case cmdWrite:
		return "write"
	case cmdFlush:
		return "flush"
	case cmdWriteZeroes:
		return "write zeroes"
	}
	return "block status"
}

// link is one connection of a client: whoever has a request writes it, a goroutine reads the replies.
type link struct {
	conn   net.Conn
	export export

	wmu   sync.Mutex // one request at a time goes out
	whead [requestSize]byte
	wbufs net.Buffers
	wvec  [2][]byte

	mu      sync.Mutex
	calls   map[uint64]*call
	cookie  uint64
	broken  error
	written uint64 // writes acknowledged or perhaps done
	flushed uint64 // of those, how many a flush covered
}

func newLink(conn net.Conn, e export) *link {
	l := &link{conn: conn, export: e, calls: make(map[uint64]*call)}
	go l.receive()
	return l
}

func (l *link) alive() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.broken == nil
}

func (l *link) unflushed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.written > l.flushed
}

// fail breaks the connection; the receiver then ends and with it every call.
func (l *link) fail(err error) {
	l.mu.Lock()
	if l.broken == nil {
		l.broken = err
	}
	l.mu.Unlock()
	l.conn.Close()
}

// goodbye ends the connection politely.
func (l *link) goodbye() {
	var b [requestSize]byte
	binary.BigEndian.PutUint32(b[:], magicRequest)
	binary.BigEndian.PutUint16(b[6:], cmdDisc)
	if l.wmu.TryLock() { // or a request is on its way out: then it is cut off, politeness or not
		l.conn.SetWriteDeadline(time.Now().Add(time.Second)) // a server that does not read must not keep us
		l.conn.Write(b[:])
		l.wmu.Unlock()
	}
	l.fail(net.ErrClosed)
}

// do sends a request and waits for its reply. When it returns nobody touches the call's buffer.
func (l *link) do(q *call, timeout time.Duration) error {
	q.done = make(chan struct{})
	l.mu.Lock()
	if l.broken != nil {
		l.mu.Unlock()
		return l.broken
	}
	covered := l.written
	l.cookie++
	cookie := l.cookie
	l.calls[cookie] = q
	l.mu.Unlock()

	timer := time.NewTimer(timeout)
	defer timer.Stop()
	if err := l.send(q, cookie, timeout); err != nil {
		l.fail(err) // unless somebody else did before, and knows better why
	}
	select {
	case <-q.done:
	case <-timer.C:
		l.fail(errTimeout)
		<-q.done // the receiver has let go of the buffer
	}
	if q.cmd == cmdFlush && q.err == nil {
		l.mu.Lock()
		l.flushed = max(l.flushed, covered)
		l.mu.Unlock()
	}
	return q.err
}

func (l *link) send(q *call, cookie uint64, timeout time.Duration) error {
	be := binary.BigEndian
	l.wmu.Lock()
	defer l.wmu.Unlock()
	l.conn.SetWriteDeadline(time.Now().Add(timeout))
	h := l.whead[:]
	be.PutUint32(h[0:], magicRequest)
	be.PutUint16(h[4:], q.flags)
	be.PutUint16(h[6:], q.cmd)
	be.PutUint64(h[8:], cookie)
	be.PutUint64(h[16:], uint64(q.off))
	be.PutUint32(h[24:], q.length)
	var err error
	if q.cmd == cmdWrite {
		l.wvec = [2][]byte{h, q.buf}
		l.wbufs = l.wvec[:]
		_, err = l.wbufs.WriteTo(l.conn)
		l.wvec = [2][]byte{}
	} else {
		_, err = l.conn.Write(h)
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errTimeout
	case err != nil:
		return fmt.Errorf("sending: %w", err)
	}
	return nil
}

// receive reads replies until the connection breaks, and then fails what is left.
func (l *link) receive() {
	r := bufio.NewReaderSize(l.conn, 64<<10)
	var err error
	for err == nil {
		err = l.reply(r)
	}
	if err == io.EOF {
		err = errors.New("the server closed the connection")
	}
	l.fail(err)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, q := range l.calls {
		if q.cmd == cmdWrite || q.cmd == cmdWriteZeroes {
			l.written++ // perhaps done, perhaps not
		}
		q.err = l.broken
		close(q.done)
	}
	l.calls = nil
}

// finish ends a call: err is the server's answer.
func (l *link) finish(cookie uint64, q *call) {
	l.mu.Lock()
	delete(l.calls, cookie)
	if q.cmd == cmdWrite || q.cmd == cmdWriteZeroes {
		l.written++
	}
	l.mu.Unlock()
	close(q.done)
}
