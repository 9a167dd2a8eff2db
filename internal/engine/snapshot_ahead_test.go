package engine

import (
	"bytes"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// A lonely write has its chunk saved and no more; one more beside it, all of the piece; and where half of a larger piece is saved,
// the rest of that.
func TestSavedAhead(t *testing.T) {
	const size, chunk = 1 << 20, 4096
	v, on, _ := aheadVolume(t, size, chunk, blockdevtest.Rule{})
	want := contents(t, v, size)
	dev, _ := snap(t, v, on, chunk)
	for _, step := range []struct{ chunk, saved int64 }{
		{3, 1},    // lonely
		{3, 1},    // again
		{5, 16},   // beside it
		{40, 17},  // a lonely one of the next piece but one
		{41, 32},  // beside it: half of 256 KiB
		{20, 64},  // so the rest of these
		{100, 65}, // far away
	} {
		_, err := v.WriteAt(filled(step.chunk*chunk, chunk, uint32(step.saved)+1), step.chunk*chunk)
		check(t, err)
		if at := v.Stack(); len(at) != 1 || at[0].Saved != step.saved {
			t.Errorf("after chunk %d: %d saved, want %d", step.chunk, at[0].Saved, step.saved)
		}
	}
	if got := asOfCut(t, v, nil, dev); !bytes.Equal(got, want) {
		t.Error("the snapshot reads something else")
	}
	check(t, v.Close())
}

// A neighbour that can't be read is its own writer's matter: the guest's write beside it goes on, and the snapshot is unbroken.
func TestSavedAheadOfABadSector(t *testing.T) {
	const size, chunk, bad = 1 << 20, 4096, 7
	v, on, origin := aheadVolume(t, size, chunk, blockdevtest.Rule{N: 1, Ops: blockdevtest.Reads, Off: bad * chunk, Length: chunk, Forever: true})
	snap(t, v, on, chunk)
	for _, c := range []int64{3, 5} {
		_, err := v.WriteAt(filled(c*chunk, chunk, 2), c*chunk)
		check(t, err)
	}
	if at := v.Stack()[0]; at.Saved != 15 || at.State != cowfmt.StackActive || origin.Fired() == 0 {
		t.Errorf("%+v, %d reads failed", at, origin.Fired())
	}
	_, err := v.WriteAt(filled(bad*chunk, chunk, 2), bad*chunk)
	check(t, err)
	if at := v.Stack()[0]; at.State != cowfmt.StackBroken {
		t.Errorf("what could not be saved was overwritten: %+v", at)
	}
	check(t, v.Close())
}

// aheadVolume is a raw disk that fails by a rule, and its volume.
func aheadVolume(t *testing.T, size, chunk int64, rule blockdevtest.Rule) (*Volume, shelf, *blockdevtest.Failure) {
	t.Helper()
	state, err := stateStore(size, chunk)
	check(t, err)
	disk := blockdevtest.NewMemory("raw", size, sector)
	_, err = disk.WriteAt(filled(0, size, 1), 0)
	check(t, err)
	f, on := blockdevtest.NewFailure(rule), shelf{}
	return mustOpen(t, state, nil, uuid.New(), "", on.option, func(o *Options) { o.Origin = blockdevtest.NewFault(disk, f) }), on, f
}
