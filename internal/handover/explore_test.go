package handover

import (
	"flag"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"strings"
	"testing"
)

var (
	deep  = flag.Bool("handover.deep", false, "explore with larger bounds, for minutes")
	walks = flag.Int("handover.walks", 20000, "random walks with three hosts")
	seed  = flag.Uint64("handover.seed", 0, "of the random walks; 0: a new one")
)

// found is what an exploration came to.
type found struct {
	states int
	bad    string
	trace  []label
	ends   map[string]int
	stuck  []label // how a state is reached from which nothing good is
	full   bool    // the limit was reached first
}

func trace(t []label) string {
	var b strings.Builder
	for i, l := range t {
		fmt.Fprintf(&b, "%3d  %c: %s\n", i+1, 'A'+rune(l.host), l.what)
	}
	return b.String()
}

// explore goes breadth first through all that can happen, up to the first broken promise. If ends are asked for, it then looks
// from which states no end is reached once no fault and no operator comes any more.
func (m *model) explore(limit int, ends bool) found {
	type node struct {
		w      world
		parent int32
		by     label
	}
	hash := maphash.MakeSeed()
	ids := map[uint64]int32{maphash.Comparable(hash, m.start): 0}
	nodes := []node{{w: m.start, parent: -1}}
	var edges [][2]int32
	way := func(i int32) (t []label) {
		for ; nodes[i].parent >= 0; i = nodes[i].parent {
			t = append([]label{nodes[i].by}, t...)
		}
		return t
	}
	f := found{ends: map[string]int{}}
	for i := int32(0); int(i) < len(nodes) && f.bad == ""; i++ {
		w := nodes[i].w
		m.next(&w, func(l label, k kind, n *world) {
			key := maphash.Comparable(hash, *n)
			id, seen := ids[key]
			if !seen {
				id = int32(len(nodes))
				ids[key] = id
				nodes = append(nodes, node{*n, i, l})
			}
			if ends && k == usual && id != i {
				edges = append(edges, [2]int32{i, id})
			}
			if n.bad != "" && f.bad == "" {
				f.bad, f.trace = n.bad, append(way(i), l)
			}
		})
		if len(nodes) > limit {
			f.full = true
			break
		}
	}
	f.states = len(nodes)
	if !ends || f.bad != "" || f.full {
		return f
	}
	// Backwards from the ends.
	first := make([]int32, len(nodes)+1)
	for _, e := range edges {
		first[e[1]+1]++
	}
	for i := range nodes {
		first[i+1] += first[i]
	}
	back := make([]int32, len(edges))
	fill := append([]int32(nil), first...)
	for _, e := range edges {
		back[fill[e[1]]] = e[0]
		fill[e[1]]++
	}
	reaches := make([]bool, len(nodes))
	var todo []int32
	for i := range nodes {
		if e := m.end(&nodes[i].w); e != "" {
			f.ends[e]++
			reaches[i] = true
			todo = append(todo, int32(i))
		}
	}
	for len(todo) > 0 {
		i := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, p := range back[first[i]:first[i+1]] {
			if !reaches[p] {
				reaches[p] = true
				todo = append(todo, p)
			}
		}
	}
	for i := range nodes {
		if !reaches[i] {
			f.stuck = way(int32(i))
			break
		}
	}
	return f
}

// walk takes steps at random, and says what was broken and how.
func (m *model) walk(r *rand.Rand, most int) (bad string, t []label) {
	w := m.start
	for range most {
		var choices []world
		var labels []label
		var weights []int
		sum := 0
		m.next(&w, func(l label, k kind, n *world) {
			weight := 8
			if k != usual {
				weight = 1
			}
			sum += weight
			choices, labels, weights = append(choices, *n), append(labels, l), append(weights, weight)
		})
		if sum == 0 {
			return "", t
		}
		pick, i := r.IntN(sum), 0
		for pick >= weights[i] {
			pick -= weights[i]
			i++
		}
		t = append(t, labels[i])
		w = choices[i]
		if w.bad != "" {
			return w.bad, t
		}
	}
	return "", t
}

// TestExplore goes through every interleaving of a migration between two hosts, with faults at any step.
func TestExplore(t *testing.T) {
	for _, c := range []struct {
		name                       string
		migrations, writes, faults int
		dirty, mirror, onlyDeep    bool
	}{
		{"one migration, one fault", 1, 2, 1, false, false, false},
		{"written before, one fault", 1, 1, 1, true, false, false},
		{"copy-storage-all", 1, 1, 2, false, true, false},
		{"two migrations, no fault", 2, 2, 0, false, false, false},
		{"one migration, two faults", 1, 2, 2, false, false, true},
		{"two migrations, one fault", 2, 2, 1, true, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.onlyDeep && !*deep {
				t.Skip("-handover.deep")
			}
			m := newModel(2, c.migrations, c.writes, c.faults, c.dirty)
			m.mirror = c.mirror
			f := m.explore(40_000_000, true)
			t.Logf("%d states, ends %v", f.states, f.ends)
			switch {
			case f.bad != "":
				t.Errorf("%s\n%s", f.bad, trace(f.trace))
			case f.full:
				t.Error("more states than the limit")
			case f.stuck != nil:
				t.Errorf("nothing good is reached any more:\n%s", trace(f.stuck))
			case f.ends["good"] == 0:
				t.Error("no good end")
			}
		})
	}
}

// TestWalks goes at random through long runs with three hosts.
func TestWalks(t *testing.T) {
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	steps := 0
	for i := range *walks {
		r := rand.New(rand.NewPCG(s, uint64(i)))
		m := newModel(3, 4, 6, 4, i%2 == 0)
		m.mirror = i%3 == 0
		m.start.fences = 3
		bad, tr := m.walk(r, 600)
		steps += len(tr)
		if bad != "" {
			t.Fatalf("seed %d, walk %d: %s\n%s", s, i, bad, trace(tr))
		}
	}
	t.Logf("seed %d: %d steps", s, steps)
}
