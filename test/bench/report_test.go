package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		v            []float64
		want, spread float64
	}{{nil, 0, 0}, {[]float64{7}, 7, 0}, {[]float64{9, 1, 5}, 5, 80}, {[]float64{8, 2, 4, 6}, 5, 60}} {
		if got := median(c.v); got != c.want {
			t.Errorf("median of %v: %v, want %v", c.v, got, c.want)
		}
		if len(c.v) > 0 && spread(c.v) != c.spread {
			t.Errorf("spread of %v: %v, want %v", c.v, spread(c.v), c.spread)
		}
	}
}

// TestReport follows three cells from their runs to the table, the summary and the JSON.
func TestReport(t *testing.T) {
	rep := newReport(&options{Size: 1 << 30, Chunk: 64 << 10, ContentionSize: 1 << 30, SparseSize: 1 << 40, Rounds: 3}, allPeers())
	for cell, peers := range map[string]map[string][]sample{
		"twice":  {oursName: {{IOPS: 200, CPU: 5}, {IOPS: 900, CPU: 4}, {IOPS: 100, CPU: 90}}, "qemu-none": {{IOPS: 100, CPU: 10}}},
		"ahead":  {oursName: {{IOPS: 150, CPU: 20}}, "qemu-none": {{IOPS: 100, CPU: 10}}},
		"behind": {oursName: {{IOPS: 50, CPU: 1}}, "qemu-none": {{IOPS: 100, CPU: 10}}},
	} {
		for peer, runs := range peers {
			for _, s := range runs {
				rep.addSample(cell, peer, s)
			}
		}
	}
	ours, theirs := &row{Group: "g", Name: "ours", Unit: "ms"}, &row{Group: "g", Name: "theirs", Unit: "ms"}
	ours.add(10)
	theirs.add(40)
	theirs.over(ours)
	rep.rows = []*row{ours, theirs, {Group: "g", Name: "never run"}}

	var text strings.Builder
	rep.print(&text)
	for _, want := range []string{"ahead of qemu-none in 2 of 3 cells; twice in 1; less CPU a request in 2\n", "ours/peer 0.25"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
	if strings.Contains(text.String(), "never run") {
		t.Error("a row without runs is shown")
	}

	path := filepath.Join(t.TempDir(), "out", "bench.json")
	if err := rep.write(path); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var back report
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(back.Cells, func(c *cellReport) bool { return c.Name == "twice" })
	j := slices.IndexFunc(back.Cells[i].Peers, func(p *peerReport) bool { return p.Peer == "qemu-none" })
	if p := back.Cells[i].Peers[j]; p.IOPSRatio != 2 || p.CPURatio != 0.5 {
		t.Errorf("ratios %v and %v, want 2 and 0.5", p.IOPSRatio, p.CPURatio)
	}
	if len(back.Rows) != 2 || back.Rows[1].Ratio != 0.25 || back.Options.Chunk != 64<<10 {
		t.Errorf("rows %+v, options %+v", back.Rows, back.Options)
	}
}

func TestSelectCells(t *testing.T) {
	all := selectCells(nil)
	names := map[string]bool{}
	for _, c := range all {
		names[c.name()] = true
	}
	if len(all) != 18 || len(names) != len(all) {
		t.Errorf("%d cells, %d names, want 18 of each", len(all), len(names))
	}
	for _, want := range []string{"randread-4k-untouched-qd1", "randwrite-4k-rewrite-qd16", "write-256k-first-qd1", "randwrite-4k-fsync32-rewrite-qd16"} {
		if !names[want] {
			t.Errorf("no cell %s in %v", want, names)
		}
	}
	if got := selectCells(regexp.MustCompile("^read-.*qd1$")); len(got) != 2 {
		t.Errorf("%d cells selected, want 2", len(got))
	}
}
