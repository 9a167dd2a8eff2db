package reader

import "slices"

// readOp is a step of the reader.
type readOp uint8

const (
	readOpen0 readOp = iota // the header's copies, to begin
	readOpen1
	readFrozen
	readData
	readFlags
	readSaved
	readLook0 // the header's copies, to judge
	readLook1
	readJudge
	readNext // more of the disk, or the look
	readReport
	readDone
)

// readerState is the reader, with all that it remembers.
type readerState struct {
	at       uint8 // index of the program
	snap     uint8
	chunk    uint8 // that is being read
	sector   uint8
	judged   uint8 // chunks that are good
	archived uint8 // chunks that are in the archive, good or not: its checkpoint
	knows    bool  // it has the frozen table
	zeros    bool  // only a mutant: it has read a table
	frozen   uint8
	ones     uint8
	head     [2]header
	data     [maxChunks][maxSectors]uint8
	saved    [maxChunks][maxSectors]uint8 // only a mutant: read before the flag
}

// program is the order of a reader's steps.
func (m *model) program() []readOp {
	switch {
	case m.no.flagFirst:
		return []readOp{readOpen0, readOpen1, readFrozen, readFlags, readData, readSaved, readNext, readLook0, readLook1, readJudge, readReport, readDone}
	case m.no.lookFirst:
		return []readOp{readOpen0, readOpen1, readLook0, readLook1, readFrozen, readData, readFlags, readSaved, readNext, readJudge, readReport, readDone}
	case m.no.savedFirst:
		return []readOp{readOpen0, readOpen1, readFrozen, readData, readSaved, readFlags, readNext, readLook0, readLook1, readJudge, readReport, readDone}
	}
	return []readOp{readOpen0, readOpen1, readFrozen, readData, readFlags, readSaved, readNext, readLook0, readLook1, readJudge, readReport, readDone}
}

// reads is the reader's next step, or its death.
func (s *steps) reads() {
	m, r := s.m, &s.w.r
	program := m.program()
	if r.at > 0 {
		s.do("reader dies, and goes on from its checkpoint", theReader, fault, func(w *world) { w.r = r.again(m, program) })
		if r.archived > 0 {
			s.do("another reader begins", theReader, fault, func(w *world) { w.r = readerState{snap: w.r.snap} })
		}
	}
	step := func(what string, change func(w *world, r *readerState)) {
		s.do(what, theReader, usual, func(w *world) { change(w, &w.r) })
	}
	switch program[r.at] {
	case readOpen0:
		step("reader opens, copy 0", func(w *world, r *readerState) { r.head[0] = w.head[0].now; r.at++ })
	case readOpen1:
		step("reader opens, copy 1", func(w *world, r *readerState) {
			r.head[1] = w.head[1].now
			r.at++
			if h := chosen(r.head[0], r.head[1]); h.torn || h.entry[r.snap] != entryActive && !(m.no.anyEntry && h.entry[r.snap] == entryPending) {
				r.at = 0
			}
			r.head = [2]header{}
		})
	case readFrozen:
		if r.knows || !m.clone {
			s.skip()
			return
		}
		step("reader reads the frozen table", func(w *world, r *readerState) {
			r.frozen, r.knows = w.frozen[r.snap], !m.no.liveTable
			switch {
			case m.no.liveTable:
				r.frozen = w.table.now
			case m.no.noFrozen:
				r.frozen = 0xff
			}
			r.at++
		})
	case readData:
		if m.no.flagFirst && r.ones>>r.chunk&1 == 1 {
			s.skip()
			return
		}
		step("reader reads data", func(w *world, r *readerState) {
			c, k := int(r.chunk), int(r.sector)
			r.data[c][k] = w.data[c][k].now
			if m.clone && r.frozen>>c&1 == 0 {
				r.data[c][k] = masters
			}
			r.nextSector(m)
		})
	case readFlags:
		if m.no.oldZeros && r.zeros {
			s.skip()
			return
		}
		step("reader reads flags", func(w *world, r *readerState) {
			r.ones |= w.flags[r.snap].now
			r.zeros = m.no.oldZeros
			if m.no.savedFirst && r.ones>>r.chunk&1 == 1 && !(m.clone && r.frozen>>r.chunk&1 == 0) {
				r.data[r.chunk], r.saved = r.saved[r.chunk], [maxChunks][maxSectors]uint8{}
			}
			r.at++
		})
	case readSaved:
		if !m.no.savedFirst && r.ones>>r.chunk&1 == 0 || m.clone && r.frozen>>r.chunk&1 == 0 {
			s.skip()
			return
		}
		step("reader reads what is saved", func(w *world, r *readerState) {
			c, k := int(r.chunk), int(r.sector)
			to := &r.data
			if m.no.savedFirst {
				to = &r.saved
			}
			to[c][k] = w.saved[r.snap][c][k].now
			r.nextSector(m)
		})
	case readNext:
		if int(s.w.r.chunk)+1 < m.chunks {
			step("reader goes on to the next piece", func(w *world, r *readerState) { r.chunk++; r.at = begins(program) })
		}
		if s.w.r.archived <= s.w.r.chunk {
			step("reader archives", func(w *world, r *readerState) { r.archived = r.chunk + 1 })
		}
		if m.no.earlyReport && s.w.r.archived > 0 {
			step("reader reports its cursor", func(w *world, r *readerState) { w.ask = r.archived })
		}
		step("reader has read enough for a look", func(w *world, r *readerState) { r.at++ })
	case readLook0:
		step("reader looks, copy 0", func(w *world, r *readerState) { r.head[0] = w.head[0].now; r.at++ })
	case readLook1:
		step("reader looks, copy 1", func(w *world, r *readerState) {
			r.head[1] = w.head[1].now
			if m.no.oneCopy {
				r.head[1] = r.head[0]
			}
			r.at++
		})
	case readJudge:
		step("reader judges", func(w *world, r *readerState) { m.judge(w, r, program) })
	case readReport:
		if good := min(r.judged, r.archived); good > 0 {
			step("reader reports its cursor", func(w *world, r *readerState) { w.ask = good; r.goOn(m, program) })
		}
		step("reader reports nothing", func(w *world, r *readerState) { r.goOn(m, program) })
	}
}

// skip is a step with nothing to do: the next one is taken at once.
func (s *steps) skip() {
	n := *s.w
	n.r.at++
	(&steps{s.m, &n, s.out}).readsOnly()
}

// readsOnly is reads without the reader's deaths, which were offered already.
func (s *steps) readsOnly() {
	out := s.out
	s.out = func(what string, who int8, k kind, w *world) {
		if k == usual {
			out(what, who, k, w)
		}
	}
	s.reads()
}

// begins is where a piece's steps begin.
func begins(program []readOp) uint8 {
	for i, op := range program {
		if i > 1 && (op == readFrozen || op == readLook0) {
			return uint8(i)
		}
	}
	return 0
}

func (r *readerState) nextSector(m *model) {
	r.sector++
	if int(r.sector) == m.sectors {
		r.sector = 0
		r.at++
	}
}

// judge compares what the reader calls good with what the volume held at the cut.
func (m *model) judge(w *world, r *readerState, program []readOp) {
	h, i := chosen(r.head[0], r.head[1]), r.snap
	torn := r.head[0].torn || r.head[1].torn
	from := r.judged
	if m.no.earlyReport {
		from = max(from, r.archived)
	}
	switch {
	case h.torn || torn && !m.no.tornCopy:
		r.head = [2]header{}
		r.at = uint8(slices.Index(program, readLook0)) // it looks again
		return
	case h.entry[i] != entryActive, h.cursor[i] > from && !m.no.noCursor:
		*r = readerState{at: uint8(len(program) - 1), snap: i}
		return
	}
	for c := r.judged; c <= r.chunk; c++ {
		if !w.cutDone[i] || r.data[c] != w.image[i][c] {
			w.bad = "what the reader calls good is not what the volume held at the cut"
		}
	}
	r.judged = r.chunk + 1
	r.head, r.data, r.saved = [2]header{}, [maxChunks][maxSectors]uint8{}, [maxChunks][maxSectors]uint8{}
	r.at++
}

// goOn is with the next piece after what is judged.
func (r *readerState) goOn(m *model, program []readOp) {
	if int(r.judged) == m.chunks {
		*r = readerState{at: uint8(len(program) - 1), snap: r.snap, judged: r.judged}
		return
	}
	r.chunk, r.at = r.judged, begins(program)
}

// again is the reader after its death: what is in the archive is there, good or not, the rest is read again.
func (r *readerState) again(m *model, program []readOp) readerState {
	n := readerState{snap: r.snap, archived: r.archived, judged: min(r.judged, r.archived), chunk: r.archived}
	for c := n.judged; c < n.archived; c++ {
		n.data[c] = r.data[c]
	}
	if int(n.archived) == m.chunks { // nothing is left but the look
		n.chunk--
		n.at = uint8(slices.Index(program, readLook0))
	}
	if int(n.judged) == m.chunks {
		n = readerState{at: uint8(len(program) - 1), snap: r.snap, judged: n.judged}
	}
	return n
}
