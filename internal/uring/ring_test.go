package uring

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// ring returns a ring of the test's own thread.
func ring(t *testing.T, entries int) *Ring {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	r, err := New(entries)
	if err != nil {
		t.Skipf("SKIP: no io_uring here: %v", err)
	}
	return r
}

func file(t *testing.T, size int) (int, []byte) {
	t.Helper()
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i>>9) ^ byte(i)
	}
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd, data
}

// Far more operations than the ring has entries, then more from within completions: all are done.
func TestOverflow(t *testing.T) {
	r := ring(t, 4)
	const n, size = 1000, 512
	fd, data := file(t, n*size)
	done := 0
	for i := range n {
		io := &blockdev.IO{Fd: fd, Buf: make([]byte, size), Off: int64(i * size)}
		io.Done = func(io *blockdev.IO, res int32) {
			if res != size || !bytes.Equal(io.Buf, data[io.Off:io.Off+size]) {
				t.Errorf("read at %d: %d, or other bytes", io.Off, res)
			}
			if done++; io.Write {
				return
			}
			io.Write, io.DSync = true, io.Off%1024 == 0
			r.Submit(io) // writes back what it read
		}
		r.Submit(io)
	}
	for r.InFlight() > 0 {
		if err := r.Turn(true); err != nil {
			t.Fatal(err)
		}
	}
	if done != 2*n {
		t.Errorf("%d of %d done", done, 2*n)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	got := make([]byte, len(data))
	if _, err := unix.Pread(fd, got, 0); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the file changed: %v", err)
	}
}

// The kernel completes what there is and has no memory for more: what completed is told at once, though nothing else may come.
func TestNoMemory(t *testing.T) {
	defer func() { enter = unix.Syscall6 }()
	fd, _ := file(t, 512)
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		r, err := New(4)
		if err != nil {
			ended <- nil // TestErrors says why
			return
		}
		refused := false
		enter = func(trap, a1, a2, a3, a4, a5, a6 uintptr) (uintptr, uintptr, unix.Errno) {
			n, m, errno := unix.Syscall6(trap, a1, a2, a3, a4, a5, a6)
			if errno == 0 && !refused {
				refused, errno = true, unix.EAGAIN
			}
			return n, m, errno
		}
		r.Submit(&blockdev.IO{Fd: fd, Buf: make([]byte, 512), Done: func(*blockdev.IO, int32) {}})
		err = r.Turn(true)
		ended <- errors.Join(err, r.Close())
	}()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it waits for another completion")
	}
}

func TestErrors(t *testing.T) {
	r := ring(t, 4)
	defer r.Close()
	fd, _ := file(t, 1024)
	for _, c := range []struct {
		name string
		io   blockdev.IO
		want int32
	}{
		{"closed descriptor", blockdev.IO{Fd: 1 << 20, Buf: make([]byte, 512)}, -int32(unix.EBADF)},
		{"past the end", blockdev.IO{Fd: fd, Buf: make([]byte, 512), Off: 4096}, 0},
		{"short", blockdev.IO{Fd: fd, Buf: make([]byte, 1024), Off: 512}, 512},
		{"write", blockdev.IO{Fd: fd, Buf: make([]byte, 512), Off: 512, Write: true, DSync: true}, 512},
	} {
		called := 0
		c.io.Done = func(io *blockdev.IO, res int32) {
			if called++; res != c.want {
				t.Errorf("%s: %d, want %d", c.name, res, c.want)
			}
		}
		r.Submit(&c.io)
		if err := r.Turn(true); err != nil || called != 1 {
			t.Errorf("%s: turn %v, Done called %d times", c.name, err, called)
		}
	}
	for _, n := range []int{0, -1, 1<<15 + 1} {
		if _, err := New(n); err == nil {
			t.Errorf("a ring of %d entries", n)
		}
	}
}

// A turn that need not wait does not; one that waits is woken by another thread.
func TestWakeAndPoll(t *testing.T) {
	r := ring(t, 8)
	defer r.Close()
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(event)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])

	var got int32
	op := Op{Done: func(res int32) { got = res }}
	count := make([]byte, 8)
	r.Read(event, count, &op)
	if err := r.Turn(false); err != nil || !op.Pending() {
		t.Fatalf("turn %v, pending %v", err, op.Pending())
	}
	go unix.Write(event, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	if err := r.Turn(true); err != nil || op.Pending() || got != 8 || count[0] != 1 {
		t.Fatalf("turn %v, pending %v, result %d, count %v", err, op.Pending(), got, count)
	}

	r.Poll(pair[0], unix.POLLOUT, &op)
	if err := r.Turn(true); err != nil || got&unix.POLLOUT == 0 {
		t.Fatalf("poll of a socket with room: %v, %#x", err, got)
	}

	a, b := make([]byte, 3), make([]byte, 100)
	r.Readv(pair[0], a, b, &op)
	unix.Write(pair[1], []byte("abcdefg"))
	if err := r.Turn(true); err != nil || got != 7 || string(a)+string(b[:4]) != "abcdefg" {
		t.Fatalf("readv: %v, %d, %q %q", err, got, a, b[:4])
	}
	r.Recv(pair[0], b, &op)
	unix.Write(pair[1], []byte("hij"))
	if err := r.Turn(true); err != nil || got != 3 || string(b[:3]) != "hij" {
		t.Fatalf("recv: %v, %d, %q", err, got, b[:3])
	}
	r.Recv(pair[0], b, &op)
	unix.Shutdown(pair[1], unix.SHUT_WR)
	if err := r.Turn(true); err != nil || got != 0 {
		t.Fatalf("recv at the end: %v, %d", err, got)
	}
}

// Close cancels what waits for others and lets file I/O finish; the thread may then have other rings.
func TestClose(t *testing.T) {
	for range 20 { // more than a thread may register at once
		r := ring(t, 8)
		fd, data := file(t, 64<<10)
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		cancelled := int32(0)
		op := Op{Done: func(res int32) { cancelled = res }}
		r.Recv(pair[0], make([]byte, 10), &op)
		if err := r.Turn(false); err != nil {
			t.Fatal(err)
		}
		done := 0
		for i := range 16 {
			r.Submit(&blockdev.IO{Fd: fd, Buf: make([]byte, 4096), Off: int64(i) * 4096, Done: func(io *blockdev.IO, res int32) {
				if done++; res != 4096 || !bytes.Equal(io.Buf, data[io.Off:io.Off+4096]) {
					t.Errorf("read at %d during Close: %d", io.Off, res)
				}
			}})
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if done != 16 || cancelled != -int32(unix.ECANCELED) {
			t.Errorf("%d reads done, receive ended with %d", done, cancelled)
		}
		unix.Close(pair[0])
		unix.Close(pair[1])
	}
	if r, err := New(1 << 15); err == nil {
		r.Close()
	} else if !errors.Is(err, unix.ENOMEM) {
		t.Error(err)
	}
}

func TestNoAllocations(t *testing.T) {
	r := ring(t, 16)
	defer r.Close()
	fd, _ := file(t, 64<<10)
	ios := make([]blockdev.IO, 40)
	for i := range ios {
		ios[i] = blockdev.IO{Fd: fd, Buf: make([]byte, 512), Off: int64(i) * 512, Done: func(*blockdev.IO, int32) {}}
	}
	round := func() {
		for i := range ios {
			r.Submit(&ios[i])
		}
		for r.InFlight() > 0 {
			if err := r.Turn(true); err != nil {
				t.Fatal(err)
			}
		}
	}
	round()
	if n := testing.AllocsPerRun(100, round); n > 0 {
		t.Errorf("%v allocations for %d operations", n, len(ios))
	}
}
