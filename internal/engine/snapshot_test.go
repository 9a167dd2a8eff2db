package engine

import (
	"bytes"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// A reader gets the volume as it was at the cut, whatever is written, zeroed, trimmed and hydrated after it.
func TestSnapshot(t *testing.T) {
	const size = 40<<12 + 512
	on := shelf{}
	master := memoryMaster(size, true, 0, size)
	v := mustOpen(t, memoryStore(t, size, 4096, 512, true), master.Open(true), uuid.New(), "", on.option)
	_, err := v.WriteAt(filled(4096, 5<<12, 1), 4096)
	check(t, err)
	want := contents(t, v, size)
	dev, id := snap(t, v, on, 0)
	if v.Target() != "origin" {
		t.Errorf("target %s", v.Target())
	}
	for _, r := range []*blockdev.Request{
		{Op: blockdev.OpWrite, Off: 4096 + 512, Buf: filled(4096+512, 512, 2)},
		{Op: blockdev.OpWrite, Off: 30 << 12, Buf: filled(30<<12, 512, 3)},
		{Op: blockdev.OpWriteZeroes, Off: 3 << 12, Length: 2 << 12},
		{Op: blockdev.OpTrim, Off: 5 << 12, Length: 4096},
		{Op: blockdev.OpWrite, Off: size - 512, Buf: filled(size-512, 512, 4), FUA: true},
	} {
		check(t, request(v, r))
		if got := asOfCut(t, v, master, dev); !bytes.Equal(got, want) {
			t.Fatalf("after %v at %d the snapshot reads something else", r.Op, r.Off)
		}
	}
	check(t, hydrateNow(v))
	_, err = v.WriteAt(filled(0, size, 5), 0)
	check(t, err)
	if got := asOfCut(t, v, master, dev); !bytes.Equal(got, want) {
		t.Error("cut loose and overwritten, the snapshot reads something else")
	}
	if got := contents(t, v, size); !bytes.Equal(got, filled(0, size, 5)) {
		t.Error("the volume itself reads something else")
	}
	if at := v.Stack(); len(at) != 1 || at[0].Saved != 5 || at[0].Err != nil {
		t.Errorf("%+v", at)
	}
	check(t, v.RemoveSnapshot(t.Context(), id))
	if len(v.Header().Stack) != 0 || v.Target() != "linear" {
		t.Errorf("%+v, %s", v.Header().Stack, v.Target())
	}
	check(t, v.Close())
}

// What an earlier engine has saved is counted, though nothing asks for it.
func TestSavedAfterRestart(t *testing.T) {
	const size = 40 << 12
	on := shelf{}
	st := memoryStore(t, size, 4096, 512, true)
	master := memoryMaster(size, true, 0, size)
	v := mustOpen(t, st, master.Open(true), uuid.New(), "", on.option)
	_, err := v.WriteAt(filled(0, 8<<12, 1), 0)
	check(t, err)
	snap(t, v, on, 0)
	_, err = v.WriteAt(filled(0, 5<<12, 2), 0)
	check(t, err)
	check(t, v.Close())
	v = mustOpen(t, st, master.Open(true), uuid.New(), "", on.option)
	eventually(t, "to be counted", func() bool { return v.Stack()[0].Saved == 5 })
	_, err = v.WriteAt(filled(0, 6<<12, 3), 0)
	check(t, err)
	if saved := v.Stack()[0].Saved; saved != 6 {
		t.Errorf("%d saved", saved)
	}
	check(t, v.Close())
}
