package blockdevtest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// TestCrashSampled checks what States gives first where there are too many states.
func TestCrashSampled(t *testing.T) {
	c := newCrash(256)
	const writes = 40
	for i := range writes {
		mustWrite(t, c, filled('a'+byte(i), 1024), int64(i)*1024)
	}
	states := func(max int) (out []string) {
		for m := range c.States(max) {
			p := firstBytes(t, m, 2*writes)
			out = append(out, strings.ReplaceAll(p, "\x00", "."))
		}
		return out
	}
	got := states(500)
	if len(got) != 500 {
		t.Fatalf("%d states, want 500", len(got))
	}
	if !slices.Equal(got, states(500)) {
		t.Error("the states differ from call to call")
	}
	full := firstBytes(t, c, 2*writes)
	dots := strings.Repeat(".", 2*writes)
	want := []string{dots, full, dots[2:] + full[len(full)-2:], ".." + full[2:], full[:len(full)-2] + "..", full[:2] + dots[2:]}
	if !slices.Equal(got[:6], want) {
		t.Errorf("first states %q, want %q", got[:6], want)
	}
	for i := range writes {
		for what, s := range map[string]string{
			"up to":   full[:2*i+2] + dots[2*i+2:],
			"all but": full[:2*i] + ".." + full[2*i+2:],
			"only":    dots[:2*i] + full[2*i:2*i+2] + dots[2*i+2:],
		} {
			if !slices.Contains(got, s) {
				t.Errorf("no state with %s write %d", what, i)
			}
		}
	}
	torn := 0
	for _, s := range got {
		if slices.ContainsFunc(slices.Collect(slices.Chunk([]byte(s), 2)), func(w []byte) bool { return w[0] != w[1] }) {
			torn++
		}
	}
	if torn < 200 {
		t.Errorf("%d of 500 states have a torn write, want 200 or more", torn)
	}
	if n := len(states(3)); n != 3 {
		t.Errorf("%d states of 3", n)
	}
	if n := len(states(0)); n != 0 {
		t.Errorf("%d states of 0", n)
	}
}

// TestCrashMoments cuts two disks at once while a goroutine keeps the second behind the first.
func TestCrashMoments(t *testing.T) {
	a := NewCrash(NewMemory("a", 4096, 512), CrashOptions{})
	b := NewCrash(NewMemory("b", 4096, 512), CrashOptions{})
	stop := make(chan bool)
	done := make(chan error)
	go func() {
		for v := byte(1); ; v = v%250 + 1 {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			for _, d := range []*Crash{a, b} {
				_, err := d.WriteAt(filled(v, 512), 0)
				if err := errors.Join(err, d.Flush()); err != nil {
					done <- err
					return
				}
			}
		}
	}()
	// A disk between the two whose moment takes its time gives the goroutine a chance to get between.
	slow := NewCrash(NewMemory("slow", 256<<10, 512), CrashOptions{})
	mustWrite(t, slow, filled('s', 256<<10), 0)
	seen := map[byte]bool{}
	rng := rand.New(rand.NewPCG(1, 1))
	for i := 0; i < 1000 || len(seen) < 10; i++ {
		mustWrite(t, slow, filled('s', 512), 0)
		devs := []*Crash{a, slow, b}
		if i%2 == 1 {
			slices.Reverse(devs)
		}
		m := Moments(devs...)
		va := firstBytes(t, m[i%2*2].PowerCut(rng), 1)[0]
		vb := firstBytes(t, m[2-i%2*2].PowerCut(rng), 1)[0]
		if va != vb && va != vb%250+1 {
			t.Fatalf("a has %d and b has %d: not one instant", va, vb)
		}
		seen[va] = true
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestCrashSparse(t *testing.T) {
	c := NewCrash(NewMemory("disk", 64<<40, 4096), CrashOptions{AtomicUnit: 4096})
	const far = 60 << 40
	mustWrite(t, c, filled('a', 8192), far)
	mustFlush(t, c)
	if err := c.WriteZeroes(0, 64<<40, true); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, c, filled('b', 4096), 0)
	found := map[string]bool{}
	for m := range c.States(100) {
		p := mustRead(t, m, far, 8192)
		found[fmt.Sprint(mustRead(t, m, 0, 1<<12)[0], p[0], p[4096])] = true
	}
	if len(found) != 8 { // two blocks zeroed or not, and one written or not
		t.Errorf("%d states, want 8: %v", len(found), found)
	}
}
