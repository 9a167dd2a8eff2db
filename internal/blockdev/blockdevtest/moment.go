package blockdevtest

import (
	"cmp"
	"slices"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// Moment is one instant of a Crash disk: what is durable and, for each atomic unit that is more than
// that, its versions. It stays as it is while the disk goes on, and may be used by several goroutines.
type Moment struct {
	info    blockdev.Info
	unit    int64
	durable *image   // nobody changes it
	writes  []*write // landed ones in the order of landing, then those in flight in the order of issue

	// Unit units[i] (offset / unit) has versions writes[v] for each v of order[start[i]:start[i+1]], and
	// the durable one besides.
	units []int64
	start []int32
	order []int32
}

// Moment returns the present instant.
func (c *Crash) Moment() *Moment {
	return Moments(c)[0]
}

// Moments returns one instant of several disks, as when they lose their power together.
func Moments(devices ...*Crash) []*Moment {
	// Openings of one disk share its lock, and two callers must take the locks in one order.
	disks := make([]*crashDisk, 0, len(devices))
	for _, c := range devices {
		if !slices.Contains(disks, c.disk) {
			disks = append(disks, c.disk)
		}
	}
	slices.SortFunc(disks, func(a, b *crashDisk) int { return cmp.Compare(a.id, b.id) })
	for _, d := range disks {
		d.mu.Lock()
		defer d.mu.Unlock()
	}
	out := make([]*Moment, len(devices))
	for i, c := range devices {
		if c.disk.moment == nil {
			c.disk.moment = c.disk.newMoment()
		}
		out[i] = c.disk.moment
	}
	return out
}

// newMoment sorts the versions by unit: it numbers the units, counts their versions and lays them out.
func (d *crashDisk) newMoment() *Moment {
	m := &Moment{info: d.info, unit: d.unit, durable: d.durable.fork(), writes: slices.Concat(d.log, d.flying)}
	x := newUnitIndex(d.info.Size, d.unit)
	var counts []int32
	number := func(u int64) *int32 {
		p := x.at(u)
		if *p == 0 {
			m.units, counts = append(m.units, u), append(counts, 0)
			*p = int32(len(m.units))
		}
		return &counts[*p-1]
	}
	var zeroes []int
	for n, w := range m.writes {
		if !w.zero {
			for u := w.off / d.unit; u < (w.off+w.length)/d.unit; u++ {
				*number(u)++
			}
			continue
		}
		zeroes = append(zeroes, n)
		// Only where there is something to zero, now or in another version, is there a choice.
		for _, e := range d.durable.extents(w.off, w.length) {
			for u := e.Offset / d.unit; !e.Zero && u <= (e.Offset+e.Length-1)/d.unit; u++ {
				number(u)
			}
		}
	}
	for _, n := range zeroes {
		m.eachUnit(x, m.writes[n], func(i int32) { counts[i]++ })
	}
	m.start = make([]int32, len(counts)+1)
	for i, n := range counts {
		m.start[i+1] = m.start[i] + n
	}
	m.order = make([]int32, m.start[len(counts)])
	next := slices.Clone(m.start)
	for n, w := range m.writes {
		m.eachUnit(x, w, func(i int32) {
			m.order[next[i]] = int32(n)
			next[i]++
		})
	}
	return m
}

// eachUnit calls fn with the place in units of every numbered unit that w covers.
func (m *Moment) eachUnit(x *unitIndex, w *write, fn func(i int32)) {
	first, end := w.off/m.unit, (w.off+w.length)/m.unit
	if end-first > int64(len(m.units)) {
		for i, u := range m.units {
			if first <= u && u < end {
				fn(int32(i))
			}
		}
		return
	}
	for u := first; u < end; u++ {
		if i := *x.at(u); i != 0 {
			fn(i - 1)
		}
	}
}

// unitIndex finds the place of a unit in Moment.units, plus one; zero if it has none.
type unitIndex struct {
	dense  []int32 // of a small device; otherwise
	sparse map[int64]*[leafSectors]int32
}

func newUnitIndex(size, unit int64) *unitIndex {
	const small = 1 << 14
	if size/unit <= small {
		return &unitIndex{dense: make([]int32, size/unit)}
	}
	return &unitIndex{sparse: map[int64]*[leafSectors]int32{}}
}

func (x *unitIndex) at(u int64) *int32 {
	if x.dense != nil {
		return &x.dense[u]
	}
	l := x.sparse[u/leafSectors]
	if l == nil {
		l = new([leafSectors]int32)
		x.sparse[u/leafSectors] = l
	}
	return &l[u%leafSectors]
}

// versions returns the writes that unit i may hold, as places in writes, oldest first.
func (m *Moment) versions(i int) []int32 { return m.order[m.start[i]:m.start[i+1]] }

// state builds the device where unit i holds version pick(i, its versions), counted from 1, or what is
// durable for 0.
func (m *Moment) state(pick func(i int, versions []int32) int) *Memory {
	im := m.durable.copyFrozen()
	for i, u := range m.units {
		v := m.versions(i)
		if k := pick(i, v); k > 0 {
			m.writes[v[k-1]].apply(im, u*m.unit, m.unit)
		}
	}
	return memoryOf(m.info, im)
}

// whole builds the device where of each write all or nothing landed, in their order.
func (m *Moment) whole(landed func(w int) bool) *Memory {
	return m.state(func(_ int, versions []int32) int {
		for k := len(versions); k > 0; k-- {
			if landed(int(versions[k-1])) {
				return k
			}
		}
		return 0
	})
}
