package blockdevtest

import (
	"errors"
	"testing"
)

// TestCrashKill checks the death of a process in the middle of its writes.
func TestCrashKill(t *testing.T) {
	c := newCrash(64)
	mustWrite(t, c, filled('a', 512), 0)
	var late *Late
	var done []error
	c.OnOp = func(n int, _ string, _, _ int64) {
		switch n {
		case 2, 3: // nested: all three are in flight
			_, err := c.WriteAt(filled('a'+byte(n), 1024), int64(n-1)*512)
			done = append(done, err)
		case 4:
			late = c.Kill()
		}
	}
	_, err := c.WriteAt(filled('b', 1024), 0)
	done = append(done, err, c.Flush())
	_, err = c.ReadAt(make([]byte, 512), 0)
	done = append(done, err)
	for i, err := range done {
		if !errors.Is(err, ErrKilled) {
			t.Errorf("operation %d of the dead: %v", i, err)
		}
	}
	next := c.Open(false)
	if got := firstBytes(t, next, 4); got != "a\x00\x00\x00" {
		t.Errorf("after the kill %q: want what had returned", got)
	}
	if late.Len() != 3 {
		t.Fatalf("%d late writes, want 3", late.Len())
	}
	mustFlush(t, next)
	if n := next.Moment().Count(1000); n != 2*3*3*2 {
		t.Errorf("%d states with three writes in flight, want 36", n)
	}
	late.Land(1) // c at 1 and 2
	if got := firstBytes(t, next, 4); got != "acc\x00" {
		t.Errorf("after a late write %q", got)
	}
	mustWrite(t, next, filled('x', 512), 512)
	late.Land(0) // b at 0 and 1, over the successor's own
	if got := firstBytes(t, next, 4); got != "bbc\x00" {
		t.Errorf("after two late writes %q", got)
	}
	mustFlush(t, next)
	expectStates(t, next, 4, "bbc.", "bbcd", "bbd.", "bbdd")
	late.Drop()
	expectStates(t, next, 4, "bbc.")
}
