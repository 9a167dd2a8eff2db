package reader

import (
	"slices"
	"strings"
	"testing"
)

// How some of them begin.
var (
	released = []string{
		"R: reader opens, copy 0", "R: reader opens, copy 1", "R: reader reads data", "R: reader reads flags", "R: reader archives",
		"R: reader has read enough for a look", "R: reader looks, copy 0", "R: reader looks, copy 1", "R: reader judges", "R: reader reports its cursor",
	}
	cursorMoves = slices.Concat(released, []string{"A: cursor moves", "R: another reader begins"})

	// The dead owner's header write for the cursor is on its way.
	takenOver = slices.Concat(released, []string{"A: cursor moves", "A: engine is killed", "A: other host takes over"})

	halfBroken = []string{"A: guest writes 0", "A: breaks a snapshot", "A: header write goes on", "A: header write goes on", "A: header write goes on"}

	// The dead owner's write of flags is on its way.
	leavesFlags = []string{
		"A: guest writes 0", "A: table is read", "A: copier begins", "A: copier goes on", "A: copier goes on", "A: copier goes on",
		"A: engine is killed", "A: other host takes over",
	}
	brokenMeanwhile = slices.Concat(released, []string{"A: guest writes 1", "A: other host opens the volume", "A: breaks a snapshot"})

	notFlushed = []string{
		"A: guest writes 0", "A: table is read", "A: copier begins", "A: copier goes on", "A: copier goes on", "A: copier goes on", "A: copier goes on",
		"A: engine is killed", "A: engine starts again",
	}
	writtenBefore = []string{"A: guest writes 1", "A: request is let through", "A: a sector lands", "A: snapshot is added"}
	twoBatches    = []string{"A: guest writes 0", "A: table is read", "A: guest writes 1", "A: copier begins", "A: copier goes on"}
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
		from []string // how it begins, where from the beginning it would take long
	}{
		{"reader: flags before data", linear(1, 1, 0), mutant{flagFirst: true}, nil},
		{"reader: looks at the header before its last read", linear(1, 1, 1), mutant{lookFirst: true}, nil},
		{"reader: what is saved before the flag", linear(1, 1, 0), mutant{savedFirst: true}, nil},
		{"reader: the clone's own table instead of the frozen one", clone(1, 0), mutant{liveTable: true}, nil},
		{"reader: no table, all is the store's", clone(0, 0), mutant{noFrozen: true}, nil},
		{"reader: zeros of an earlier read", linear(2, 1, 0), mutant{oldZeros: true}, nil},
		{"reader: below the cursor", linear(2, 1, 1), mutant{noCursor: true}, cursorMoves},
		{"reader: one header copy", linear(2, 1, 1), mutant{oneCopy: true}, takenOver},
		{"reader: the other copy's word where one is torn", linear(2, 1, 2), mutant{tornCopy: true}, takenOver},
		{"reader: opens a snapshot that is being made", cut(1, 0), mutant{anyEntry: true}, nil},
		{"reader: reports a cursor before a look", linear(1, 1, 1), mutant{earlyReport: true}, nil},

		{"engine: flag before what it stands for", linear(1, 1, 0), mutant{unordered: true}, nil},
		{"engine: writes without waiting for the copy", linear(1, 1, 0), mutant{noWait: true}, nil},
		{"engine: no flush between data and flag", linear(1, 1, 1), mutant{noDataFlush: true}, nil},
		{"engine: no flush after the flag", linear(1, 1, 1), mutant{noFlagFlush: true}, nil},
		{"engine: a trim passes", linear(1, 1, 0), mutant{trims: true}, nil},
		{"engine: a receiver remembers zeros", moving(1, 2, 0), mutant{keepZeros: true}, nil},
		{"engine: writes before the snapshot is broken", linear(1, 1, 1), mutant{earlyWrite: true}, nil},
		{"engine: writes when one copy says broken", linear(1, 1, 3), mutant{oneCopyBreak: true}, halfBroken},
		{"engine: stops copying before the cursor is durable", linear(2, 1, 1), mutant{earlyCursor: true}, cursorMoves},
		{"engine: a takeover leaves the snapshots", linear(2, 2, 1), mutant{takesUnbroken: true}, leavesFlags},
		{"engine: a receiver goes by the stack it once read", moving(2, 1, 1), mutant{oldHeader: true}, brokenMeanwhile},
		{"engine: trusts a one that may not be durable", linear(1, 2, 2), mutant{noOpenFlush: true}, notFlushed},
		{"engine: the frozen table is not brought up to date", cut(1, 0), mutant{noFrozenUpdate: true}, nil},
		{"engine: a cut without a commit", cut(1, 1), mutant{noCutFlush: true}, writtenBefore},
		{"engine: two batches write the table at once", func() *model {
			m := newModel(false, 2, 1, 1, 2, 1)
			m.reqs = 2
			return m
		}, mutant{racingTables: true}, twoBatches},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := c.m()
			m.no = c.no
			play(t, m, c.from...)
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
