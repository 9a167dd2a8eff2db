package blockdevtest

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

func TestEachFailure(t *testing.T) {
	for ops, want := range map[Ops]int{AllOps: 4, Writes: 2, Flushes: 2, Writes | Flushes: 4, Reads: 0} {
		failed := 0
		n := EachFailure(t, Rule{Ops: ops}, func(n int, f *Failure) {
			m := NewMemory("disk", 64<<10, 512)
			err := saveChunk(NewFault(m, f), true)
			if err != nil && !errors.Is(err, syscall.EIO) {
				t.Fatalf("%v fails at %d with %v", ops, n, err)
			}
			if (err != nil) != (f.Fired() == 1) {
				t.Errorf("%v: operation %d fired %d times: %v", ops, n, f.Fired(), err)
			}
			if err != nil {
				failed++
			}
			if flagWithoutData(t, m) {
				t.Errorf("%v: flag without data when operation %d fails", ops, n)
			}
		})
		if n != want || failed != want {
			t.Errorf("%v: %d rounds, %d of them failed, want %d", ops, n, failed, want)
		}
	}
}

func TestFaultEachKind(t *testing.T) {
	ops := map[Ops]func(d blockdev.Device) error{
		Reads:         func(d blockdev.Device) error { _, err := d.ReadAt(make([]byte, 512), 0); return err },
		Writes:        func(d blockdev.Device) error { _, err := d.WriteAt(filled('w', 512), 0); return err },
		Zeroes:        func(d blockdev.Device) error { return d.WriteZeroes(0, 512, false) },
		Flushes:       func(d blockdev.Device) error { return d.Flush() },
		ExtentQueries: func(d blockdev.Device) error { _, err := d.Extents(0, 512); return err },
	}
	for kind := range ops {
		once, forever := NewFailure(Rule{Ops: kind, N: 2}), NewFailure(Rule{Ops: kind, N: 5, Forever: true, Err: io.ErrNoProgress})
		m := NewMemory("disk", 64<<10, 512)
		mustWrite(t, m, filled('a', 512), 0)
		f := NewFault(m, once, forever)
		for i, want := range []error{nil, syscall.EIO, nil, nil, io.ErrNoProgress, io.ErrNoProgress} {
			for other, do := range ops { // these don't count
				if err := do(f); other != kind && err != nil {
					t.Fatalf("rule for %v: %v fails: %v", kind, other, err)
				} else if other == kind && !errors.Is(err, want) {
					t.Errorf("%v %d: %v, want %v", kind, i+1, err, want)
				}
			}
		}
		if once.Fired() != 1 || forever.Fired() != 2 || once.Seen() != 6 {
			t.Errorf("%v: fired %d and %d, seen %d; want 1, 2 and 6", kind, once.Fired(), forever.Fired(), once.Seen())
		}
	}
	p := make([]byte, 512)
	if _, err := NewFault(NewMemory("disk", 64<<10, 512), NewFailure(Rule{N: 1})).ReadAt(p, 0); err == nil || bytes.Count(p, p[:1]) != 512 || p[0] == 0 {
		t.Errorf("a failed read left %#x, %v: want rubbish and an error", p[0], err)
	}
}

func TestFaultTornAndRange(t *testing.T) {
	m := NewMemory("disk", 64<<10, 512)
	inTable := NewFailure(Rule{Ops: Writes | Zeroes, Off: 1024, Length: 512, N: 1, Forever: true, Torn: 2})
	f := NewFault(m, inTable)
	for _, off := range []int64{0, 1536} {
		mustWrite(t, f, filled('a', 1024), off)
	}
	n, err := f.WriteAt(filled('b', 2048), 0)
	if !errors.Is(err, syscall.EIO) || n != 1024 {
		t.Errorf("torn write: %d, %v, want 1024 and EIO", n, err)
	}
	if got, want := firstBytes(t, m, 5), "bb\x00aa"; got != want {
		t.Errorf("after a torn write %q, want %q", got, want)
	}
	if err := f.WriteZeroes(0, 2048, true); !errors.Is(err, syscall.EIO) {
		t.Errorf("torn zeroes: %v", err)
	}
	if got, want := firstBytes(t, m, 5), "\x00\x00\x00aa"; got != want {
		t.Errorf("after torn zeroes %q, want %q", got, want)
	}
	mustFlush(t, f)
	big := NewMemory("disk", 64<<10, 4096)
	f = NewFault(big, NewFailure(Rule{N: 1, Torn: 12}))
	if n, err := f.WriteAt(filled('b', 16384), 0); err == nil || n != 4096 {
		t.Errorf("torn write of 4096-byte blocks: %d, %v, want 4096 and an error", n, err)
	}
}

// TestFaultShared has one failure count the operations of two devices.
func TestFaultShared(t *testing.T) {
	x := NewFailure(Rule{Ops: Flushes, N: 2})
	a, b := NewFault(NewMemory("a", 64<<10, 512), x), NewFault(NewMemory("b", 64<<10, 512), x)
	mustFlush(t, a)
	if err := b.Flush(); !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "b: flush") {
		t.Errorf("second flush of two devices: %v", err)
	}
	mustFlush(t, a)
}

// TestFaultDropsUnflushed checks that what a failed flush lost is lost for every later flush.
func TestFaultDropsUnflushed(t *testing.T) {
	c := newCrash(64)
	f := NewFault(c, NewFailure(Rule{Ops: Flushes, N: 2, DropUnflushed: true}))
	mustWrite(t, f, filled('a', 1024), 0)
	mustFlush(t, f)
	mustWrite(t, f, filled('b', 512), 0)
	mustWrite(t, f, filled('c', 1024), 0)
	if err := f.WriteZeroes(512, 1024, true); err != nil {
		t.Fatal(err)
	}
	if err := f.Flush(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("flush: %v", err)
	}
	if got := firstBytes(t, f, 3); got != "aa\x00" {
		t.Errorf("after a failed flush %q", got)
	}
	if got := allStates(t, c, 3, 1000); !slices.Contains(got, "aa.") || !slices.Contains(got, "ca.") {
		t.Errorf("states after a failed flush %q: want aa. and ca. among them", got)
	}
	mustFlush(t, f)
	expectStates(t, c, 3, "aa.")
}
