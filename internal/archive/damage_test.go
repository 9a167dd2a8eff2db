package archive

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
)

// TestDamage spoils packs of data in several ways: verify names disk and range, reading refuses, and SkipBad says what is zeros.
func TestDamage(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(path string) error{
		"flipped": func(path string) error {
			b, err := os.ReadFile(path)
			if err == nil {
				b[len(b)/2] ^= 1
				err = os.WriteFile(path, b, 0o600)
			}
			return err
		},
		"truncated": func(path string) error { return os.Truncate(path, 4096) },
		"missing":   os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			c := fresh(t)
			a := open(t, c)
			good, bad := pieces("xy", SmallPiece, SmallPiece), pieces("a.a", SmallPiece, SmallPiece)
			w := begin(t, a, meta("g1"))
			writeDisk(t, disk(t, w, "vda", good, SmallPiece), good)
			token, err := w.Checkpoint(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			packs := map[string]bool{}
			for _, p := range blobs(t, c, "p") {
				packs[p] = true
			}
			// What comes now is in another pack.
			if w, err = a.Resume(t.Context(), token); err != nil {
				t.Fatal(err)
			}
			writeDisk(t, disk(t, w, "vdb", bad, SmallPiece), bad)
			if _, err := w.Checkpoint(t.Context()); err != nil {
				t.Fatal(err)
			}
			id := finish(t, w)
			for _, p := range blobs(t, c, "p") {
				if !packs[p] && sizeOf(t, p) > SmallPiece {
					if err := spoil(p); err != nil {
						t.Fatal(err)
					}
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			r, err := a.Verify(ctx, id, nil)
			if !errors.Is(err, ErrDamaged) || len(r.Damage) == 0 || r.Done != r.Size {
				t.Fatalf("%+v, %v", r, err)
			}
			covered := map[int64]bool{}
			for _, d := range r.Damage {
				if d.Disk != "vdb" || d.Offset%SmallPiece != 0 || d.Length%SmallPiece != 0 {
					t.Fatalf("%v", d)
				}
				for at := d.Offset; at < d.Offset+d.Length; at += SmallPiece {
					covered[at/SmallPiece] = true
				}
			}
			if !covered[0] || !covered[2] || !strings.Contains(err.Error(), "disk vdb, bytes 0 to ") {
				t.Fatalf("%v: %v", r.Damage, err)
			}
			same(t, a, id, "vda", good)

			dev, err := a.OpenDisk(ctx, id, "vdb", DiskOptions{})
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, len(bad))
			if _, err := dev.ReadAt(b[:512], 0); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "disk vdb, bytes 0 to 1048575") {
				t.Errorf("read: %v", err)
			}
			dev.Close()
			told := map[int64]bool{}
			dev, err = a.OpenDisk(ctx, id, "vdb", DiskOptions{SkipBad: func(d Damage) { told[d.Offset/SmallPiece] = true }})
			if err != nil {
				t.Fatal(err)
			}
			defer dev.Close()
			if _, err := dev.ReadAt(b, 0); err != nil || !bytes.Equal(b, make([]byte, len(b))) {
				t.Errorf("skipped: %v", err)
			}
			if !told[0] || !told[2] {
				t.Errorf("told of %v only", told)
			}
		})
	}
}

func sizeOf(t testing.TB, path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// TestDamagedIndex spoils everything but data: nothing of it is taken for zeros, or for an empty archive.
func TestDamagedIndex(t *testing.T) {
	t.Parallel()
	c := fresh(t)
	a := open(t, c)
	id := backup(t, a, meta("g1"), pieces("abc", SmallPiece, SmallPiece), SmallPiece)
	for _, path := range blobs(t, c, "q") {
		b, err := os.ReadFile(path)
		if err == nil {
			for i := range b {
				b[i] ^= 0x40
			}
			err = os.WriteFile(path, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	c.Folder = t.TempDir()
	b := open(t, c)
	if _, err := b.OpenDisk(t.Context(), id, "vda", DiskOptions{SkipBad: func(Damage) {}}); !errors.Is(err, ErrDamaged) {
		t.Errorf("open: %v", err)
	}
	if l, err := b.List(t.Context(), Filter{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("list: %v, %v", l, err)
	}
	if _, err := a.Verify(t.Context(), id, nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("verify: %v", err)
	}
}
