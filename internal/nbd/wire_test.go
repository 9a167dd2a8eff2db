package nbd

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair returns the two ends of a connected socket.
func pair(t testing.TB) (ours, theirs *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
	}
	t.Cleanup(func() { ends[0].Close() })
	return ends[0], ends[1]
}

// wire is a client that says exactly what it is told to.
type wire struct {
	t testing.TB
	*net.UnixConn
}

// join connects to s over a socket pair; the hang of any test ends here, after 90 s.
func join(t testing.TB, s *Server) wire {
	ours, theirs := pair(t)
	s.ServeConn(theirs)
	ours.SetDeadline(time.Now().Add(90 * time.Second))
	return wire{t, ours}
}

func (w wire) say(parts ...any) {
	w.t.Helper()
	if _, err := w.Write(pack(parts...)); err != nil {
		w.t.Fatalf("sending: %v", err)
	}
}

// pack lays integers out big endian, by their types' sizes, and strings and bytes as they are.
func pack(parts ...any) []byte {
	be := binary.BigEndian
	var b []byte
	for _, p := range parts {
		switch v := p.(type) {
		case uint8:
			b = append(b, v)
		case uint16:
			b = be.AppendUint16(b, v)
		case uint32:
			b = be.AppendUint32(b, v)
		case uint64:
			b = be.AppendUint64(b, v)
		case string:
			b = append(b, v...)
		case []byte:
			b = append(b, v...)
		default:
			panic("pack: what is that?")
		}
	}
	return b
}

func (w wire) hear(n int) []byte {
	w.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(w, b); err != nil {
		w.t.Fatalf("hearing %d bytes: %v", n, err)
	}
	return b
}

// gone checks that the server closed the connection, whatever it said before.
func (w wire) gone() {
	w.t.Helper()
	if _, err := io.Copy(io.Discard, w); err != nil && !errors.Is(err, unix.ECONNRESET) {
		w.t.Fatalf("the connection is not closed: %v", err)
	}
}

func (w wire) greet(flags uint32) {
	w.t.Helper()
	b := w.hear(18)
	if string(b[:16]) != "NBDMAGICIHAVEOPT" || binary.BigEndian.Uint16(b[16:]) != 3 {
		w.t.Fatalf("greeting %q", b)
	}
	w.say(flags)
}

func option(opt uint32, data ...any) []byte {
	d := pack(data...)
	return pack(uint64(magicOpts), opt, uint32(len(d)), d)
}

type optReply struct {
	opt, kind uint32
	data      []byte
}

func (w wire) optReply() optReply {
	w.t.Helper()
	be := binary.BigEndian
	h := w.hear(20)
	if be.Uint64(h) != magicOptReply {
		w.t.Fatalf("option reply magic %#x", h[:8])
	}
	return optReply{be.Uint32(h[8:]), be.Uint32(h[12:]), w.hear(int(be.Uint32(h[16:])))}
}

// ack hears replies to an option until the last, an acknowledgement or error, and returns them.
func (w wire) ack() []optReply {
	w.t.Helper()
	var all []optReply
	for {
		r := w.optReply()
		all = append(all, r)
		if r.kind == repAck || r.kind&repErr != 0 {
			return all
		}
	}
}

// enter goes into transmission.
func (w wire) enter(structured bool) wire {
	w.t.Helper()
	w.greet(3)
	if structured {
		w.say(option(optStructuredReply))
		w.ack()
		w.say(option(optSetMeta, uint32(0), uint32(1), uint32(len(contextAlloc)), contextAlloc))
		w.ack()
	}
	w.say(option(optGo, uint32(0), uint16(0)))
	if r := w.ack(); r[len(r)-1].kind != repAck {
		w.t.Fatalf("GO: %+v", r)
	}
	return w
}

func req(cmd, flags uint16, cookie, off uint64, length uint32, payload ...any) []byte {
	return pack(uint32(magicRequest), flags, cmd, cookie, off, length, pack(payload...))
}

// simple hears one simple reply and returns its error and cookie.
func (w wire) simple() (code uint32, cookie uint64) {
	w.t.Helper()
	h := w.hear(simpleSize)
	if m := binary.BigEndian.Uint32(h); m != magicSimple {
		w.t.Fatalf("reply magic %#x", m)
	}
	return binary.BigEndian.Uint32(h[4:]), binary.BigEndian.Uint64(h[8:])
}

type chunk struct {
	flags, kind uint16
	cookie      uint64
	data        []byte
}

func (w wire) chunk() chunk {
	w.t.Helper()
	be := binary.BigEndian
	h := w.hear(chunkSize)
	if m := be.Uint32(h); m != magicChunk {
		w.t.Fatalf("chunk magic %#x", m)
	}
	return chunk{be.Uint16(h[4:]), be.Uint16(h[6:]), be.Uint64(h[8:]), w.hear(int(be.Uint32(h[16:])))}
}
