package reader

import (
	"flag"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"strings"
	"testing"
)

var (
	deep  = flag.Bool("reader.deep", false, "explore with larger bounds, for minutes")
	walks = flag.Int("reader.walks", 200, "random walks")
	limit = flag.Int("reader.states", 30_000_000, "states at most")
	seed  = flag.Uint64("reader.seed", 0, "of the random walks; 0: a new one")
)

// found is what an exploration came to.
type found struct {
	states int
	good   int // states in which the reader has read all, and called it good
	bad    string
	trace  []string
	full   bool // the limit was reached first
}

// explore goes breadth first through all that can happen, up to the first broken promise.
func (m *model) explore(limit int) (f found) {
	type origin struct{ parent, nth int32 }
	hash := maphash.MakeSeed()
	seen := map[uint64]struct{}{maphash.Comparable(hash, m.start): {}}
	from := []origin{{-1, 0}}
	todo, base := []world{m.start}, 0 // base: number of the first in todo
	for len(todo) > 0 && f.bad == "" && !f.full {
		var next []world
		for i := range todo {
			nth := int32(-1)
			if m.finished(&todo[i]) {
				f.good++
			}
			m.next(&todo[i], func(_ string, _ int8, _ kind, n *world) {
				nth++
				if f.bad != "" {
					return
				}
				key := maphash.Comparable(hash, *n)
				if _, known := seen[key]; known {
					return
				}
				seen[key] = struct{}{}
				from = append(from, origin{int32(base + i), nth})
				next = append(next, *n)
				f.bad = n.bad
			})
			if f.bad != "" {
				break
			}
		}
		base += len(todo)
		todo, f.full = next, len(from) > limit
	}
	f.states = len(from)
	if f.bad == "" {
		return f
	}
	var way []int32
	for i := int32(len(from) - 1); from[i].parent >= 0; i = from[i].parent {
		way = append([]int32{from[i].nth}, way...)
	}
	w := m.start
	for _, nth := range way {
		var to world
		n := int32(-1)
		m.next(&w, func(what string, who int8, _ kind, next *world) {
			if n++; n == nth {
				f.trace, to = append(f.trace, label(what, who)), *next
			}
		})
		w = to
	}
	return f
}

// play takes the steps named.
func play(t *testing.T, m *model, names ...string) {
	t.Helper()
	for _, name := range names {
		w, found := m.start, false
		m.next(&w, func(what string, who int8, _ kind, n *world) {
			if !found && label(what, who) == name {
				m.start, found = *n, true
			}
		})
		if !found {
			t.Fatalf("can't happen now: %s", name)
		}
	}
}

// finished says whether the reader has come to its end with a good image.
func (m *model) finished(w *world) bool {
	return int(w.r.at) == len(m.program())-1 && int(w.r.judged) == m.chunks
}

func label(what string, who int8) string {
	return fmt.Sprintf("%c: %s", "ABR"[who], what)
}

// walk takes steps at random, faults seldom, and says what was broken and how.
func (m *model) walk(r *rand.Rand, most int) (bad string, good bool, trace []string) {
	w := m.start
	for range most {
		var choices []world
		var labels []string
		var weights []int
		sum := 0
		m.next(&w, func(what string, who int8, k kind, n *world) {
			weight := 12
			if k == fault {
				weight = 1
			}
			sum += weight
			choices, labels, weights = append(choices, *n), append(labels, label(what, who)), append(weights, weight)
		})
		if sum == 0 {
			break
		}
		pick, i := r.IntN(sum), 0
		for pick >= weights[i] {
			pick -= weights[i]
			i++
		}
		w, trace = choices[i], append(trace, labels[i])
		good = good || m.finished(&w)
		if w.bad != "" {
			break
		}
	}
	return w.bad, good, trace
}

// TestExplore goes through every interleaving, with faults at any step.
func TestExplore(t *testing.T) {
	for _, c := range []struct {
		name     string
		m        *model
		moves    int
		reqs     int
		onlyDeep bool
	}{
		{"linear, two writes, a fault", newModel(false, 1, 1, 1, 2, 1), 0, 1, false},
		{"linear, two chunks, a write", newModel(false, 2, 1, 1, 1, 0), 0, 1, false},
		{"linear, torn chunks", newModel(false, 1, 2, 1, 1, 1), 0, 1, false},
		{"linear, a hand-over", newModel(false, 1, 1, 1, 2, 0), 1, 1, false},
		{"linear, the cut, a fault", newModel(false, 1, 1, 1, 1, 1).withCut(), 0, 1, true},
		{"clone, a write", newModel(true, 2, 1, 1, 1, 0), 0, 1, false},
		{"clone, the cut", newModel(true, 2, 1, 1, 1, 0).withCut(), 0, 1, false},
		{"clone, a write, a fault", newModel(true, 2, 1, 1, 1, 1), 0, 1, true},
		{"linear, two chunks, a write, a fault", newModel(false, 2, 1, 1, 1, 1), 0, 1, true},
		{"linear, two chunks, two writes, a fault", newModel(false, 2, 1, 1, 2, 1), 0, 1, true},
		{"linear, a hand-over, a fault", newModel(false, 1, 1, 1, 1, 1), 1, 1, true},
		{"linear, two chunks, a hand-over", newModel(false, 2, 1, 1, 1, 0), 1, 1, true},
		{"linear, two writes, two faults", newModel(false, 1, 1, 1, 2, 2), 0, 1, true},
		{"linear, two chunks, two requests at once, a fault", newModel(false, 2, 1, 1, 2, 1), 0, 2, true},
		{"linear, two snapshots, a fault", newModel(false, 1, 1, 2, 2, 1), 0, 1, true},
		{"linear, torn chunks, three faults", newModel(false, 1, 2, 1, 1, 3), 0, 1, true},
		{"linear, there and back, a fault", newModel(false, 1, 1, 1, 2, 1), 2, 1, true},
		{"clone, the cut, a fault", newModel(true, 2, 1, 1, 1, 1).withCut(), 0, 1, true},
		{"clone, the second cut", newModel(true, 2, 1, 2, 1, 0).withCut(), 0, 1, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.onlyDeep && !*deep {
				t.Skip("-reader.deep")
			}
			c.m.start.moves, c.m.reqs = uint8(c.moves), c.reqs
			f := c.m.explore(*limit)
			t.Logf("%d states, %d of them with all read and good", f.states, f.good)
			switch {
			case f.bad != "":
				t.Errorf("%s\n%s", f.bad, strings.Join(f.trace, "\n"))
			case f.full:
				t.Error("more states than the limit")
			case f.good == 0:
				t.Error("the reader never comes to a good end")
			}
		})
	}
}

// TestWalks goes at random through long runs of a larger model.
func TestWalks(t *testing.T) {
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	steps, ends := 0, 0
	for i := range *walks {
		m := newModel(i%2 == 0, 2, 2, 2, 8, 3)
		if i%3 == 0 {
			m.withCut()
		}
		m.reqs, m.start.moves = 2, 3
		bad, good, trace := m.walk(rand.New(rand.NewPCG(s, uint64(i))), 400)
		steps += len(trace)
		if good {
			ends++
		}
		if bad != "" {
			t.Fatalf("seed %d, walk %d: %s\n%s", s, i, bad, strings.Join(trace, "\n"))
		}
	}
	t.Logf("seed %d: %d steps, %d walks with all read and good", s, steps, ends)
	if *walks > 100 && ends == 0 {
		t.Error("the reader never comes to a good end")
	}
}
