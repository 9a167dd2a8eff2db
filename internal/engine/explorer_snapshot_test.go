package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// explored is a snapshot of the volume that is explored.
type explored struct {
	entry  cowfmt.StackEntry
	crash  *blockdevtest.Crash
	late   *blockdevtest.Late
	after  *blockdevtest.Memory // what the power cut left that happened
	want   []byte               // the window at the cut; nil: not made yet
	kept   bool                 // it must be active in the header
	cursor int64                // that was set for sure
}

// devices are all that a power cut hits at once, the volume's first.
func (x *explorer) devices() []*blockdevtest.Crash {
	out := []*blockdevtest.Crash{x.crash}
	for _, s := range x.snaps {
		out = append(out, s.crash)
	}
	return out
}

// left is what a power cut at one moment left of all devices; what is beside the volume's is kept for who opens that.
func (x *explorer) left(moments []*blockdevtest.Moment, rng *rand.Rand) *blockdevtest.Memory {
	state := moments[0].PowerCut(rng)
	x.beside = besideState{of: state, snapshots: map[uuid.UUID]*blockdevtest.Memory{}}
	for i, s := range x.snaps {
		x.beside.snapshots[s.entry.UUID] = moments[i+1].PowerCut(rng)
	}
	return state
}

// besideState is the snapshots' devices beside what a power cut left of the volume's.
type besideState struct {
	of        *blockdevtest.Memory
	snapshots map[uuid.UUID]*blockdevtest.Memory
}

// shelfOf is where the snapshots are that belong to a device of the volume's.
func (x *explorer) shelfOf(dev blockdev.Device) shelf {
	on := shelf{}
	for _, s := range x.snaps {
		var device blockdev.Device = s.crash
		if m, left := dev.(*blockdevtest.Memory); left && x.beside.of == m {
			device = x.beside.snapshots[s.entry.UUID]
		}
		if x.mutateSnapshot != nil {
			device = x.mutateSnapshot(device)
		}
		on[s.entry.UUID] = func() (blockdev.Device, error) { return device, nil }
	}
	return on
}

// snapshotStep makes, releases or removes a snapshot.
func (x *explorer) snapshotStep() error {
	switch n := x.rng.IntN(4); {
	case len(x.snaps) < x.world.snapshots && (n < 3 || len(x.snaps) == 0):
		return x.snap()
	case len(x.snaps) == 0:
		return nil
	case n == 0:
		return x.removeSnapshot(x.rng.IntN(len(x.snaps)))
	}
	s := x.snaps[x.rng.IntN(len(x.snaps))]
	if !s.kept || x.rng.IntN(2) == 0 {
		return nil
	}
	to := s.cursor + x.rng.Int64N(2*x.chunk)
	if to > min(x.size, x.off+x.length/2) {
		return nil
	}
	err := x.v.SetCursor(context.Background(), s.entry.UUID, to)
	if err == nil {
		s.cursor = max(s.cursor, to)
	}
	return err
}

// snap makes a snapshot; now and then the cut is given up.
func (x *explorer) snap() error {
	chunk := x.chunk
	if x.v.Header().CutLoose || x.raw {
		chunk = x.chunk << x.rng.IntN(2)
	}
	dev, e, err := newSnapshotStore(x.v.Header(), chunk, x.block, uuid.New())
	if err != nil {
		return err
	}
	e.OnError = cowfmt.OnErrorBreakGuestWrite // a dead device's errors end the write at once
	s := &explored{entry: e}
	s.use(x, dev)
	x.cutMu.Lock()
	x.snaps = append(x.snaps, s)
	x.cutMu.Unlock()
	x.shelf[e.UUID] = x.shelfOf(nil)[e.UUID]
	if err := x.v.AddSnapshot(context.Background(), e); err != nil {
		return err
	}
	for range x.rng.IntN(3) { // the table moves on
		if err := x.guest(x.rng, x.off, x.length, 1); err != nil {
			return err
		}
	}
	if err := x.v.Cut(context.Background(), e.CutID, time.Minute); err != nil {
		return err
	}
	want := make([]byte, x.length)
	if err := x.v.target().read(want, x.off); err != nil {
		return err
	}
	x.cutMu.Lock()
	s.want = want
	x.cutMu.Unlock()
	keep := x.rng.IntN(8) > 0
	if err := x.v.EndCut(context.Background(), e.CutID, keep); err != nil {
		return err
	}
	x.cutMu.Lock()
	s.kept = keep
	x.cutMu.Unlock()
	if !keep {
		x.forgetSnapshot(s)
	}
	return nil
}

func (s *explored) use(x *explorer, m *blockdevtest.Memory) {
	s.crash = blockdevtest.NewCrash(m, blockdevtest.CrashOptions{})
	s.crash.OnOp = x.onOp
}

func (x *explorer) forgetSnapshot(s *explored) {
	x.cutMu.Lock()
	defer x.cutMu.Unlock()
	x.snaps = slices.DeleteFunc(x.snaps, func(o *explored) bool { return o == s })
}

func (x *explorer) removeSnapshot(i int) error {
	s := x.snaps[i]
	x.cutMu.Lock()
	s.kept = false
	x.cutMu.Unlock()
	if err := x.v.RemoveSnapshot(context.Background(), s.entry.UUID); err != nil {
		return err
	}
	x.forgetSnapshot(s)
	return nil
}

// darkened notes the snapshots as they are at a power cut that happens.
func (x *explorer) darkened() {
	x.then = nil
	if x.raw {
		x.stateThen = x.state.Fork()
	}
	for _, s := range x.snaps {
		was := *s
		was.after = x.beside.snapshots[s.entry.UUID]
		x.then = append(x.then, &was)
	}
}

// relight goes on with the snapshots as they were then.
func (x *explorer) relight() {
	x.snaps, x.then = x.then, nil
	if x.raw {
		x.state = x.stateThen
	}
	for _, s := range x.snaps {
		s.use(x, s.after)
		s.after, s.late = nil, nil
	}
}

// settleSnapshots drops those that a death of the engine or its host took out of the stack; none that was kept.
func (x *explorer) settleSnapshots() error {
	for _, s := range slices.Clone(x.snaps) {
		i := slices.IndexFunc(x.v.Stack(), func(i SnapshotInfo) bool { return i.ID == s.entry.UUID })
		switch {
		case i < 0 && s.kept:
			return fmt.Errorf("snapshot %v is gone", s.entry.UUID)
		case i < 0:
			x.forgetSnapshot(s)
			continue
		}
		if at := x.v.Stack()[i]; at.State != cowfmt.StackActive {
			return fmt.Errorf("snapshot %v is %s: %w", s.entry.UUID, cowfmt.StackStateName(at.State), at.Err)
		} else {
			s.kept, s.cursor = true, at.Cursor
		}
	}
	return nil
}

// checkSnapshots reads every active snapshot of a state that a power cut left, as a reader does on another host.
func (x *explorer) checkSnapshots(state *blockdevtest.Memory) error {
	if len(x.snaps) == 0 {
		return nil
	}
	volume := state
	if x.raw {
		volume = x.stateOf(state)
	}
	st, err := store.Open(volume)
	if err != nil {
		return err
	}
	var origin blockdev.Device = state
	if !x.raw {
		if origin, err = st.Data(); err != nil {
			return err
		}
	}
	var master blockdev.Device
	if x.master != nil {
		master = x.master
	}
	for _, s := range x.snaps {
		i := slices.IndexFunc(st.Header().Stack, func(e cowfmt.StackEntry) bool { return e.UUID == s.entry.UUID })
		active := i >= 0 && st.Header().Stack[i].State == cowfmt.StackActive
		if !active && s.kept {
			return fmt.Errorf("snapshot %v is not active: %v", s.entry.UUID, st.Header().Stack)
		}
		if !active {
			continue
		}
		cursor := st.Header().Stack[i].Cursor
		if cursor < s.cursor {
			return fmt.Errorf("snapshot %v: the cursor is at %d, was at %d", s.entry.UUID, cursor, s.cursor)
		}
		got := slices.Clone(s.want)
		if s.want == nil {
			return errors.New("a snapshot is active before its cut")
		}
		if err := readSnapshot(x.beside.snapshots[s.entry.UUID], origin, original(master), cursor, got, x.off); err != nil {
			return err
		}
		for at := int64(0); at < x.length; at += sector {
			if !bytes.Equal(got[at:at+sector], s.want[at:at+sector]) {
				w, err := wordOf(got[at : at+sector])
				was, _ := wordOf(s.want[at : at+sector])
				return fmt.Errorf("snapshot %v, sector %d reads %#x (%v), was %#x at the cut", s.entry.UUID, (x.off+at)/sector, w, err, was)
			}
		}
	}
	return nil
}

// trimmed is what of a trim takes effect on the target of now. sure is false where that may change meanwhile.
func (x *explorer) trimmed(t target, off, length int64) (pieces [][2]int64, sure bool) {
	switch t := t.(type) {
	case *clone:
		start, end := t.wholeChunks(off, length)
		return [][2]int64{{start, end - start}}, true
	case *linear:
		start, end := inner(off, length, zeroUnit)
		return [][2]int64{{start, end - start}}, true
	case *origin:
		for end := off + length; off < end; {
			free, n := t.look(off, end-off)
			if free || x.workers > 1 {
				part, _ := x.trimmed(t.inner, off, n)
				pieces = append(pieces, part...)
			}
			off += n
		}
	}
	return pieces, x.workers <= 1
}
