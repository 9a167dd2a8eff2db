package blockdevtest

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func newCrash(sectors int64) *Crash {
	return NewCrash(NewMemory("disk", sectors*sectorSize, 512), CrashOptions{})
}

// allStates returns the first bytes of the first n sectors of each state, sorted, each once; it fails for
// a sector that is a mixture.
func allStates(t fatal, c *Crash, n, max int) []string {
	t.Helper()
	found := map[string]bool{}
	for m := range c.States(max) {
		p := mustRead(t, m, 0, int64(n)*sectorSize)
		for i := 0; i < len(p); i += sectorSize {
			if bytes.Count(p[i:i+sectorSize], p[i:i+1]) != sectorSize {
				t.Fatalf("sector %d is a mixture", i/sectorSize)
			}
		}
		found[strings.ReplaceAll(firstBytes(t, m, n), "\x00", ".")] = true
	}
	return slices.Sorted(maps.Keys(found))
}

func expectStates(t fatal, c *Crash, n int, want ...string) {
	t.Helper()
	if got := allStates(t, c, n, 1000); !slices.Equal(got, want) {
		t.Fatalf("states %q, want %q", got, want)
	}
}

func TestCrashStates(t *testing.T) {
	c := newCrash(64)
	expectStates(t, c, 3, "...")
	mustWrite(t, c, filled('a', 1024), 0)
	expectStates(t, c, 3, "...", ".a.", "a..", "aa.")
	mustWrite(t, c, filled('b', 1024), 512) // sector 1 has two versions now, and the older may win
	expectStates(t, c, 3, "...", "..b", ".a.", ".ab", ".b.", ".bb", "a..", "a.b", "aa.", "aab", "ab.", "abb")
	if got := c.Moment().Count(1000); got != 12 {
		t.Errorf("Count %d, want 12", got)
	}
	mustFlush(t, c)
	expectStates(t, c, 3, "abb")
	if err := c.WriteZeroes(0, 64*512, true); err != nil {
		t.Fatal(err)
	}
	expectStates(t, c, 3, "...", "..b", ".b.", ".bb", "a..", "a.b", "ab.", "abb")
	mustWrite(t, c, filled('c', 512), 0)
	if got := c.Moment().Count(1000); got != 12 { // sector 0: a, zeros or c
		t.Errorf("Count %d, want 12", got)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if got := c.Moment().Count(1000); got != 12 {
		t.Errorf("Count after Close %d, want 12: closing is not flushing", got)
	}
}

// TestPowerCutReachesEveryState draws until each of the states was seen.
func TestPowerCutReachesEveryState(t *testing.T) {
	c := newCrash(64)
	mustWrite(t, c, filled('a', 1024), 0)
	mustWrite(t, c, filled('b', 1024), 0)
	mustWrite(t, c, filled('c', 512), 512)
	rng := rand.New(rand.NewPCG(1, 1))
	seen := map[string]int{}
	for range 10_000 {
		seen[strings.ReplaceAll(firstBytes(t, c.PowerCut(rng), 2), "\x00", ".")]++
	}
	for _, first := range ".ab" {
		for _, second := range ".abc" {
			if s := string(first) + string(second); seen[s] < 100 {
				t.Errorf("state %q in %d of 10000 power cuts", s, seen[s])
			}
		}
	}
	if len(seen) != 12 {
		t.Errorf("%d states, want 12: %v", len(seen), seen)
	}
	if got := firstBytes(t, c.PowerCut(nothingLands{}), 2); got != "\x00\x00" {
		t.Errorf("a chooser of zeros: %q, want nothing to have landed", got)
	}
}

func TestCrashAtomicUnit(t *testing.T) {
	m := NewMemory("disk", 64<<10, 4096)
	for unit, want := range map[int]int{512: 1 << 16, 1024: 1 << 8, 4096: 1 << 2} {
		c := NewCrash(m, CrashOptions{AtomicUnit: unit})
		mustWrite(t, c, filled('a', 8192), 4096)
		if got := c.Moment().Count(1 << 20); got != want {
			t.Errorf("unit %d: %d states, want %d", unit, got, want)
		}
		seen := 0
		for s := range c.States(1 << 20) {
			seen++
			p := firstBytes(t, s, 32)
			for i := 0; i < 32; i += unit / 512 {
				if part := p[i : i+unit/512]; strings.Count(part, part[:1]) != len(part) {
					t.Fatalf("unit %d torn: %q", unit, p)
				}
			}
		}
		if seen != want {
			t.Errorf("unit %d: States gave %d, want %d", unit, seen, want)
		}
	}
}

// TestCrashModel does random operations and checks random power cuts against the set of legal versions
// of each sector, kept independently.
func TestCrashModel(t *testing.T) {
	const sectors = 24
	var torn, none, all, between int
	rapid.Check(t, func(t *rapid.T) {
		c := newCrash(sectors)
		var legal [sectors][]byte // durable, then what was written since
		for i := range legal {
			legal[i] = []byte{0}
		}
		stamp := byte(0)
		set := func(off, length int, v byte) {
			for i := off; i < off+length; i++ {
				legal[i] = append(legal[i], v)
			}
		}
		draw := func(t *rapid.T) (int, int) {
			off := rapid.IntRange(0, sectors-1).Draw(t, "sector")
			return off, rapid.IntRange(1, sectors-off).Draw(t, "sectors")
		}
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				off, length := draw(t)
				stamp++
				mustWrite(t, c, filled(stamp, length*512), int64(off)*512)
				set(off, length, stamp)
			},
			"zero": func(t *rapid.T) {
				off, length := draw(t)
				if err := c.WriteZeroes(int64(off)*512, int64(length)*512, rapid.Bool().Draw(t, "unmap")); err != nil {
					t.Fatal(err)
				}
				set(off, length, 0)
			},
			"flush": func(t *rapid.T) {
				mustFlush(t, c)
				for i := range legal {
					legal[i] = legal[i][len(legal[i])-1:]
				}
			},
			"": func(t *rapid.T) {
				rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "cut"), 0))
				for range 8 {
					s := firstBytes(t, c.PowerCut(rng), sectors)
					oldest, newest := 0, 0
					for i, l := range legal {
						if !slices.Contains(l, s[i]) {
							t.Fatalf("sector %d is %d, legal are %d", i, s[i], l)
						}
						if s[i] == l[0] {
							oldest++
						}
						if s[i] == l[len(l)-1] {
							newest++
						} else if s[i] != l[0] {
							between++
						}
					}
					switch {
					case oldest == sectors:
						none++
					case newest == sectors:
						all++
					default:
						torn++
					}
				}
			},
		})
		for i, l := range legal {
			if got := mustRead(t, c, int64(i)*512, 512)[511]; got != l[len(l)-1] {
				t.Fatalf("sector %d reads %d, the last write was %d", i, got, l[len(l)-1])
			}
		}
	})
	if torn == 0 || none == 0 || all == 0 || between == 0 {
		t.Errorf("states: %d torn, %d with nothing, %d with everything; sectors with a version between: %d; want some of each",
			torn, none, all, between)
	}
}

// TestCrashOverlap checks that a flush promises nothing about writes it overlaps.
func TestCrashOverlap(t *testing.T) {
	t.Run("write inside a flush", func(t *testing.T) {
		c := newCrash(64)
		mustWrite(t, c, filled('a', 512), 0)
		c.OnFlush = func(int) { mustWrite(t, c, filled('b', 1024), 0) }
		mustFlush(t, c)
		expectStates(t, c, 2, "a.", "ab", "b.", "bb")
		c.OnFlush = nil
		mustFlush(t, c)
		expectStates(t, c, 2, "bb")
	})
	t.Run("flush inside a write", func(t *testing.T) {
		c := newCrash(64)
		c.OnOp = func(n int, _ string, _, _ int64) {
			if n == 1 {
				mustFlush(t, c)
				mustWrite(t, c, filled('b', 512), 0)
				mustFlush(t, c)
				expectStates(t, c, 2, "a.", "aa", "b.", "ba") // the write in flight may still land
			}
		}
		mustWrite(t, c, filled('a', 1024), 0)
		expectStates(t, c, 2, "a.", "aa", "b.", "ba")
	})
	t.Run("write from before to inside a flush", func(t *testing.T) {
		c := newCrash(64)
		issued, land := make(chan bool), make(chan bool)
		done := make(chan error)
		c.OnOp = func(_ int, op string, _, _ int64) {
			if op == "write" {
				close(issued)
				<-land
			}
		}
		c.OnFlush = func(int) {
			close(land)
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		go func() {
			_, err := c.WriteAt(filled('a', 512), 0)
			done <- err
		}()
		<-issued
		mustFlush(t, c)
		expectStates(t, c, 1, ".", "a")
	})
}
