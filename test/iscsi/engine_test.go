package iscsi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/api"
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

// idle waits until the host's disk has nothing to do, for a moment: one look may fall between two requests.
func (h *host) idle(t *testing.T) {
	t.Helper()
	quiet := 0
	eventually(t, "nothing is on its way to host "+h.name+"'s disk", func() bool {
		if quiet++; h.inFlight(t) > 0 {
			quiet = 0
		}
		return quiet == 5
	})
}

const volumeSize = "16M"

func (h *host) createStore(t *testing.T) {
	t.Helper()
	if out, err := h.run(t, "store", "create", "--size", volumeSize, "--name", "v", "--chunk", "4K", h.disk); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// refusesToServe checks that the host may not open the store now, and registers with nothing.
func (h *host) refusesToServe(t *testing.T, says string, with ...func(*api.EngineSpec)) {
	t.Helper()
	before := h.reservations(t)
	h.refuses(t, capabilities, h.serveArgs(t, with...), says)
	if after := h.reservations(t); !reflect.DeepEqual(after, before) {
		t.Errorf("host %s: refused, but the LUN is reserved: %+v, before: %+v", h.name, after, before)
	}
}

// refuses runs virt-cow on the host and checks that it fails and says why.
func (h *host) refuses(t *testing.T, capabilities []int, args []string, says string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := h.command(ctx, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := start(cmd, capabilities); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(out.String(), says) {
		t.Errorf("host %s: %v, does not say %q: %s", h.name, err, says, &out)
	}
}

func (h *host) reservations(t *testing.T) reserve.State {
	t.Helper()
	s, err := reserve.Read(h.open(t))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// reservedFor checks that the LUN is reserved for these hosts and nobody else.
func (l *lun) reservedFor(t *testing.T, hosts ...*host) {
	t.Helper()
	s := l.b.reservations(t)
	all := len(s.Keys) == len(hosts) && s.Type == reserve.TypeWriteExclusiveRegistrantsOnly
	for _, h := range hosts {
		all = all && s.Registered(h.key)
	}
	if !all {
		t.Errorf("reserved: %+v, host a's key %#x, host b's %#x", s, l.a.key, l.b.key)
	}
}

// One owner at a time, over two sessions with one LUN; a killed engine's host stays the owner. Only who owns the volume registers.
func testColdOwnership(t *testing.T, l *lun) {
	l.a.createStore(t)
	a := l.a.serve(t)
	l.reservedFor(t, l.a)
	refused(t, l.b.open(t), 15<<20)
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
	l.reservedFor(t, l.a, l.b)
	g = b.guest(t)
	holds(t, g, block(1), 0)
	holds(t, g, block(2), 4096)
	holds(t, g, block(0), 8192)
	l.a.refusesToServe(t, "open on another host")
	if code := b.stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	l.verify(t)
}

// An owner that is not registered can't be shut out: it keeps its volume, and the LUN stays as it is.
func testOwnerNotRegistered(t *testing.T, l *lun) {
	l.a.createStore(t)
	a := l.a.serve(t, unreserved)
	g := a.guest(t)
	write(t, g, block(1), 0)
	ok(t, g.Flush())
	l.b.refusesToServe(t, "virt-cow host fenced", l.deadByReservation(t))
	write(t, g, block(2), 4096)
	ok(t, g.Flush())
	a.kill(t) // it may have sent something all the same
	l.b.refusesToServe(t, "virt-cow host fenced", l.deadByReservation(t))
	a = l.a.serve(t, unreserved)
	g = a.guest(t)
	holds(t, g, block(1), 0)
	holds(t, g, block(2), 4096)
	if code := a.stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	l.verify(t)
}

// A store that is not on a LUN of its own is not served where reservations are wanted.
func testNotReservable(t *testing.T, l *lun) {
	l.a.createStore(t)
	before := l.contents(t)
	must(t, "dmsetup", "--noudevsync", "create", "lv", "--uuid", "LVM-lv", "--table", fmt.Sprintf("0 %d linear %s 0", diskSize/512, l.a.disk))
	lv := "/dev/" + strings.TrimSpace(must(t, "dmsetup", "info", "-c", "--noheadings", "-o", "blkdevname", "lv"))
	for path, says := range map[string]string{
		backing: "persistent reservations: not supported by the device: or set reservations = ",
		lv:      "reserve the disks that it is on: or set reservations = ",
	} {
		l.a.refusesToServe(t, says, func(s *api.EngineSpec) { s.Store = path })
	}
	must(t, "dmsetup", "--noudevsync", "remove", "lv")
	if l.contents(t) != before {
		t.Error("the LUN changed")
	}
}

// The owner lives, reaches the LUN, and is taken for dead: its engine writes nothing more and stops for good, and what it had
// acknowledged by a FLUSH is there.
func testFencedEngine(t *testing.T, l *lun) {
	l.a.createStore(t)
	a := l.a.serve(t)
	g := a.guest(t)
	write(t, g, block(1), 0)
	ok(t, g.Flush())
	b := l.b.serve(t, l.deadByReservation(t))
	l.reservedFor(t, l.b)
	n := b.guest(t)
	b.owns(t, l.b)
	holds(t, n, block(1), 0)
	write(t, n, block(2), 0)
	ok(t, n.Flush())

	refused(t, l.a.open(t), 0)
	before := l.contents(t)
	for _, off := range []int64{0, 4096, 1 << 20} { // a chunk in the store, and two never written
		if _, err := g.WriteAt(block(3), off); !errors.Is(err, unix.EIO) {
			t.Errorf("a write at %d of a host that was preempted: %v", off, err)
		}
	}
	a.isLost(t)
	if err := g.Flush(); err == nil {
		t.Error("a FLUSH of a host that was preempted is acknowledged")
	}
	if _, err := g.ReadAt(make([]byte, 4096), 0); err == nil {
		t.Error("a host that was preempted reads what is another's by now")
	}
	a.stop(t)
	if l.contents(t) != before {
		t.Error("the LUN changed")
	}
	l.reservedFor(t, l.b)
	l.a.refusesToServe(t, "open on another host")
	holds(t, n, block(2), 0)
	holds(t, n, block(0), 4096)
	holds(t, n, block(0), 1<<20)
	if code := b.stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	l.verify(t)
}

// isLost waits until the engine says that it is not to be had for anything any more, and why: it was shut out, or has read in the
// header whose the volume is, whichever it saw first.
func (e *engine) isLost(t *testing.T, why ...string) {
	t.Helper()
	if why == nil {
		why = []string{shutOut, "taken over by another host"}
	}
	eventually(t, "the engine says that it was shut out", func() bool {
		s, err := e.control().Status(t.Context())
		return err == nil && s.Lost && slices.ContainsFunc(why, func(w string) bool { return strings.Contains(s.Error, w) })
	})
}

const shutOut = "shut it out by a persistent reservation"

// Before anything else is known of a takeover, the first write that the LUN refuses ends the engine's work for good.
func testShutOut(t *testing.T, l *lun) {
	l.a.createStore(t)
	a := l.a.serve(t)
	g := a.guest(t)
	write(t, g, block(1), 0)
	ok(t, g.Flush())
	b := l.b.open(t)
	ok(t, reserve.Register(b, l.b.key))
	ok(t, reserve.Preempt(b, l.b.key, l.a.key))
	if _, err := g.WriteAt(block(2), 0); !errors.Is(err, unix.EIO) {
		t.Errorf("a write of a host that was preempted: %v", err)
	}
	a.isLost(t, shutOut)
	ok(t, reserve.Register(l.a.open(t), l.a.key)) // let in again, it must not go on all the same
	if _, err := g.WriteAt(block(2), 0); err == nil {
		t.Error("an engine that was shut out goes on")
	}
	if err := g.Flush(); err == nil {
		t.Error("a FLUSH of an engine that was shut out is acknowledged")
	}
}

// The control: a killed engine's last write lands, minutes later, on what another host has written since.
func testKilledEngineUnfenced(t *testing.T, l *lun) {
	l.killed(t, unreserved, func(off int64) (check func()) {
		b := l.b.open(t)
		write(t, b, block(3), off)
		return func() { holds(t, b, block(2), off) }
	})
}

// The killed engine's volume is taken over by reservation: its last write never lands.
func testKilledEngineFenced(t *testing.T, l *lun) {
	l.killed(t, func(*api.EngineSpec) {}, func(off int64) (check func()) {
		b := l.b.serve(t, l.deadByReservation(t))
		l.reservedFor(t, l.b)
		n := b.guest(t)
		b.owns(t, l.b)
		holds(t, n, block(1), 0)
		write(t, n, block(3), 0)
		ok(t, n.Flush())
		if at := l.find(t, block(3)); at != off {
			t.Errorf("the chunk is at %d, was at %d", at, off)
		}
		return func() {
			holds(t, n, block(3), 0)
			l.a.refusesToServe(t, "open on another host")
			if code := b.stop(t); code != 0 {
				t.Errorf("exit code %d", code)
			}
			l.verify(t)
		}
	})
}

// killed has an engine of host a write a chunk of the store into a pulled cable and kills it. Meanwhile gets the chunk's place on
// the LUN and does what another host does then; then the cable is put back, and the check follows the end of a's write.
func (l *lun) killed(t *testing.T, with func(*api.EngineSpec), meanwhile func(off int64) (check func())) {
	t.Helper()
	l.a.createStore(t)
	a := l.a.serve(t, with)
	g := a.guest(t)
	write(t, g, block(1), 0)
	ok(t, g.Flush())
	off := l.find(t, block(1))
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
	check := meanwhile(off)
	plug()
	eventually(t, "the late write ends", func() bool { return l.a.inFlight(t) == 0 })
	a.wait(t)
	check()
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
