package reader

import (
	"strings"
	"testing"
)

// TestMutants has the reader, or an engine, do one thing in the wrong order or not at all: the exploration must see each.
func TestMutants(t *testing.T) {
	linear := func(chunks, writes, faults int) func() *model {
		return func() *model { return newModel(false, chunks, 1, 1, writes, faults) }
	}
	clone := func(writes, faults int) func() *model {
		return func() *model { return newModel(true, 2, 1, 1, writes, faults) }
	}
	cut := func(writes, faults int) func() *model {
		return func() *model { return newModel(true, 2, 1, 1, writes, faults).withCut() }
	}
	moving := func(chunks, writes, faults int) func() *model {
		return func() *model {
			m := newModel(false, chunks, 1, 1, writes, faults)
			m.start.moves = 1
			return m
		}
	}
	for _, c := range []struct {
		name string
		m    func() *model
		no   mutant
	}{
		{"reader: flags before data", linear(1, 1, 0), mutant{flagFirst: true}},
		{"reader: looks at the header before its last read", linear(1, 1, 1), mutant{lookFirst: true}},
		{"reader: what is saved before the flag", linear(1, 1, 0), mutant{savedFirst: true}},
		{"reader: the clone's own table instead of the frozen one", clone(1, 0), mutant{liveTable: true}},
		{"reader: no table, all is the store's", clone(0, 0), mutant{noFrozen: true}},
		{"reader: zeros of an earlier read", linear(2, 1, 0), mutant{oldZeros: true}},
		{"reader: below the cursor", linear(2, 1, 1), mutant{noCursor: true}},
		{"reader: one header copy", linear(2, 1, 1), mutant{oneCopy: true}},
		{"reader: the other copy's word where one is torn", linear(2, 1, 2), mutant{tornCopy: true}},
		{"reader: opens a snapshot that is being made", cut(1, 0), mutant{anyEntry: true}},

		{"engine: flag before what it stands for", linear(1, 1, 0), mutant{unordered: true}},
		{"engine: writes without waiting for the copy", linear(1, 1, 0), mutant{noWait: true}},
		{"engine: no flush between data and flag", linear(1, 1, 1), mutant{noDataFlush: true}},
		{"engine: no flush after the flag", linear(1, 1, 1), mutant{noFlagFlush: true}},
		{"engine: a trim passes", linear(1, 1, 0), mutant{trims: true}},
		{"engine: a receiver remembers zeros", moving(1, 2, 0), mutant{keepZeros: true}},
		{"engine: writes before the snapshot is broken", linear(1, 1, 1), mutant{earlyWrite: true}},
		{"engine: writes when one copy says broken", linear(1, 1, 3), mutant{oneCopyBreak: true}},
		{"engine: stops copying before the cursor is durable", linear(2, 1, 1), mutant{earlyCursor: true}},
		{"engine: a takeover leaves the snapshots", linear(2, 2, 1), mutant{takesUnbroken: true}},
		{"engine: a receiver goes by the stack it once read", moving(2, 1, 1), mutant{oldHeader: true}},
		{"engine: the frozen table is not brought up to date", cut(1, 0), mutant{noFrozenUpdate: true}},
		{"engine: a cut without a commit", cut(1, 1), mutant{noCutFlush: true}},
		{"engine: two batches write the table at once", func() *model {
			m := newModel(false, 2, 1, 1, 2, 1)
			m.reqs = 2
			return m
		}, mutant{racingTables: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := c.m()
			m.no = c.no
			f := m.explore(3_000_000)
			if f.bad == "" {
				t.Fatalf("not seen in %d states", f.states)
			}
			t.Logf("%d states, %d steps", f.states, len(f.trace))
			if testing.Verbose() {
				t.Logf("\n%s", strings.Join(f.trace, "\n"))
			}
		})
	}
}
