package reader_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/reader"
	"github.com/virt-cow/virt-cow/internal/store"
)

func TestConformance(t *testing.T) {
	for _, s := range shapes {
		t.Run(s.name, func(t *testing.T) {
			r := s.disks(t, memory)
			r.snap(t)
			blockdevtest.Conformance(t, func(t *testing.T) blockdev.Device { return r.view(t) })
			check(t, r.v.Close())
		})
	}
}

// The view stays as it is whatever the guest does, in any piece, and after the volume was closed, cut loose and opened again.
func TestView(t *testing.T) {
	for _, s := range shapes {
		t.Run(s.name, func(t *testing.T) {
			r := s.disks(t, memory)
			r.snap(t)
			v := r.view(t)
			rng := rand.New(rand.NewPCG(5, 5))
			for range 40 {
				r.change(t, rng)
				check(t, r.whole(v))
				sectors := s.size / 512
				n := 1 + rng.Int64N(sectors)
				off := rng.Int64N(sectors - n + 1)
				check(t, r.compare(v, off*512, n*512))
			}
			check(t, r.v.Close())
			check(t, r.whole(v))
			r.open(t)
			if s.clone {
				check(t, r.v.StartHydration())
				for !r.v.Header().CutLoose {
					time.Sleep(time.Millisecond)
				}
			}
			_, err := r.v.WriteAt(pattern(s.size, 99), 0)
			check(t, err)
			check(t, r.whole(v))
			check(t, r.whole(r.view(t)))
			check(t, r.v.Close())
			check(t, v.Close())
		})
	}
}

// Readers of pieces and a guest that does what it wants, all at once.
func TestBesideWriter(t *testing.T) {
	for _, s := range shapes {
		t.Run(s.name, func(t *testing.T) {
			r := s.disks(t, memory)
			r.snap(t)
			v := r.view(t)
			var guests, readers sync.WaitGroup
			stop := make(chan struct{})
			for n := range uint64(3) {
				guests.Go(func() {
					rng := rand.New(rand.NewPCG(n, 11))
					for {
						select {
						case <-stop:
							return
						default:
							if err := change(r.v, rng); err != nil {
								t.Error(err)
								return
							}
						}
					}
				})
			}
			for n := range uint64(3) {
				readers.Go(func() {
					rng := rand.New(rand.NewPCG(n, 12))
					for range 60 {
						n := 1 + rng.Int64N(s.size/512)
						off := rng.Int64N(s.size/512 - n + 1)
						err := r.compare(v, off*512, n*512)
						if err == nil {
							err = r.zeros(v, off*512, n*512)
						}
						if err == nil {
							_, err = v.Verify(background, 0)
						}
						if err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			readers.Wait()
			close(stop)
			guests.Wait()
			check(t, r.v.Close())
		})
	}
}

// The cursor, a break and the end of the snapshot are seen by the next look, and end the view where they must.
func TestEnds(t *testing.T) {
	s := shapes[0]
	look := func(v *reader.View, from int64) error { _, err := v.Verify(background, from); return err }
	read := func(v *reader.View, off int64) error { _, err := v.ReadAt(make([]byte, 512), off); return err }

	r := s.disks(t, memory)
	r.snap(t)
	mine, other, third := r.view(t), r.view(t), r.view(t)
	check(t, r.compare(mine, 0, 8192))
	check(t, look(mine, 0))
	check(t, r.v.SetCursor(t.Context(), r.id, 8192))
	_, err := r.v.WriteAt(pattern(8192, 3), 0)
	check(t, err)
	check(t, r.compare(mine, 8192, r.size-8192))
	check(t, look(mine, 8192))
	if err := read(mine, 0); !errors.Is(err, reader.ErrReleased) {
		t.Errorf("a read below the own cursor: %v", err)
	}
	_ = read(other, 0) // whatever it is
	if err := look(other, 0); !errors.Is(err, reader.ErrReleased) {
		t.Errorf("another one's cursor: %v", err)
	}
	if err := read(other, 8192); !errors.Is(err, reader.ErrReleased) {
		t.Errorf("a read after that: %v", err)
	}
	_ = read(third, 4096)
	if err := look(third, 8192); !errors.Is(err, reader.ErrReleased) {
		t.Errorf("another one's cursor, taken for its own: %v", err)
	}
	late := r.view(t)
	if late.Cursor() != 8192 {
		t.Errorf("cursor %d", late.Cursor())
	}
	if err := read(late, 4096); !errors.Is(err, reader.ErrReleased) {
		t.Errorf("a read below the cursor that was found: %v", err)
	}
	if _, err := late.Extents(0, 512); !errors.Is(err, reader.ErrReleased) {
		t.Errorf("extents below the cursor: %v", err)
	}
	check(t, r.whole(late))

	check(t, r.v.RemoveSnapshot(t.Context(), r.id))
	if err := look(mine, 8192); !errors.Is(err, reader.ErrGone) {
		t.Errorf("a snapshot that was taken away: %v", err)
	}
	if _, err := reader.Open(t.Context(), r.config()); !errors.Is(err, reader.ErrGone) {
		t.Errorf("opened: %v", err)
	}
	check(t, r.v.Close())

	r = s.disks(t, memory)
	r.snap(t)
	mine = r.view(t)
	r.header(t, func(h *cowfmt.Header) { h.Stack[0].State = cowfmt.StackBroken })
	if err := look(mine, 0); !errors.Is(err, reader.ErrBroken) {
		t.Errorf("a broken snapshot: %v", err)
	}
	if err := read(mine, 0); !errors.Is(err, reader.ErrBroken) {
		t.Errorf("a read after that: %v", err)
	}
	if _, err := reader.Open(t.Context(), r.config()); !errors.Is(err, reader.ErrBroken) {
		t.Errorf("opened: %v", err)
	}
}

// header closes the engine, and changes the header by hand.
func (r *rig) header(tb testing.TB, change func(*cowfmt.Header)) {
	tb.Helper()
	if r.v != nil {
		check(tb, r.v.Close())
		r.v = nil
	}
	st, err := store.Open(r.store)
	check(tb, err)
	check(tb, st.Update(change))
}

// What does not fit together is refused, whatever it is.
func TestOpenRefuses(t *testing.T) {
	linear, clone := shapes[0].disks(t, memory), shapes[2].disks(t, memory)
	linear.snap(t)
	clone.snap(t)
	for name, c := range map[string]struct {
		r      *rig
		change func(c *reader.Config)
		want   string
		is     error
	}{
		"another cut":            {linear, func(c *reader.Config) { c.Cut = uuid.New() }, "no snapshot", reader.ErrGone},
		"another snapshot":       {linear, func(c *reader.Config) { c.SnapshotUUID = uuid.New() }, "no snapshot", reader.ErrGone},
		"no disk":                {linear, func(c *reader.Config) { c.Origin = nil }, "the disk is not given", nil},
		"a short disk":           {linear, func(c *reader.Config) { c.Origin = memory("short", linear.size-512) }, "the volume", nil},
		"the volume as snapshot": {linear, func(c *reader.Config) { c.Snapshot = linear.store }, "not a snapshot", store.ErrNotSnapshot},
		"another volume":         {linear, func(c *reader.Config) { c.Volume = clone.store }, "no snapshot", reader.ErrGone},
		"another's snapshot":     {linear, func(c *reader.Config) { c.Snapshot = clone.snapshot }, "", reader.ErrGone},
		"a disk as volume":       {linear, func(c *reader.Config) { c.Volume = linear.origin }, "", reader.ErrGone},
		"no master":              {clone, func(c *reader.Config) { c.Master = nil }, "not given", nil},
		"another master":         {clone, func(c *reader.Config) { c.Master = memory("m", 512) }, "the master of the volume has", nil},
	} {
		t.Run(name, func(t *testing.T) {
			config := c.r.config()
			c.change(&config)
			_, err := reader.Open(t.Context(), config)
			if err == nil || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
				t.Error(err)
			}
		})
	}
	check(t, linear.v.Close())
	check(t, clone.v.Close())

	for state, want := range map[uint8]string{cowfmt.StackPending: "not made yet"} {
		r := shapes[0].disks(t, memory)
		r.header(t, func(h *cowfmt.Header) {
			h.Stack = []cowfmt.StackEntry{{
				Kind: cowfmt.StackSnapshot, State: state, UUID: r.id, CutID: r.cut, Generation: 1,
				Locator: cowfmt.Locator{Kind: cowfmt.LocatorStore, Address: "/snapshot"},
			}}
		})
		if _, err := reader.Open(t.Context(), r.config()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("state %d: %v", state, err)
		}
	}
}

// A header that is not whole in both copies proves nothing, but may pass.
func TestLookNeedsBothCopies(t *testing.T) {
	for i, off := range cowfmt.HeaderOffsets {
		r := shapes[0].disks(t, memory)
		r.snap(t)
		v := r.view(t)
		check(t, r.whole(v))
		copied := make([]byte, cowfmt.HeaderSize)
		_, err := r.store.ReadAt(copied, off)
		check(t, err)
		torn := append([]byte(nil), copied...)
		torn[300] ^= 1
		_, err = r.store.WriteAt(torn, off)
		check(t, err)
		_, err = v.Verify(t.Context(), 0)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("header copy %d", i)) || errors.Is(err, reader.ErrBroken) || errors.Is(err, reader.ErrGone) {
			t.Errorf("copy %d is torn: %v", i, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err = v.Verify(ctx, 0); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		_, err = r.store.WriteAt(copied, off)
		check(t, err)
		check(t, r.whole(v))
		check(t, r.v.Close())
	}
}

// Each operation of each device fails once: what is read all the same is right.
func TestFailures(t *testing.T) {
	for _, s := range shapes {
		r := s.disks(t, memory)
		r.snap(t)
		rng := rand.New(rand.NewPCG(3, 3))
		for range 10 {
			r.change(t, rng)
		}
		n := blockdevtest.EachFailure(t, blockdevtest.Rule{Ops: blockdevtest.Reads | blockdevtest.ExtentQueries}, func(n int, f *blockdevtest.Failure) {
			c := r.config()
			c.Volume, c.Snapshot = blockdevtest.NewFault(c.Volume, f), blockdevtest.NewFault(c.Snapshot, f)
			if c.Origin != nil {
				c.Origin = blockdevtest.NewFault(c.Origin, f)
			}
			if c.Master != nil {
				c.Master = blockdevtest.NewFault(c.Master, f)
			}
			v, err := reader.Open(t.Context(), c)
			if err != nil {
				return
			}
			if err = r.whole(v); errors.Is(err, errWrong) {
				t.Errorf("%s, operation %d: %v", s.name, n, err)
			}
			if err == nil {
				return
			}
			if err = r.whole(v); err != nil {
				t.Errorf("%s, after operation %d had failed: %v", s.name, n, err)
			}
		})
		if n < 5 {
			t.Errorf("%s: only %d operations", s.name, n)
		}
		check(t, r.v.Close())
	}
}
