package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// Requests the server refuses, each with the error the protocol wants, and none of which it loses step
// over: a flush after each is answered.
func TestRefusals(t *testing.T) {
	const size = 1 << 20
	for _, c := range []struct {
		name         string
		say          []byte
		plain, ready uint32 // errors: read-write, read-only
	}{
		{"unknown command", req(99, 0, 1, 0, 0), 22, 22},
		{"unknown flag", req(cmdRead, 1<<9, 1, 0, 512), 22, 22},
		{"flag of another command", req(cmdRead, cmdFlagNoHole, 1, 0, 512), 22, 22},
		{"write with DF", req(cmdWrite, cmdFlagDF, 1, 0, 512, make([]byte, 512)), 22, 22},
		{"read past the end", req(cmdRead, 0, 1, size-512, 1024), 22, 22},
		{"read far past the end", req(cmdRead, 0, 1, 1<<63, 1024), 22, 22},
		{"read around the end of numbers", req(cmdRead, 0, 1, 1<<64-512, 1024), 22, 22},
		{"write past the end", req(cmdWrite, 0, 1, size, 512, make([]byte, 512)), 28, 1},
		{"zeroes past the end", req(cmdWriteZeroes, 0, 1, size-512, 1<<31), 28, 1},
		{"trim past the end", req(cmdTrim, 0, 1, size-512, 1<<31), 22, 1},
		{"unaligned offset", req(cmdRead, 0, 1, 1, 512), 22, 22},
		{"unaligned length", req(cmdWrite, 0, 1, 512, 5, "hello"), 22, 1},
		{"read too large", req(cmdRead, 0, 1, 0, 32<<20+512), 22, 22},
		{"flush with a length", req(cmdFlush, 0, 1, 0, 512), 22, 22},
		{"status without its negotiation", req(cmdBlockStatus, 0, 1, 0, 512), 22, 22},
		{"write", req(cmdWrite, 0, 1, 0, 512, make([]byte, 512)), 0, 1},
		{"write with FUA", req(cmdWrite, cmdFlagFUA, 1, 0, 512, make([]byte, 512)), 0, 1},
		{"trim", req(cmdTrim, cmdFlagFUA, 1, 0, 1024), 0, 1},
		{"write of nothing", req(cmdWrite, 0, 1, 512, 0), 0, 1},
		{"trim of nothing", req(cmdTrim, 0, 1, 512, 0), 0, 1},
		{"read of nothing", req(cmdRead, 0, 1, 512, 0), 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachLoop(t, func(t *testing.T, noRing bool) {
				for _, readOnly := range []bool{false, true} {
					m := newMemory(size)
					m.readOnly = readOnly
					s := testServer(m, noRing)
					defer s.Close()
					w := join(t, s).enter(false)
					w.say(c.say, req(cmdFlush, cmdFlagFUA, 2, 0, 0))
					want := c.plain
					if readOnly {
						want = c.ready
					}
					if code, cookie := w.simple(); code != want || cookie != 1 {
						t.Errorf("read-only %v: error %d of request %d, want %d", readOnly, code, cookie, want)
					}
					if code, cookie := w.simple(); code != 0 || cookie != 2 {
						t.Errorf("flush after it: error %d of request %d", code, cookie)
					}
				}
			})
		})
	}
}

// A refused write of more than the limit is drained; its payload must not be taken for requests.
func TestWriteTooLarge(t *testing.T) {
	eachLoop(t, func(t *testing.T, noRing bool) {
		m := newMemory(64 << 20)
		s := testServer(m, noRing)
		defer s.Close()
		w := join(t, s).enter(false)
		go w.Write(pack(req(cmdWrite, 0, 1, 0, 33<<20), bytes.Repeat(req(cmdTrim, 0, 9, 0, 512), 33<<20/28+1)[:33<<20],
			req(cmdFlush, 0, 2, 0, 0)))
		for _, want := range []struct {
			code   uint32
			cookie uint64
		}{{22, 1}, {0, 2}} {
			if code, cookie := w.simple(); code != want.code || cookie != want.cookie {
				t.Errorf("error %d of request %d, want %+v", code, cookie, want)
			}
		}
		w.say(req(cmdWrite, 0, 3, 0, 65<<20))
		w.gone()
	})
}

func TestStructured(t *testing.T) {
	eachLoop(t, func(t *testing.T, noRing bool) {
		m := newMemory(1 << 20)
		copy(m.data[128<<10:], "data")
		m.fail = func(r *blockdev.Request) error {
			if r.Off == 512<<10 {
				return fmt.Errorf("wrapped: %w", unix.ENOSPC)
			}
			return nil
		}
		s := testServer(m, noRing)
		defer s.Close()
		w := join(t, s).enter(true)
		status := func(n ...uint32) []byte {
			b := pack(uint32(contextID))
			for _, v := range n {
				b = binary.BigEndian.AppendUint32(b, v)
			}
			return b
		}
		fail := func(code uint32) chunk { return chunk{1, chunkError, 5, pack(code, uint16(0))} }
		for _, c := range []struct {
			name string
			say  []byte
			want chunk
		}{
			{"read", req(cmdRead, 0, 5, 128<<10, 512), chunk{1, chunkData, 5, pack(uint64(128<<10), m.data[128<<10:128<<10+512])}},
			{"read DF", req(cmdRead, cmdFlagDF, 5, 0, 512), chunk{1, chunkData, 5, pack(uint64(0), make([]byte, 512))}},
			{"read of nothing", req(cmdRead, 0, 5, 0, 0), chunk{1, chunkNone, 5, []byte{}}},
			{"read fails", req(cmdRead, 0, 5, 512<<10, 512), fail(28)},
			{"read past the end", req(cmdRead, 0, 5, 1<<20, 512), fail(22)},
			{"too large with DF", req(cmdRead, cmdFlagDF, 5, 0, 33<<20), fail(22)},
			{"status", req(cmdBlockStatus, 0, 5, 0, 1<<20), chunk{1, chunkBlockStatus, 5,
				status(128<<10, 3, 64<<10, 0, 832<<10, 3)}},
			{"status of one", req(cmdBlockStatus, cmdFlagReqOne, 5, 512, 1<<19), chunk{1, chunkBlockStatus, 5,
				status(128<<10-512, 3)}},
			{"status past the end", req(cmdBlockStatus, 0, 5, 512, 1<<20), fail(22)},
			{"status of nothing", req(cmdBlockStatus, 0, 5, 512, 0), fail(22)},
		} {
			w.say(c.say)
			if got := w.chunk(); got.flags != c.want.flags || got.kind != c.want.kind || got.cookie != 5 ||
				!bytes.Equal(got.data, c.want.data) {
				t.Errorf("%s: %v, want %v", c.name, got, c.want)
			}
		}
		big := newMemory(40 << 20)
		s2 := testServer(big, noRing)
		defer s2.Close()
		w = join(t, s2).enter(true)
		w.say(req(cmdRead, cmdFlagDF, 5, 0, 33<<20))
		if got := w.chunk(); got.kind != chunkError || binary.BigEndian.Uint32(got.data) != wireEOVERFLOW {
			t.Errorf("unfragmented read of 33 MiB: %v", got)
		}
	})
}

func TestErrorMapping(t *testing.T) {
	for _, c := range []struct {
		err  error
		want uint32
	}{
		{nil, 0}, {errors.New("x"), 5}, {unix.EIO, 5}, {unix.ESTALE, 5}, {unix.ENOSPC, 28}, {unix.EDQUOT, 28}, {unix.EFBIG, 28},
		{unix.EPERM, 1}, {unix.EROFS, 1}, {unix.EINVAL, 22}, {unix.ENOMEM, 12}, {unix.ESHUTDOWN, 108}, {unix.ENOTSUP, 95},
		{unix.EOVERFLOW, 75}, {blockdev.ErrReadOnly, 1}, {blockdev.ErrRange, 22}, {blockdev.ErrAlign, 22},
		{blockdev.ErrNotSupported, 95}, {context.Canceled, 108},
	} {
		if got := toWire(c.err); got != c.want {
			t.Errorf("toWire(%v) = %d, want %d", c.err, got, c.want)
		}
		if c.err != nil {
			if got := toWire(fmt.Errorf("phrase: %w", c.err)); got != c.want {
				t.Errorf("toWire(wrapped %v) = %d, want %d", c.err, got, c.want)
			}
			if got := toWire(fromWire(c.want)); got != c.want {
				t.Errorf("%d becomes %v, %d again", c.want, fromWire(c.want), got)
			}
		}
	}
}

// Malformed input ends its own connection, with one line in the log, and nothing else.
func TestBadTransmission(t *testing.T) {
	eachLoop(t, func(t *testing.T, noRing bool) {
		s := testServer(newMemory(1<<20), noRing)
		var log syncLog
		s.Log = zerolog.New(&log).Level(zerolog.InfoLevel)
		defer s.Close()
		healthy := join(t, s).enter(false)
		for _, c := range []struct {
			name, why string
			say       []byte
		}{
			{"magic", "request magic", pack(uint32(0x12345678), make([]byte, 24))},
			{"after good ones", "request magic", pack(req(cmdFlush, 0, 1, 0, 0), make([]byte, 28))},
			{"end in a header", "in the middle of a request", req(cmdRead, 0, 1, 0, 512)[:20]},
			{"end in a payload", "in the middle of a request", req(cmdWrite, 0, 1, 0, 512, "x")},
			{"end in a refused payload", "in the middle of a request", req(cmdWrite, 0, 1, 3, 512, "x")},
		} {
			w := join(t, s).enter(false)
			w.say(c.say)
			w.CloseWrite()
			w.gone()
			until(t, c.name+" is logged", func() bool { return strings.Contains(log.String(), c.why) })
			if n := strings.Count(log.String(), "\n"); n != 1 {
				t.Errorf("%s: %d lines logged:\n%s", c.name, n, log.String())
			}
			log.mu.Lock()
			log.buf.Reset()
			log.mu.Unlock()
		}
		healthy.say(req(cmdFlush, 0, 7, 0, 0))
		if code, cookie := healthy.simple(); code != 0 || cookie != 7 {
			t.Errorf("the other connection: %d, %d", code, cookie)
		}
	})
}

// A client that never reads must not keep requests from being done, nor others from being served, nor
// Close from returning.
func TestClientThatNeverReads(t *testing.T) {
	backends(t, func(t *testing.T, noRing bool, mem func(int) *memory) {
		m := mem(8 << 20)
		s := testServer(m, noRing)
		s.Limits.Socket = 64 << 10
		var served atomic.Int64
		m.fail = func(*blockdev.Request) error { served.Add(1); return nil }
		w := join(t, s).enter(false)
		w.SetWriteDeadline(time.Now().Add(time.Hour))
		go w.Write(bytes.Repeat(req(cmdRead, 0, 1, 0, 64<<10), 1000))
		// All that may be in flight is done, though nothing of it can be sent.
		until(t, "128 requests are served", func() bool { return served.Load() >= 128 && m.live.Load() == 0 })
		other := join(t, s).enter(false)
		other.say(req(cmdFlush, 0, 7, 0, 0))
		if code, cookie := other.simple(); code != 0 || cookie != 7 {
			t.Errorf("the other connection: %d, %d", code, cookie)
		}
		if n := served.Load(); n > 400 { // 128 and what the socket holds
			t.Errorf("%d requests taken from a client that does not read", n)
		}
		// When it reads after all, everything comes.
		go func() {
			w.Write(req(cmdDisc, 0, 0, 0, 0))
		}()
		for range 500 {
			if code, _ := w.simple(); code != 0 {
				t.Fatal(code)
			}
			w.hear(64 << 10)
		}
		s.Close()
		if n := m.live.Load(); n != 0 {
			t.Errorf("%d requests live after Close", n)
		}
	})
}

// Done may come long after the client went; the connection waits for it, and all buffers come back.
func TestLateDone(t *testing.T) {
	eachLoop(t, func(t *testing.T, noRing bool) {
		m := newMemory(1 << 20)
		m.detached, m.hold = true, make(chan struct{})
		s := testServer(m, noRing)
		w := join(t, s).enter(false)
		for i := range 100 {
			w.say(req(uint16(i%2), 0, uint64(i), 0, 4096, make([]byte, i%2*4096)))
		}
		until(t, "all requests arrived", func() bool { return m.live.Load() == 100 })
		w.Close()
		time.Sleep(20 * time.Millisecond)
		if s.Conns() != 1 {
			t.Error("the connection ended with requests not done")
		}
		close(m.hold)
		until(t, "the connection ends", func() bool { return s.Conns() == 0 })
		if m.dones.Load() != 100 {
			t.Errorf("%d done", m.dones.Load())
		}
		s.Close()
	})
}

func TestShutdown(t *testing.T) {
	eachLoop(t, func(t *testing.T, noRing bool) {
		m := newMemory(1 << 20)
		m.detached, m.hold = true, make(chan struct{})
		s := testServer(m, noRing)
		w, idle, young := join(t, s).enter(false), join(t, s).enter(true), join(t, s)
		young.hear(18)
		w.say(req(cmdWrite, 0, 1, 0, 4096, make([]byte, 4096)), req(cmdRead, 0, 2, 0, 512),
			req(cmdWrite, 0, 3, 0, 4096, "only a part of it"))
		until(t, "two requests arrived", func() bool { return m.live.Load() == 2 })

		ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- s.Shutdown(ctx) }()
		idle.gone()
		young.gone()
		until(t, "one connection is left", func() bool { return s.Conns() == 1 })
		close(m.hold)
		got := map[uint64]bool{}
		for range 2 {
			code, cookie := w.simple()
			if got[cookie] = true; code != 0 {
				t.Errorf("request %d: %d", cookie, code)
			}
			if cookie == 2 {
				w.hear(512)
			}
		}
		if !got[1] || !got[2] {
			t.Errorf("answered: %v", got)
		}
		w.gone()
		if err := <-ended; err != nil {
			t.Error(err)
		}

		// With a backend that does not come back, Shutdown ends with its context; Close waits.
		m = newMemory(1 << 20)
		m.detached, m.hold = true, make(chan struct{})
		s = testServer(m, noRing)
		w = join(t, s).enter(false)
		w.say(req(cmdFlush, 0, 1, 0, 0))
		until(t, "the flush arrived", func() bool { return m.live.Load() == 1 })
		ctx, cancel = context.WithTimeout(context.Background(), 20*time.Millisecond)
		defer cancel()
		if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1 connections") {
			t.Errorf("Shutdown: %v", err)
		}
		w.gone()
		close(m.hold)
		s.Close()
	})
}
