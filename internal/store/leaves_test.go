package store

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// leaf is a leaf with some flags.
func leaf(index int64, chunks ...int) Leaf {
	l := Leaf{Index: index, Flags: make([]byte, LeafFlags)}
	for _, c := range chunks {
		l.Flags[c/8] |= 1 << (c % 8)
	}
	return l
}

// Leaves come back as they were written, by any opening, and ScanTable tells of the same.
func TestLeaves(t *testing.T) {
	const leaves = 5
	size := int64(leaves-1)*LeafChunks*4096 + 100*4096 + 512
	dev := created(t, size, 4096, 4096)
	s := open(t, dev)
	if s.Leaves() != leaves {
		t.Fatalf("%d leaves, want %d", s.Leaves(), leaves)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	want := make([][]byte, leaves)
	for i := range want {
		want[i] = make([]byte, LeafFlags)
	}
	for range 30 {
		var batch []Leaf
		for i := range int64(leaves) {
			if rng.IntN(2) == 0 {
				continue
			}
			limit := LeafChunks
			if i == leaves-1 {
				limit = 101
			}
			from := rng.IntN(limit)
			for c := from; c < min(from+1+rng.IntN(200), limit); c++ {
				want[i][c/8] |= 1 << (c % 8)
			}
			batch = append(batch, Leaf{Index: i, Flags: slices.Clone(want[i])})
		}
		check(t, s.WriteLeaves(batch))
		if rng.IntN(3) == 0 {
			s = open(t, dev)
		}
		got := make([]byte, LeafFlags)
		total := int64(0)
		for i := range int64(leaves) {
			check(t, s.ReadLeaf(i, got))
			if !bytes.Equal(got, want[i]) {
				t.Fatalf("leaf %d came back as something else", i)
			}
			total += scanFlags(got, 0, nil)
		}
		seen := make([][]byte, leaves)
		for i := range seen {
			seen[i] = make([]byte, LeafFlags)
		}
		set, err := s.ScanTable(context.Background(), func(err error) { t.Error(err) }, func(int64, int64) {}, func(first, count int64) {
			for c := first; c < first+count; c++ {
				seen[c/LeafChunks][c%LeafChunks/8] |= 1 << (c % LeafChunks % 8)
			}
		})
		if err != nil || set != total {
			t.Fatalf("ScanTable: %d, %v, want %d", set, err, total)
		}
		for i := range seen {
			if !bytes.Equal(seen[i], want[i]) {
				t.Fatalf("ScanTable told of other runs in leaf %d", i)
			}
		}
	}
}

// The leaves of one call are written though another group fails to become ready, on a table of several groups.
func TestLeavesOfSeveralGroups(t *testing.T) {
	dev := created(t, 34<<40, 4096, 512)
	s := open(t, dev)
	if s.Header().Groups() < 2 {
		t.Fatalf("%d groups", s.Header().Groups())
	}
	check(t, s.WriteLeaves([]Leaf{leaf(3, 1)}))
	if !s.LeafReady(3) || s.LeafReady(groupLeaves) {
		t.Error("other groups are ready than the one written")
	}
	check(t, s.WriteLeaves([]Leaf{leaf(3, 1, 2), leaf(9, 5), leaf(groupLeaves, 7), leaf(groupLeaves+1, 8)}))
	s = open(t, dev)
	for _, want := range []Leaf{leaf(3, 1, 2), leaf(4), leaf(9, 5), leaf(groupLeaves, 7), leaf(groupLeaves+1, 8), leaf(groupLeaves + 2)} {
		got := make([]byte, LeafFlags)
		check(t, s.ReadLeaf(want.Index, got))
		if !bytes.Equal(got, want.Flags) {
			t.Errorf("leaf %d came back as something else", want.Index)
		}
	}
}

// A bad sector is told of, named, and never read as zeros.
func TestBadTableSector(t *testing.T) {
	dev := created(t, 1<<20, 4096, 512)
	s := open(t, dev)
	check(t, s.WriteLeaves([]Leaf{leaf(0, 3)}))
	at := s.Header().Layout.Table[0]
	p := make([]byte, 512)
	_, err := dev.ReadAt(p, at)
	check(t, err)
	for name, bad := range map[string][]byte{"zeros": make([]byte, 512), "a flipped bit": append([]byte{p[0] ^ 1}, p[1:]...)} {
		_, err = dev.WriteAt(bad, at)
		check(t, err)
		if err := s.ReadLeaf(0, make([]byte, LeafFlags)); !errors.Is(err, cowfmt.ErrCorrupt) || !strings.Contains(err.Error(), "disk") {
			t.Errorf("%s: %v", name, err)
		}
		told := 0
		if _, err := s.ScanTable(context.Background(), func(error) { told++ }, nil, nil); err != nil || told != 1 {
			t.Errorf("%s: ScanTable told of %d bad leaves, %v", name, told, err)
		}
	}
}

// A host that only reads learns which groups of the table the owner has made ready since.
func TestReread(t *testing.T) {
	dev := created(t, 1<<20, 4096, 512)
	owner, reader := open(t, dev), open(t, dev)
	check(t, owner.WriteLeaves([]Leaf{leaf(0, 3)}))
	if reader.LeafReady(0) {
		t.Fatal("ready before the header was read again")
	}
	check(t, reader.Reread())
	got := make([]byte, LeafFlags)
	check(t, reader.ReadLeaf(0, got))
	if !bytes.Equal(got, leaf(0, 3).Flags) {
		t.Error("the reader sees other flags")
	}
	check(t, Create(dev, header(t, 1<<20, 4096)))
	if err := reader.Reread(); err == nil || !strings.Contains(err.Error(), "another store") {
		t.Errorf("another store in its place: %v", err)
	}
}
