package iscsi

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/reserve"
)

// register registers a key and reserves nothing (linux/pr.h).
func register(dev *blockdev.File, key uint64) error {
	arg := struct {
		old, new uint64
		flags, _ uint32
	}{new: key}
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dev.Fd()), 0x401870c8, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 || r != 0 {
		return fmt.Errorf("IOC_PR_REGISTER: %d, %w", r, errno)
	}
	return nil
}

// inFlight is how many requests the kernel has on their way to the host's disk.
func (h *host) inFlight(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(h.disk), "inflight"))
	if err != nil {
		t.Fatal(err)
	}
	var reads, writes int
	if _, err := fmt.Sscan(string(b), &reads, &writes); err != nil {
		t.Fatal(err)
	}
	return reads + writes
}

const volumeSize = "16M"

func (h *host) createStore(t *testing.T) {
	t.Helper()
	if out, err := h.run(t, "store", "create", "--size", volumeSize, "--name", "v", "--chunk", "4K", h.disk); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// refusesToServe checks that the host may not open the store now.
func (h *host) refusesToServe(t *testing.T, says string) {
	t.Helper()
	if err := os.MkdirAll(h.runDir, 0o700); err != nil {
		t.Fatal(err)
	}
	out, err := h.run(t, h.serveArgs("--lock-wait", "1s")...)
	if err == nil || !strings.Contains(out, says) {
		t.Errorf("host %s: %v, does not say %q: %s", h.name, err, says, out)
	}
}

// One owner at a time, over two sessions with one LUN; a killed engine's host stays the owner.
func testColdOwnership(t *testing.T, l *lun) {
	l.a.createStore(t)
	a := l.a.serve(t)
	g := a.guest(t)
	write(t, g, block(1), 0)
	ok(t, g.Flush())
	l.b.refusesToServe(t, "open on another host")
	a.kill(t)
	l.b.refusesToServe(t, "open on another host")
	a = l.a.serve(t)
	g = a.guest(t)
	holds(t, g, block(1), 0)
	write(t, g, block(2), 4096)
	if code := a.stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	b := l.b.serve(t)
	g = b.guest(t)
	holds(t, g, block(1), 0)
	holds(t, g, block(2), 4096)
	holds(t, g, block(0), 8192)
	l.a.refusesToServe(t, "open on another host")
	b.stop(t)
	if out, err := l.a.run(t, "store", "verify", l.a.disk); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// An engine whose host was preempted writes nothing more and says so to its guest, and what it had acknowledged by a
// FLUSH is there.
func testFencedEngine(t *testing.T, l *lun) {
	l.a.createStore(t)
	devA, devB := l.a.open(t), l.b.open(t)
	ok(t, reserve.Register(devA, l.a.key))
	a := l.a.serve(t)
	g := a.guest(t)
	write(t, g, block(1), 0)
	ok(t, g.Flush())
	ok(t, reserve.Register(devB, l.b.key))
	write(t, g, block(2), 4096) // not flushed: its flag is in host a's memory only

	ok(t, reserve.Preempt(devB, l.b.key, l.a.key))
	before := l.contents(t)
	for _, off := range []int64{0, 4096, 1 << 20} { // a chunk in the store, one not flushed, one never written
		if _, err := g.WriteAt(block(3), off); err == nil {
			t.Errorf("a write at %d of a host that was preempted is acknowledged", off)
		} else if !errors.Is(err, unix.EIO) {
			t.Errorf("a write at %d: %v", off, err)
		}
	}
	if err := g.Flush(); err == nil {
		t.Error("a FLUSH of a host that was preempted is acknowledged")
	}
	holds(t, g, block(1), 0) // reading is no harm
	if code := a.stop(t); code == 0 {
		t.Error("the engine of a host that was preempted says that it closed its store")
	}
	if l.contents(t) != before {
		t.Error("the LUN changed")
	}
	l.b.refusesToServe(t, "open on another host")
}

// The control: a killed engine's last write lands, minutes later, on what another host has written since.
func testKilledEngineUnfenced(t *testing.T, l *lun) {
	off, b := killed(t, l, func(*blockdev.File) {})
	holds(t, b, block(2), off)
}

// With its host preempted, a killed engine's last write never lands.
func testKilledEngineFenced(t *testing.T, l *lun) {
	devA := l.a.open(t)
	ok(t, reserve.Register(devA, l.a.key))
	off, b := killed(t, l, func(b *blockdev.File) {
		ok(t, reserve.Register(b, l.b.key))
		ok(t, reserve.Preempt(b, l.b.key, l.a.key))
	})
	holds(t, b, block(3), off)
}

// killed has an engine of host a write a chunk of the store into a pulled cable, kills it, has host b fence host a and write
// the chunk's place on the LUN, and puts the cable back. It returns that place, once a's write has ended.
func killed(t *testing.T, l *lun, fence func(b *blockdev.File)) (off int64, b *blockdev.File) {
	t.Helper()
	l.a.createStore(t)
	a := l.a.serve(t)
	g := a.guest(t)
	write(t, g, block(1), 0)
	ok(t, g.Flush())
	b = l.b.open(t)
	off = l.find(t, block(1))
	plug := l.a.pull(t)
	wrote := make(chan error, 1)
	go func() {
		_, err := g.WriteAt(block(2), 0)
		wrote <- err
	}()
	eventually(t, "the engine's write is on its way", func() bool { return l.a.inFlight(t) > 0 })
	// The guest's connection goes on trying to reach its server: end it with it.
	_ = a.cmd.Process.Kill()
	g.Close()
	if err := <-wrote; err == nil {
		t.Error("a write into a pulled cable is acknowledged")
	}
	fence(b)
	write(t, b, block(3), off)
	plug()
	eventually(t, "the late write ends", func() bool { return l.a.inFlight(t) == 0 })
	a.wait(t)
	return off, b
}

// find is where on the LUN a chunk's data is.
func (l *lun) find(t *testing.T, chunk []byte) int64 {
	t.Helper()
	dev := l.b.open(t)
	got := make([]byte, len(chunk))
	for off := int64(0); off < dev.Info().Size; off += int64(len(chunk)) {
		if _, err := dev.ReadAt(got, off); err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(got, chunk) {
			return off
		}
	}
	t.Fatal("the chunk is not on the LUN")
	return 0
}

// contents is a digest of all of the LUN, as host b reads it.
func (l *lun) contents(t *testing.T) [sha256.Size]byte {
	t.Helper()
	dev := l.b.open(t)
	sum := sha256.New()
	if _, err := io.CopyBuffer(sum, io.NewSectionReader(dev, 0, dev.Info().Size), make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	return [sha256.Size]byte(sum.Sum(nil))
}
