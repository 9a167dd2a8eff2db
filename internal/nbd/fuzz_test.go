package nbd

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// fuzzServer is one server for all inputs, with one healthy connection that must stay so.
type fuzzServer struct {
	s       *Server
	mu      sync.Mutex
	healthy wire
	cookie  uint64
}

func newFuzzServer(f *testing.F, noRing bool) *fuzzServer {
	s := testServer(newMemory(1<<20), noRing)
	s.Limits = Limits{Requests: 8, Bytes: 1 << 20, Socket: 32 << 10}
	f.Cleanup(func() { s.Close() })
	h := join(f, s).enter(false)
	h.SetDeadline(time.Time{})
	return &fuzzServer{s: s, healthy: h}
}

// feed gives bytes to a connection, reads whatever comes back, and expects the connection to end when
// its input does.
func (fs *fuzzServer) feed(t *testing.T, data []byte, structured, enter bool) {
	w := join(t, fs.s)
	if enter {
		w = w.enter(structured)
	}
	go func() {
		w.Write(data)
		w.CloseWrite()
	}()
	w.gone()
	w.Close()
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.cookie++
	fs.healthy.SetDeadline(time.Now().Add(90 * time.Second))
	if _, err := fs.healthy.Write(req(cmdFlush, 0, fs.cookie, 0, 0)); err != nil {
		t.Fatalf("the other connection: %v", err)
	}
	b := make([]byte, simpleSize)
	if _, err := io.ReadFull(fs.healthy, b); err != nil || beUint64(b[8:]) != fs.cookie {
		t.Fatalf("the other connection: %v, %x", err, b)
	}
}

func FuzzServerHandshake(f *testing.F) {
	f.Add(pack(uint32(3), option(optGo, uint32(0), uint16(1), uint16(3)), req(cmdRead, 0, 1, 0, 512)))
	f.Add(pack(uint32(3), option(optStructuredReply), option(optSetMeta, uint32(3), "vol", uint32(1), uint32(15), contextAlloc),
		option(optList), option(optExportName, "")))
	f.Add(pack(uint32(1), option(optInfo, uint32(0), uint16(0)), option(optAbort)))
	f.Add(pack(uint32(0), option(optExportName, "nobody")))
	fs := newFuzzServer(f, false)
	f.Fuzz(func(t *testing.T, data []byte) { fs.feed(t, data, false, false) })
}

func FuzzServerTransmission(f *testing.F) {
	for _, mode := range []byte{0, 1, 2, 3} {
		f.Add(mode, pack(req(cmdWrite, cmdFlagFUA, 1, 4096, 512, make([]byte, 512)), req(cmdRead, 0, 2, 0, 1<<20),
			req(cmdFlush, 0, 3, 0, 0), req(cmdTrim, 0, 4, 0, 4096), req(cmdWriteZeroes, cmdFlagNoHole, 5, 512, 512)))
		f.Add(mode, pack(req(cmdBlockStatus, cmdFlagReqOne, 1, 0, 1<<20), req(cmdRead, 0, 2, 1<<20, 512), req(cmdDisc, 0, 0, 0, 0)))
		f.Add(mode, pack(req(cmdWrite, 0, 1, 3, 512, make([]byte, 512)), req(cmdWrite, 0, 1, 0, 1<<30)))
	}
	ring, plain := newFuzzServer(f, false), newFuzzServer(f, true)
	f.Fuzz(func(t *testing.T, mode byte, data []byte) {
		fs := ring
		if mode&2 != 0 {
			fs = plain
		}
		fs.feed(t, data, mode&1 != 0, true)
	})
}

// clientStart is what a server says until transmission, for a disk of 1 MiB; info is what more it tells of it.
func clientStart(info ...any) []byte {
	reply := func(opt, kind uint32, data ...any) []byte {
		d := pack(data...)
		return pack(uint64(magicOptReply), opt, kind, uint32(len(d)), d)
	}
	b := pack("NBDMAGICIHAVEOPT", uint16(3), reply(optStructuredReply, repAck),
		reply(optSetMeta, repMeta, uint32(1), contextAlloc), reply(optSetMeta, repAck),
		reply(optGo, repInfo, uint16(0), uint64(1<<20), uint16(txHasFlags|txFlush|txWriteZeroes)))
	if info != nil {
		b = pack(b, reply(optGo, repInfo, info...))
	}
	return pack(b, reply(optGo, repAck))
}

// FuzzClient gives the client a server's bytes: the handshake too, or only what follows it.
func FuzzClient(f *testing.F) {
	simple := func(cookie uint64, code uint32, data ...any) []byte {
		return pack(uint32(magicSimple), code, cookie, pack(data...))
	}
	structured := func(cookie uint64, flags, kind uint16, data ...any) []byte {
		d := pack(data...)
		return pack(uint32(magicChunk), flags, kind, cookie, uint32(len(d)), d)
	}
	f.Add(true, clientStart())
	f.Add(true, pack("NBDMAGICIHAVEOPT", uint16(1)))
	f.Add(false, pack(structured(1, 0, chunkData, uint64(0), make([]byte, 2048)), structured(1, 1, chunkHole, uint64(2048), uint32(2048)),
		simple(2, 0), simple(3, 0), simple(4, 0), structured(5, 1, chunkBlockStatus, uint32(1), uint32(1<<20), uint32(3))))
	f.Add(false, pack(structured(1, 1, chunkError, uint32(5), uint16(3), "bad"), simple(2, 28), simple(3, 5), simple(4, 95),
		structured(5, 1, chunkErrorOffset, uint32(5), uint16(0), uint64(0))))
	f.Fuzz(func(t *testing.T, whole bool, data []byte) {
		ours, theirs := pair(t)
		defer ours.Close()
		if !whole {
			data = pack(clientStart(), data)
		}
		go io.Copy(io.Discard, ours)
		go func() {
			ours.Write(data)
			ours.CloseWrite()
		}()
		theirs.SetDeadline(time.Now().Add(90 * time.Second))
		_, e, err := negotiate(theirs, "", nil)
		if err != nil {
			theirs.Close()
			return
		}
		c := &Client{opts: Options{Timeout: 90 * time.Second}}
		if c.adopt(e) != nil {
			theirs.Close()
			return
		}
		l := newLink(theirs, e)
		buf := make([]byte, 4096)
		for _, q := range []*call{
			{cmd: cmdRead, length: 4096, buf: buf}, {cmd: cmdWrite, length: 4096, buf: buf}, {cmd: cmdFlush},
			{cmd: cmdWriteZeroes, length: 4096}, {cmd: cmdBlockStatus, length: 1 << 20},
		} {
			if err := l.do(q, 90*time.Second); err == errTimeout {
				t.Fatalf("%s hangs", q.name())
			}
			for _, x := range q.extents {
				if x.Length <= 0 || x.Offset < 0 || x.Offset+x.Length > 1<<20 {
					t.Fatalf("extent %+v", x)
				}
			}
		}
		l.fail(net.ErrClosed)
	})
}
