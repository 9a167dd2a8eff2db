package nbd

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// memory is a volume in memory. It answers inline, or with detached on goroutines.
type memory struct {
	mu       sync.RWMutex
	data     []byte
	readOnly bool
	detached bool
	hold     chan struct{} // when not nil, detached requests wait until it is closed
	fail     func(r *blockdev.Request) error

	flushes, fua, noHole, trims, zeroes, live, dones atomic.Int64
}

func newMemory(size int) *memory { return &memory{data: make([]byte, size)} }

// content returns a copy of the bytes; change changes them. Tests take care to lock as servers do.
func (m *memory) content() []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return bytes.Clone(m.data)
}

func (m *memory) change(f func(data []byte)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(m.data)
}

func (m *memory) Info() blockdev.Info {
	return blockdev.Info{Name: "memory", Size: int64(len(m.data)), BlockSize: 512, ReadOnly: m.readOnly}
}

func (m *memory) Submit(r *blockdev.Request) {
	m.live.Add(1)
	if !m.detached {
		err := m.serve(r)
		m.live.Add(-1)
		r.Done(r, err)
		return
	}
	r.Detached = true
	go func() {
		if m.hold != nil {
			<-m.hold
		}
		err := m.serve(r)
		m.live.Add(-1)
		m.dones.Add(1)
		r.Done(r, err)
	}()
}

func (m *memory) serve(r *blockdev.Request) error {
	if m.fail != nil {
		if err := m.fail(r); err != nil {
			return err
		}
	}
	if r.FUA {
		m.fua.Add(1)
	}
	if r.NoHole {
		m.noHole.Add(1)
	}
	switch r.Op {
	case blockdev.OpRead:
		m.mu.RLock()
		copy(r.Buf, m.data[r.Off:])
		m.mu.RUnlock()
	case blockdev.OpWrite:
		m.mu.Lock()
		copy(m.data[r.Off:], r.Buf)
		m.mu.Unlock()
	case blockdev.OpWriteZeroes, blockdev.OpTrim:
		if r.Op == blockdev.OpTrim {
			m.trims.Add(1)
		} else {
			m.zeroes.Add(1)
		}
		m.mu.Lock()
		clear(m.data[r.Off : r.Off+r.Length])
		m.mu.Unlock()
	case blockdev.OpFlush:
		m.flushes.Add(1)
	}
	return nil
}

// Extents tells runs of zero 64 KiB blocks.
func (m *memory) Extents(off, length int64) ([]blockdev.Extent, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	const step = 64 << 10
	zeros := make([]byte, step)
	var out []blockdev.Extent
	for at := off; at < off+length; {
		next := min(at/step*step+step, off+length)
		zero := bytes.Equal(m.data[at:next], zeros[:next-at])
		out = append(out, blockdev.Extent{Offset: at, Length: next - at, Zero: zero, Hole: zero})
		at = next
	}
	return out, nil
}

// fileBackend is a file read and written with O_DIRECT through the request's ring, or on goroutines.
type fileBackend struct {
	fd   int
	size int64
	mu   sync.Mutex
	free []*fileIO
}

type fileIO struct {
	io blockdev.IO
	r  *blockdev.Request
}

func (f *fileBackend) Info() blockdev.Info {
	return blockdev.Info{Name: "file", Size: f.size, BlockSize: 512}
}

func (f *fileBackend) Extents(off, length int64) ([]blockdev.Extent, error) {
	return []blockdev.Extent{{Offset: off, Length: length}}, nil
}

func (f *fileBackend) Submit(r *blockdev.Request) {
	if r.Op != blockdev.OpRead && r.Op != blockdev.OpWrite {
		r.Detached = true
		go func() { r.Done(r, f.slow(r)) }()
		return
	}
	if r.Ring == nil {
		r.Detached = true
		go func() {
			if r.Op == blockdev.OpRead {
				_, err := unix.Pread(f.fd, r.Buf, r.Off)
				r.Done(r, err)
				return
			}
			_, err := unix.Pwrite(f.fd, r.Buf, r.Off)
			if err == nil && r.FUA {
				err = unix.Fdatasync(f.fd)
			}
			r.Done(r, err)
		}()
		return
	}
	var q *fileIO
	f.mu.Lock()
	if n := len(f.free); n > 0 {
		q, f.free = f.free[n-1], f.free[:n-1]
	}
	f.mu.Unlock()
	if q == nil {
		q = &fileIO{}
		q.io.Done = func(_ *blockdev.IO, res int32) {
			r := q.r
			q.r = nil
			f.mu.Lock()
			f.free = append(f.free, q)
			f.mu.Unlock()
			switch {
			case res < 0:
				r.Done(r, unix.Errno(-res))
			case int(res) != len(r.Buf):
				r.Done(r, fmt.Errorf("short: %d of %d", res, len(r.Buf)))
			default:
				r.Done(r, nil)
			}
		}
	}
	q.r = r
	q.io.Fd, q.io.Write, q.io.DSync, q.io.Buf, q.io.Off = f.fd, r.Op == blockdev.OpWrite, r.FUA, r.Buf, r.Off
	r.Ring.Submit(&q.io)
}

func (f *fileBackend) slow(r *blockdev.Request) error {
	switch r.Op {
	case blockdev.OpFlush:
		return unix.Fdatasync(f.fd)
	case blockdev.OpWriteZeroes, blockdev.OpTrim:
		return unix.Fallocate(f.fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, r.Off, r.Length)
	}
	return unix.EINVAL
}

func newFileBackend(t testing.TB, size int64) *fileBackend {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk")
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CREAT|unix.O_DIRECT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Skipf("SKIP: no O_DIRECT file in %s: %v", filepath.Dir(name), err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	buf := blockdev.Alloc(1 << 20)
	defer blockdev.Free(buf)
	for off := int64(0); off < size; off += int64(len(buf)) {
		for i := 0; i < len(buf); i += 512 {
			buf[i] = byte(off>>20) + byte(i>>9) + 1
		}
		if _, err := unix.Pwrite(fd, buf, off); err != nil {
			t.Fatal(err)
		}
	}
	return &fileBackend{fd: fd, size: size}
}

// loops names the two ways of serving a connection.
var loops = []struct {
	name   string
	noRing bool
}{{"ring", false}, {"plain", true}}

func eachLoop(t *testing.T, f func(t *testing.T, noRing bool)) {
	for _, l := range loops {
		t.Run(l.name, func(t *testing.T) { f(t, l.noRing) })
	}
}

// syncLog collects what a server logs.
type syncLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *syncLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *syncLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// start serves s on a socket until the test ends, and returns the socket's path.
func start(t testing.TB, s *Server) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd") // t.TempDir is too long a path for a socket
	if err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(dir, "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	if s.Name == "" {
		s.Name = "vol"
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != ErrClosed {
			t.Errorf("Serve returned %v, want ErrClosed", err)
		}
		if n := s.Conns(); n != 0 {
			t.Errorf("%d connections after Close", n)
		}
		os.RemoveAll(dir)
	})
	return sock
}

func testServer(b Backend, noRing bool) *Server {
	return &Server{Backend: b, NoRing: noRing, Log: zerolog.Nop()}
}

// need skips the test unless the programs are installed.
func need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("SKIP: %s is not installed", p)
		}
	}
}

// sh runs a command and returns what it printed; the test fails when it does, or hangs.
func sh(t testing.TB, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// until polls for a condition for as long as a loaded machine may need.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(90 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}
