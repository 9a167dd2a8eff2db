package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestSpreads checks that each unit is hit once, in no order, and not always at its start.
func TestSpreads(t *testing.T) {
	const unit, n = 64 << 10, 256
	offs := spreads(unit*n, unit)
	seen := map[int64]bool{}
	starts := 0
	for _, o := range offs {
		if o < 0 || o >= unit*n || o%blockSize != 0 {
			t.Fatalf("offset %d", o)
		}
		seen[o/unit] = true
		if o%unit == 0 {
			starts++
		}
	}
	if len(offs) != n || len(seen) != n {
		t.Errorf("%d offsets in %d units, want %d in %d", len(offs), len(seen), n, n)
	}
	if slices.IsSorted(offs) || starts > n/4 {
		t.Errorf("not random: sorted %v, %d of %d at the start of their unit", slices.IsSorted(offs), starts, n)
	}
	if !slices.Equal(offs, spreads(unit*n, unit)) {
		t.Error("two peers would get different offsets")
	}
}

func TestWriteLog(t *testing.T) {
	var b strings.Builder
	if err := writeLog(&b, []int64{8192, 0, 4096, 65536, 12288}, 2); err != nil {
		t.Fatal(err)
	}
	want := "fio version 2 iolog\nnbd add\nnbd open\n"
	for _, op := range []string{"8192", "0", "", "4096", "65536", "", "12288"} {
		if op == "" {
			want += "nbd sync 0 0\n"
		} else {
			want += fmt.Sprintf("nbd write %s 4096\n", op)
		}
	}
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}
