package archive

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/kopia/kopia/snapshot"
)

// TestResume lets a writer die after each checkpoint: the next one goes on, in another process as far as kopia can tell, and writes
// nothing again that was durable.
func TestResume(t *testing.T) {
	t.Parallel()
	c := fresh(t)
	ctx := t.Context()
	vda := pieces("abcd..efgh.i", SmallPiece, 512)
	m := meta("g1")
	a := open(t, c)
	w := begin(t, a, m)
	if err := w.File(ctx, "domain.xml", []byte("<domain/>")); err != nil {
		t.Fatal(err)
	}
	var token []byte
	for i := range 12 {
		d := disk(t, w, "vda", vda, SmallPiece)
		for p := range i {
			if !d.Has(p) {
				t.Fatalf("round %d: piece %d is lost", i, p)
			}
		}
		piece := func(p int) []byte { return vda[int64(p)*SmallPiece:][:d.Length(p)] }
		if err := d.Write(ctx, i, piece(i)); err != nil {
			t.Fatal(err)
		}
		var err error
		if token, err = w.Checkpoint(ctx); err != nil {
			t.Fatal(err)
		}
		if i < 11 { // what no checkpoint has
			if err := d.Write(ctx, i+1, piece(i+1)); err != nil {
				t.Fatal(err)
			}
		}
		if i%3 == 0 { // the writer and its connection are left as they are, as a killed process would leave them
			a = open(t, c)
		} else if err := w.Close(ctx); err != nil {
			t.Fatal(err)
		}
		if w, err = a.Resume(ctx, token); err != nil {
			t.Fatal(err)
		}
		if w.Meta() != m {
			t.Fatalf("%+v, want %+v", w.Meta(), m)
		}
		if i < 11 && disk(t, w, "vda", vda, SmallPiece).Has(i+1) {
			t.Fatalf("round %d: a piece that no checkpoint has", i)
		}
		if l, err := a.List(ctx, Filter{}); err != nil || len(l) != 0 {
			t.Fatalf("%v, %v: an unfinished backup is listed", l, err)
		}
	}
	if s := w.Stats(); s.Read != int64(len(vda)) || s.Zero != 3*SmallPiece {
		t.Errorf("%+v of %d", s, len(vda))
	}
	if _, err := w.Disk("vda", int64(len(vda)), LargePiece); err == nil {
		t.Error("another geometry was taken")
	}
	id := finish(t, w)
	same(t, a, id, "vda", vda)
	if b, err := a.File(ctx, id, "domain.xml"); err != nil || string(b) != "<domain/>" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := a.Resume(ctx, token); !errors.Is(err, ErrFinished) {
		t.Errorf("resumed when finished: %v", err)
	}
	all, err := snapshot.ListSnapshotManifests(ctx, a.rep, nil, nil)
	if err != nil || len(all) != 1 {
		t.Errorf("%v, %v: checkpoints are left", all, err)
	}
}

// TestOlderToken resumes with a token that was noted before a newer checkpoint was made.
func TestOlderToken(t *testing.T) {
	t.Parallel()
	a := open(t, fresh(t))
	vda := pieces("ab", SmallPiece, SmallPiece)
	w := begin(t, a, meta("g1"))
	d := disk(t, w, "vda", vda, SmallPiece)
	var tokens [2][]byte
	for p := range tokens {
		if err := d.Write(t.Context(), p, vda[p*SmallPiece:][:SmallPiece]); err != nil {
			t.Fatal(err)
		}
		var err error
		if tokens[p], err = w.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	w, err := a.Resume(t.Context(), tokens[0])
	if err != nil {
		t.Fatal(err)
	}
	if d := disk(t, w, "vda", vda, SmallPiece); !d.Has(0) || !d.Has(1) {
		t.Error("the newer checkpoint was not taken")
	}
	if err := w.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Resume(t.Context(), tokens[1]); !errors.Is(err, ErrNotFound) {
		t.Errorf("resumed when aborted: %v", err)
	}
	if all, err := snapshot.ListSnapshotManifests(t.Context(), a.rep, nil, nil); err != nil || len(all) != 0 {
		t.Errorf("%v, %v: an aborted backup left this", all, err)
	}
}

// TestManyCheckpoints makes more of them than a disk has segments.
func TestManyCheckpoints(t *testing.T) {
	t.Parallel()
	a := open(t, fresh(t))
	n := maxSegments + 3
	w := begin(t, a, meta("g1"))
	d, err := w.Disk("vda", int64(n)*SmallPiece, SmallPiece)
	if err != nil {
		t.Fatal(err)
	}
	token := []byte(nil)
	for p := range n {
		piece := bytes.Repeat([]byte{byte(p), 1, byte(p >> 8)}, SmallPiece)[:SmallPiece]
		if err := d.Write(t.Context(), n-1-p, piece); err != nil {
			t.Fatal(err)
		}
		if token, err = w.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(d.segments) > maxSegments {
			t.Fatalf("%d segments", len(d.segments))
		}
	}
	if w, err = a.Resume(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	id := finish(t, w)
	dev, err := a.OpenDisk(t.Context(), id, "vda", DiskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	b := make([]byte, 512)
	for p := range n {
		if _, err := dev.ReadAt(b, int64(n-1-p)*SmallPiece); err != nil || b[0] != byte(p) || b[1] != 1 {
			t.Fatalf("piece %d begins with %v: %v", n-1-p, b[:3], err)
		}
	}
}

// TestIncomplete refuses to enter a backup of which a piece is missing.
func TestIncomplete(t *testing.T) {
	t.Parallel()
	a := open(t, fresh(t))
	vda := pieces("ab", SmallPiece, SmallPiece)
	w := begin(t, a, meta("g1"))
	d := disk(t, w, "vda", vda, SmallPiece)
	if err := d.Write(t.Context(), 1, vda[SmallPiece:]); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(t.Context(), nil); err == nil {
		t.Fatal("entered without its first piece")
	}
	for _, bad := range []struct {
		piece int
		data  []byte
	}{{-1, vda[:SmallPiece]}, {2, vda[:SmallPiece]}, {0, vda[:512]}} {
		if err := d.Write(t.Context(), bad.piece, bad.data); err == nil {
			t.Errorf("piece %d of %d bytes was taken", bad.piece, len(bad.data))
		}
	}
	if err := d.Write(t.Context(), 0, vda[:SmallPiece]); err != nil {
		t.Fatal(err)
	}
	same(t, a, finish(t, w), "vda", vda)
}

// TestLostPiece refuses to resume where the archive has lost what a checkpoint names.
func TestLostPiece(t *testing.T) {
	t.Parallel()
	c := fresh(t)
	a := open(t, c)
	vda := pieces("ab", SmallPiece, SmallPiece)
	w := begin(t, a, meta("g1"))
	writeDisk(t, disk(t, w, "vda", vda, SmallPiece), vda)
	token, err := w.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range blobs(t, c, "q") {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	c.Folder = t.TempDir() // a node that has nothing in its caches
	if _, err := open(t, c).Resume(t.Context(), token); !errors.Is(err, ErrDamaged) {
		t.Errorf("%v, want %v", err, ErrDamaged)
	}
}
