package blockdevtest

import (
	"iter"
	"math/rand/v2"
)

// Chooser decides a power cut: IntN returns 0 to n-1. A *rand.Rand is one. One that always returns 0
// chooses the state where nothing landed.
type Chooser interface {
	IntN(n int) int
}

// PowerCut returns the disk as one power cut at this instant could leave it. c goes on as if nothing had
// happened.
func (c *Crash) PowerCut(choose Chooser) *Memory { return c.Moment().PowerCut(choose) }

// States returns disks as power cuts at this instant could leave them; see Moment.States.
func (c *Crash) States(max int) iter.Seq[*Memory] { return c.Moment().States(max) }

// PowerCut returns the disk as one power cut could leave it. Every legal state can come out. An even
// choice a unit alone would hardly ever lose a single write of many, so half of the time another kind of
// choice is made.
func (m *Moment) PowerCut(choose Chooser) *Memory {
	even := func(_ int, v []int32) int { return choose.IntN(len(v) + 1) }
	switch choose.IntN(8) {
	case 4: // almost nothing is lost
		return m.state(func(i int, v []int32) int {
			if choose.IntN(16) > 0 {
				return len(v)
			}
			return even(i, v)
		})
	case 5: // almost everything is lost
		return m.state(func(i int, v []int32) int {
			if choose.IntN(16) > 0 {
				return 0
			}
			return even(i, v)
		})
	case 6: // writes don't tear
		landed := make([]bool, len(m.writes))
		for i := range landed {
			landed[i] = choose.IntN(2) == 1
		}
		return m.whole(func(w int) bool { return landed[w] })
	case 7: // writes land in order, and the last one tears
		last := int32(choose.IntN(len(m.writes) + 1))
		return m.state(func(_ int, v []int32) int {
			k := 0
			for k < len(v) && v[k] < last {
				k++
			}
			if k < len(v) && v[k] == last {
				k += choose.IntN(2)
			}
			return k
		})
	}
	return m.state(even)
}

// Count returns how many states there are, or limit if there are more.
func (m *Moment) Count(limit int) int {
	n := 1
	for i := range m.units {
		k := len(m.versions(i)) + 1
		if n > limit/k {
			return limit
		}
		n *= k
	}
	return min(n, limit)
}

// States returns every legal state once if there are at most max of them. Otherwise max of them, the
// same at every call: nothing landed; all did; only the last write; all but the first; all but the last;
// only the first; then each of writes-in-order-up-to-here, all-but-this and only-this in turn, as far as
// half of max goes; then power cuts drawn from a fixed seed. Some of these may be equal.
func (m *Moment) States(max int) iter.Seq[*Memory] {
	if m.Count(max+1) <= max {
		return m.all
	}
	return func(yield func(*Memory) bool) {
		left := max
		if left < 1 {
			return
		}
		give := func(s *Memory) bool {
			left--
			return yield(s) && left > 0
		}
		for _, landed := range m.notable(max / 2) {
			if !give(m.whole(landed)) {
				return
			}
		}
		rng := rand.New(rand.NewPCG(1, 2))
		for give(m.PowerCut(rng)) {
		}
	}
}

// all yields every state once, counting through the versions of the units.
func (m *Moment) all(yield func(*Memory) bool) {
	picks := make([]int, len(m.units))
	for {
		if !yield(m.state(func(i int, _ []int32) int { return picks[i] })) {
			return
		}
		i := 0
		for ; i < len(picks); i++ {
			if picks[i]++; picks[i] <= len(m.versions(i)) {
				break
			}
			picks[i] = 0
		}
		if i == len(picks) {
			return
		}
	}
}

// notable returns the subsets of writes that go first: six of them, and up to limit in all.
func (m *Moment) notable(limit int) []func(w int) bool {
	last := len(m.writes) - 1
	sets := []func(w int) bool{
		func(int) bool { return false },
		func(int) bool { return true },
		func(w int) bool { return w == last },
		func(w int) bool { return w != 0 },
		func(w int) bool { return w != last },
		func(w int) bool { return w == 0 },
	}
	// Where there are too many writes, every stride-th has its turn.
	stride := 1 + 3*len(m.writes)/max(1, limit-len(sets))
	for at := 0; at <= last && len(sets)+3 <= limit; at += stride {
		sets = append(sets,
			func(w int) bool { return w <= at },
			func(w int) bool { return w != at },
			func(w int) bool { return w == at })
	}
	return sets
}
