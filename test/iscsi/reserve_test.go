package iscsi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/reserve"
)

// Two hosts, one LUN, page caches that differ.
func testNexuses(t *testing.T, l *lun) {
	a, b := l.a.open(t), l.b.open(t)
	if l.a.disk == l.b.disk || a.ID() == b.ID() {
		t.Fatalf("one device: %s, %s", l.a.disk, l.b.disk)
	}
	if a.WWID() == "" || a.WWID() != b.WWID() {
		t.Errorf("WWIDs %q and %q", a.WWID(), b.WWID())
	}
	if size := a.Info().Size; size != diskSize || b.Info().Size != diskSize {
		t.Errorf("%d bytes", size)
	}
	for _, dev := range []*blockdev.File{a, b} {
		if can, err := reserve.Supported(dev); !can || err != nil {
			t.Errorf("%s: reservations supported: %v, %v", dev.Info().Name, can, err)
		}
	}
	stale, err := os.Open(l.b.disk) // through its page cache
	if err != nil {
		t.Fatal(err)
	}
	defer stale.Close()
	old, cached := block(0), block(0xff)
	if _, err := stale.ReadAt(cached, 8192); err != nil || !bytes.Equal(cached, old) {
		t.Fatalf("read: %v", err)
	}
	write(t, a, block(1), 8192)
	holds(t, b, block(1), 8192)
	if _, err := stale.ReadAt(cached, 8192); err != nil || !bytes.Equal(cached, old) {
		t.Errorf("the hosts share a page cache, which real ones do not: %v", err)
	}
}

// What is not a LUN of its own is not taken for one.
func testOtherDevices(t *testing.T, l *lun) {
	open := func(path string) *blockdev.File {
		t.Helper()
		dev, err := blockdev.OpenFile(t.Context(), path, blockdev.FileOptions{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { dev.Close() })
		return dev
	}
	if can, err := reserve.Supported(open(backing)); can || err != nil {
		t.Errorf("a virtio disk: %v, %v", can, err)
	}
	a := l.a.open(t)
	table := make([]byte, blockdev.SectorSize) // of a PC: one partition, of Linux's type, of 2048 sectors
	table[0x1be+4] = 0x83
	binary.LittleEndian.PutUint32(table[0x1be+8:], 2048)
	binary.LittleEndian.PutUint32(table[0x1be+12:], 2048)
	table[510], table[511] = 0x55, 0xaa
	write(t, a, table, 0)
	ok(t, unix.IoctlSetInt(a.Fd(), unix.BLKRRPART, 0))
	part := l.a.disk + "1"
	eventually(t, "the partition", func() bool { _, err := os.Stat(part); return err == nil })
	must(t, "dmsetup", "--noudevsync", "create", "lv", "--uuid", "LVM-lv", "--table", "0 1024 linear "+part+" 0")
	logical := strings.TrimSpace(must(t, "dmsetup", "info", "-c", "--noheadings", "-o", "blkdevname", "lv"))
	for _, path := range []string{part, "/dev/" + logical} {
		dev := open(path)
		_, err := reserve.Supported(dev)
		if !errors.Is(err, reserve.ErrPart) {
			t.Errorf("%s: %v", path, err)
		}
		if err := reserve.Register(dev, l.a.key); !errors.Is(err, reserve.ErrPart) {
			t.Errorf("%s: %v", path, err)
		}
		if disks, err := dev.Disks(); err != nil || !slices.Equal(disks, []string{l.a.disk}) {
			t.Errorf("%s: on %q, %v", path, disks, err)
		}
		dev.Close()
	}
	if s, err := reserve.Read(a); err != nil || len(s.Keys) != 0 {
		t.Errorf("the disk: %+v, %v", s, err)
	}
	must(t, "dmsetup", "--noudevsync", "remove", "lv")
	write(t, a, make([]byte, blockdev.SectorSize), 0)
	ok(t, unix.IoctlSetInt(a.Fd(), unix.BLKRRPART, 0))
}

func testRegister(t *testing.T, l *lun) {
	a, b := l.a.open(t), l.b.open(t)
	is := func(holder uint64, keys ...uint64) {
		t.Helper()
		kind := reserve.TypeWriteExclusiveRegistrantsOnly
		if holder == 0 {
			kind = reserve.TypeNone
		}
		for _, dev := range []*blockdev.File{a, b} {
			s, err := reserve.Read(dev)
			slices.Sort(s.Keys)
			slices.Sort(keys)
			if err != nil || s.Type != kind || s.Holder != holder || !slices.Equal(s.Keys, keys) {
				t.Errorf("%s: %+v, %v; want keys %#x, holder %#x", dev.Info().Name, s, err, keys, holder)
			}
		}
	}
	is(0)
	ok(t, reserve.Register(a, l.a.key))
	is(l.a.key, l.a.key)
	write(t, a, block(1), 0)
	refused(t, b, 0) // it is not registered
	holds(t, b, block(1), 0)
	ok(t, reserve.Register(b, l.b.key))
	is(l.a.key, l.a.key, l.b.key)
	write(t, b, block(2), 0)
	write(t, a, block(3), 4096)
	ok(t, reserve.Register(a, l.a.key)) // again: nothing changes
	ok(t, reserve.Register(b, l.b.key))
	is(l.a.key, l.a.key, l.b.key)
	ok(t, reserve.Register(a, 77)) // as after a reboot: another key of the same session
	is(77, 77, l.b.key)
	if err := reserve.Unregister(a, l.a.key); err != nil { // not its key: it stays
		t.Error(err)
	}
	is(77, 77, l.b.key)
	ok(t, reserve.Unregister(a, 77)) // and with it the reservation, which others then renew
	is(0, l.b.key)
	ok(t, reserve.Unregister(a, 77))
	write(t, a, block(4), 0)
	ok(t, reserve.Register(b, l.b.key))
	is(l.b.key, l.b.key)
	refused(t, a, 0)
	ok(t, reserve.Unregister(b, l.b.key))
	is(0)
}

func testPreempt(t *testing.T, l *lun) {
	a, b := l.a.open(t), l.b.open(t)
	if err := reserve.Preempt(b, l.b.key, l.a.key); !errors.Is(err, reserve.ErrNotRegistered) {
		t.Errorf("by a host that is not registered: %v", err)
	}
	ok(t, reserve.Register(b, l.b.key))
	if err := reserve.Preempt(b, l.b.key, l.a.key); !errors.Is(err, reserve.ErrNotRegistered) {
		t.Errorf("of a host that is not registered: %v", err)
	}
	refused(t, a, 0)
	if reserve.Preempt(b, l.b.key, l.b.key) == nil || reserve.Preempt(b, l.b.key, 0) == nil {
		t.Error("preempted itself, or nobody")
	}
	// Once the dead host holds the reservation, once it does not, once there is none.
	for _, holder := range []string{"b", "a", "none"} {
		if holder == "a" {
			ok(t, reserve.Unregister(b, l.b.key))
		}
		ok(t, reserve.Register(a, l.a.key))
		ok(t, reserve.Register(b, l.b.key))
		if holder == "none" {
			ok(t, reserve.Register(b, 99)) // b holds it: who leaves takes it along
			ok(t, reserve.Unregister(b, 99))
			ok(t, register(b, l.b.key))
			if s, err := reserve.Read(a); err != nil || s.Type != reserve.TypeNone || len(s.Keys) != 2 {
				t.Fatalf("reserved: %+v, %v", s, err)
			}
		}
		write(t, a, block(5), 0)
		ok(t, reserve.Preempt(b, l.b.key, l.a.key))
		refused(t, a, 0)
		holds(t, a, block(5), 0)
		write(t, b, block(6), 0)
		holds(t, a, block(6), 0)
		s, err := reserve.Read(a)
		if err != nil || s.Registered(l.a.key) || !s.Registered(l.b.key) || s.Type != reserve.TypeWriteExclusiveRegistrantsOnly {
			t.Errorf("holder %s: %+v, %v", holder, s, err)
		}
		if err := reserve.Preempt(b, l.b.key, l.a.key); !errors.Is(err, reserve.ErrNotRegistered) {
			t.Errorf("twice: %v", err)
		}
		if err := a.WriteZeroes(0, 4096, true); err == nil {
			t.Error("a host that was preempted discards")
		}
		if err := reserve.Preempt(a, l.a.key, l.b.key); err == nil {
			t.Error("a host that was preempted preempts")
		}
	}
}

// Whoever registers again is let in again, and with it all that its host has on the LUN.
func testRegisterAgain(t *testing.T, l *lun) {
	a, b := l.a.open(t), l.b.open(t)
	ok(t, reserve.Register(a, l.a.key))
	ok(t, reserve.Register(b, l.b.key))
	ok(t, reserve.Preempt(b, l.b.key, l.a.key))
	refused(t, a, 0)
	ok(t, reserve.Register(a, l.a.key))
	write(t, a, block(1), 0)
	holds(t, b, block(1), 0)
}

// The control: without a fence, what a host sent before its cable was pulled lands when it is back.
func testLateWriteUnfenced(t *testing.T, l *lun) {
	a, b := l.a.open(t), l.b.open(t)
	if err := late(t, l, a, func() { write(t, b, block(2), 0) }); err != nil {
		t.Fatalf("the late write: %v", err)
	}
	holds(t, b, block(1), 0)
}

func testLateWriteFenced(t *testing.T, l *lun) {
	a, b := l.a.open(t), l.b.open(t)
	ok(t, reserve.Register(a, l.a.key))
	ok(t, reserve.Register(b, l.b.key))
	err := late(t, l, a, func() {
		ok(t, reserve.Preempt(b, l.b.key, l.a.key))
		write(t, b, block(2), 0)
	})
	if !errors.Is(err, unix.EBADE) {
		t.Errorf("the late write: %v", err)
	}
	holds(t, b, block(2), 0)
}

// late has host a write block(1) into a pulled cable, does what is to be done meanwhile, and returns how the write ended
// once the cable is back.
func late(t *testing.T, l *lun, a *blockdev.File, meanwhile func()) error {
	t.Helper()
	plug := l.a.pull(t)
	wrote := make(chan error, 1)
	go func() {
		_, err := a.WriteAt(block(1), 0)
		wrote <- err
	}()
	eventually(t, "the write is on its way", func() bool { return l.a.inFlight(t) > 0 })
	meanwhile()
	select {
	case err := <-wrote:
		t.Fatalf("the write did not wait for the cable: %v", err)
	default:
	}
	plug()
	select {
	case err := <-wrote:
		return err
	case <-time.After(patience):
		t.Fatal("the late write does not end")
		return nil
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func block(fill byte) []byte { return bytes.Repeat([]byte{fill}, 4096) }

func write(t *testing.T, dev blockdev.Device, b []byte, off int64) {
	t.Helper()
	if _, err := dev.WriteAt(b, off); err != nil {
		t.Error(err)
	}
}

func holds(t *testing.T, dev blockdev.Device, want []byte, off int64) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := dev.ReadAt(got, off); err != nil {
		t.Error(err)
	} else if !bytes.Equal(got, want) {
		t.Errorf("%s at %d: begins with %#x, not %#x", dev.Info().Name, off, got[:4], want[:4])
	}
}

// refused checks that the LUN takes no write.
func refused(t *testing.T, dev blockdev.Device, off int64) {
	t.Helper()
	if _, err := dev.WriteAt(block(0xee), off); !errors.Is(err, unix.EBADE) {
		t.Errorf("%s: a write of a host that is not registered: %v", dev.Info().Name, err)
	}
}
