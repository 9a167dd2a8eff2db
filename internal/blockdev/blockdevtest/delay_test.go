package blockdevtest

import (
	"errors"
	"os"
	"syscall"
	"testing"
)

// writeLater writes from a goroutine and returns where its error will be.
func writeLater(d *Delay, b byte, off int64) chan error {
	n := d.Held()
	done := make(chan error, 1)
	p := filled(b, 512)
	go func() {
		_, err := d.WriteAt(p, off)
		done <- err
		for i := range p { // the issuer uses its buffer again
			p[i] = '!'
		}
	}()
	d.WaitHeld(n + 1)
	return done
}

func TestDelayHoldAndRelease(t *testing.T) {
	m := NewMemory("disk", 64<<10, 512)
	d := NewDelay(m)
	mustWrite(t, d, filled('a', 1024), 0)
	d.Hold()
	first, second := writeLater(d, 'b', 0), writeLater(d, 'c', 0)
	mustFlush(t, d)
	if got := firstBytes(t, d, 2); got != "aa" {
		t.Errorf("with writes held %q", got)
	}
	select {
	case err := <-first:
		t.Errorf("a held write returned: %v", err)
	default:
	}
	if err := d.Close(); err == nil {
		t.Error("closed with writes held")
	}
	if err := d.Land(1); err != nil {
		t.Fatal(err)
	}
	if err := <-second; err != nil {
		t.Error(err)
	}
	if got := firstBytes(t, d, 2); got != "ca" {
		t.Errorf("after the second write landed %q", got)
	}
	if err := d.Release(); err != nil {
		t.Fatal(err)
	}
	if err := <-first; err != nil {
		t.Error(err)
	}
	mustWrite(t, d, filled('d', 512), 512)
	if got := firstBytes(t, m, 2); got != "bd" {
		t.Errorf("after Release %q", got)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.Flush(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the device below, after Close: %v", err)
	}
}

func TestDelayHoldIf(t *testing.T) {
	m := NewMemory("disk", 64<<10, 512)
	d := NewDelay(m)
	d.HoldIf(func(op string, off, length int64) bool { return op == "unmap" && off == 512 && length == 1024 })
	mustWrite(t, d, filled('a', 2048), 0)
	for _, off := range []int64{0, 512} {
		if err := d.WriteZeroes(off, 1024, false); err != nil {
			t.Fatal(err)
		}
	}
	mustWrite(t, d, filled('b', 1024), 512)
	done := make(chan error, 1)
	go func() { done <- d.WriteZeroes(512, 1024, true) }()
	d.WaitHeld(1)
	if got := firstBytes(t, m, 4); got != "\x00bba" {
		t.Errorf("with the unmap held %q", got)
	}
	if err := errors.Join(d.Release(), <-done); err != nil {
		t.Fatal(err)
	}
	if got := firstBytes(t, m, 4); got != "\x00\x00\x00a" {
		t.Errorf("after Release %q", got)
	}
}

// TestDelayDetach has writes of a dead process land over its successor's.
func TestDelayDetach(t *testing.T) {
	c := newCrash(64)
	d := NewDelay(c)
	d.Hold()
	first, second := writeLater(d, 'x', 0), writeLater(d, 'y', 512)
	d.Detach()
	d.Detach()
	for _, done := range []chan error{first, second} {
		if err := <-done; !errors.Is(err, ErrDetached) {
			t.Errorf("held write of the detached: %v", err)
		}
	}
	_, err := d.WriteAt(filled('z', 512), 0)
	_, err2 := d.ReadAt(make([]byte, 512), 0)
	_, err3 := d.Extents(0, 512)
	for i, err := range []error{err, err2, err3, d.Flush(), d.WriteZeroes(0, 512, true), d.Close()} {
		if !errors.Is(err, ErrDetached) {
			t.Errorf("operation %d of the detached: %v", i, err)
		}
	}
	mustWrite(t, c, filled('s', 1024), 0)
	mustFlush(t, c)
	if got := firstBytes(t, c, 2); got != "ss" {
		t.Errorf("the successor reads %q", got)
	}
	if err := d.Land(1); err != nil {
		t.Fatal(err)
	}
	expectStates(t, c, 2, "ss", "sy")
	if err := d.Release(); err != nil {
		t.Fatal(err)
	}
	expectStates(t, c, 2, "ss", "sy", "xs", "xy")
}

func TestDelayReportsErrors(t *testing.T) {
	d := NewDelay(NewFault(NewMemory("disk", 64<<10, 512), NewFailure(Rule{Ops: Writes, N: 2})))
	d.Hold()
	first, second := writeLater(d, 'x', 0), writeLater(d, 'y', 512)
	if err := d.Release(); !errors.Is(err, syscall.EIO) {
		t.Errorf("Release: %v, want EIO", err)
	}
	if err := <-first; err != nil {
		t.Errorf("first write: %v", err)
	}
	if err := <-second; !errors.Is(err, syscall.EIO) {
		t.Errorf("second write: %v, want EIO", err)
	}
}
