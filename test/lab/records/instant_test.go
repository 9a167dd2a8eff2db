package records

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// TestInstant: what a writer leaves is one instant of its work, and a record that is older or newer than that is found.
func TestInstant(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := &Writer{Disk: f, Slots: 64, Workers: 2, FlushEvery: 16, Seed: 7, Alloc: plain}
	stop := make(chan struct{})
	done := make(chan Log)
	go func() {
		log, err := w.Run(stop)
		if err != nil {
			t.Error(err)
		}
		done <- log
	}()
	for w.Acked() < 200 {
		runtime.Gosched()
	}
	close(stop)
	log := <-done
	upTo, err := w.Instant(f, nil, plain)
	if err != nil {
		t.Fatal(err)
	}
	for id, at := range upTo {
		var last uint64
		for _, s := range log.Slots[id*32 : (id+1)*32] {
			last = max(last, s.Acked)
		}
		if at != last {
			t.Errorf("worker %d had come to %d, not %d", id, last, at)
		}
	}
	under, err := Held(f, 64, plain)
	if err != nil {
		t.Fatal(err)
	}
	if upTo, err := (&Writer{Slots: 64, Workers: 2, Seed: 8}).Instant(f, under, plain); err != nil || upTo[0]+upTo[1] != 0 {
		t.Errorf("a writer that has not begun has come to %d: %v", upTo, err)
	}
	spoil := func(slot int, seq uint64) error {
		buf, was := plain(Size), plain(Size)
		_, _ = f.ReadAt(was, int64(slot)*Size)
		Fill(buf, slot, seq)
		_, _ = f.WriteAt(buf, int64(slot)*Size)
		_, err := w.Instant(f, nil, plain)
		_, _ = f.WriteAt(was, int64(slot)*Size)
		return err
	}
	for slot, s := range log.Slots {
		if s.Acked == 0 || s.Acked == upTo[slot/32] {
			continue
		}
		if spoil(slot, s.Acked-1) == nil {
			t.Fatalf("slot %d holds record %d of before, and that is not found", slot, s.Acked-1)
		}
		if spoil(slot, upTo[slot/32]+3) == nil {
			t.Fatalf("slot %d holds record %d of later, and that is not found", slot, upTo[slot/32]+3)
		}
		return
	}
	t.Fatal("no slot to spoil")
}
