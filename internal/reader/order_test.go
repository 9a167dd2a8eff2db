package reader_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/reader"
	"github.com/virt-cow/virt-cow/internal/store"
)

// stopping is a device that stops before each read, or question for holes, and reads a chunk at a time.
type stopping struct {
	blockdev.Device
	stop  func()
	piece int64
}

func (d stopping) ReadAt(p []byte, off int64) (int, error) {
	for at := int64(0); at < int64(len(p)); at += d.piece {
		d.stop()
		if _, err := d.Device.ReadAt(p[at:min(at+d.piece, int64(len(p)))], off+at); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func (d stopping) Extents(off, length int64) ([]blockdev.Extent, error) {
	d.stop()
	return d.Device.Extents(off, length)
}

// every runs f for all sequences of choices.
func every(f func(choose func(n int) int)) (runs int) {
	var trail, sizes []int
	for {
		at := 0
		f(func(n int) int {
			if at == len(trail) {
				trail, sizes = append(trail, 0), append(sizes, n)
			}
			at++
			return trail[at-1]
		})
		runs++
		for at--; at >= 0 && trail[at]+1 == sizes[at]; at-- {
		}
		if at < 0 {
			return runs
		}
		trail, sizes = trail[:at+1], sizes[:at+1]
		trail[at]++
	}
}

// script is a writer of two chunks, step by step as docs/BACKUP.md has it: the first is saved and overwritten, the second, a
// hole, is written after the snapshot was broken.
func script(tb testing.TB, r *rig) []func() {
	tb.Helper()
	snapshot, err := store.OpenSnapshot(r.snapshot)
	check(tb, err)
	saved, err := snapshot.Data()
	check(tb, err)
	st, err := store.Open(r.store)
	check(tb, err)
	var origin blockdev.Device = r.origin
	if origin == nil {
		origin, err = st.Data()
		check(tb, err)
	}
	put := func(dev blockdev.Device, p []byte, off int64) func() {
		return func() { _, err := dev.WriteAt(p, off); check(tb, err) }
	}
	one := make([]byte, store.LeafFlags)
	one[0] = 1
	return []func(){
		put(saved, r.image[:r.chunk], 0),
		func() { check(tb, r.snapshot.Flush()) },
		func() { check(tb, snapshot.WriteLeaves([]store.Leaf{{Index: 0, Flags: one}})) },
		put(origin, pattern(r.chunk, 50), 0),
		func() { check(tb, origin.WriteZeroes(0, r.chunk, true)) },
		func() {
			check(tb, st.SetSnapshot(r.id, func(e *cowfmt.StackEntry) { e.State = cowfmt.StackBroken }))
		},
		put(origin, pattern(r.chunk, 52), r.chunk),
	}
}

// list has the header list the snapshot as active, with no engine.
func (r *rig) list(tb testing.TB) {
	tb.Helper()
	r.header(tb, func(h *cowfmt.Header) {
		h.Stack = []cowfmt.StackEntry{{
			Kind: cowfmt.StackSnapshot, State: cowfmt.StackActive, UUID: r.id, CutID: r.cut,
			Locator: cowfmt.Locator{Kind: cowfmt.LocatorStore, Address: "/snapshot"},
		}}
		s, err := store.OpenSnapshot(r.snapshot)
		check(tb, err)
		h.Stack[0].Generation = s.Header().Generation
	})
}

// The real reader between any two steps of a writer: what its last look calls good is as of the cut, what it says to be zeros too.
func TestEveryInterleaving(t *testing.T) {
	const chunk = 4096
	for _, s := range []shape{
		{name: "raw disk", size: 2 * chunk, chunk: chunk},
		{name: "clone", clone: true, size: 2 * chunk, chunk: chunk, master: chunk},
	} {
		t.Run(s.name, func(t *testing.T) {
			base := s.disks(t, memory)
			base.list(t)
			base.image = make([]byte, s.size)
			if s.clone { // the first chunk is in the store at the cut
				copy(base.image, pattern(chunk, 40))
				one := make([]byte, store.LeafFlags)
				one[0] = 1
				snapshot, err := store.OpenSnapshot(base.snapshot)
				check(t, err)
				check(t, snapshot.WriteFrozen([]store.Leaf{{Index: 0, Flags: one}}))
				st, err := store.Open(base.store)
				check(t, err)
				data, err := st.Data()
				check(t, err)
				_, err = data.WriteAt(base.image[:chunk], 0)
				check(t, err)
			} else {
				_, err := base.origin.ReadAt(base.image, 0)
				check(t, err)
			}
			for what, ask := range map[string]func(v *reader.View) bool{
				"data": func(v *reader.View) bool {
					p := make([]byte, s.size)
					_, err := v.ReadAt(p, 0)
					check(t, err)
					return bytes.Equal(p, base.image)
				},
				"holes": func(v *reader.View) bool {
					err := base.zeros(v, 0, s.size)
					if !errors.Is(err, errWrong) {
						check(t, err)
					}
					return err == nil
				},
			} {
				good, broken := 0, 0
				runs := every(func(choose func(int) int) {
					r := *base
					right, left, err := r.beside(t, choose, ask)
					switch {
					case errors.Is(err, reader.ErrBroken):
						broken++
					case err != nil:
						t.Fatal(err)
					case !right:
						t.Fatalf("%s not as of the cut, with %d steps to come", what, left)
					default:
						good++
					}
				})
				t.Logf("%s: %d interleavings: %d good, %d broken", what, runs, good, broken)
				if good == 0 || broken == 0 {
					t.Error("all of one kind")
				}
			}
		})
	}
}

// beside asks a new view of fresh disks, and then has it look, while the script goes on as chosen.
func (r *rig) beside(t *testing.T, choose func(int) int, ask func(*reader.View) bool) (right bool, left int, err error) {
	for _, d := range r.devices() {
		*d = (*d).(*blockdevtest.Memory).Fork()
	}
	steps := script(t, r)
	stop := func() {}
	c := r.config()
	c.Volume, c.Snapshot = stopping{c.Volume, func() { stop() }, 1 << 20}, stopping{c.Snapshot, func() { stop() }, r.chunk}
	if c.Origin != nil {
		c.Origin = stopping{c.Origin, func() { stop() }, r.chunk}
	}
	v, err := reader.Open(background, c)
	check(t, err)
	stop = func() {
		for range choose(len(steps) + 1) {
			steps[0]()
			steps = steps[1:]
		}
	}
	right = ask(v)
	_, err = v.Verify(background, 0)
	return right, len(steps), err
}
