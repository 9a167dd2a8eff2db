package reader

// The model: a volume on shared storage, the engines of two hosts that may write it, its snapshots, and one reader that owns
// none of it. Whatever can happen next is one step, of whichever of them; every read and write on the storage is a step of its
// own. Storage has a write cache, engines and hosts die, and what they had under way may land later.
//
// What must hold is one thing: what the reader's last look calls good is what the volume held at the cut.

const (
	maxChunks  = 2
	maxSectors = 2 // of a chunk: what is written and read one after the other
	maxSnaps   = 2
	hosts      = 2
)

// What a sector holds.
const (
	junk     uint8 = iota // what was never written
	zeros                 // what a trim leaves
	masters               // the master's
	first                 // the origin's, before anybody writes
	versions              // of the guest's writes, from here on
)

// cell is what the storage has of a sector or a table: what reads see, and what a power cut can't take away.
type cell struct{ now, dur uint8 }

func (c *cell) flush() { c.dur = c.now }

// The states of a stack entry.
const (
	entryNone uint8 = iota // not there, or taken out
	entryPending
	entryActive
	entryBroken
)

// header is a copy of the volume's header.
type header struct {
	torn   bool // is being written, or was and never came to its end
	epoch  uint8
	seq    uint8
	owner  uint8
	entry  [maxSnaps]uint8
	cursor [maxSnaps]uint8 // chunks
}

func (h header) newer(than header) bool {
	return h.epoch > than.epoch || h.epoch == than.epoch && h.seq > than.seq
}

type headerCopy struct{ now, dur header }

// chosen is the copy that counts.
func chosen(a, b header) header {
	if a.torn || !b.torn && b.newer(a) {
		return b
	}
	return a
}

// What a host is to the volume.
const (
	away     uint8 = iota
	receiver       // has it open, may not write
	writer         // the header may not say so yet
	giver          // wrote it before; its last header write is to come
)

// How far a batch of the copier is: what it does next.
const (
	batchNone uint8 = iota
	batchReads
	batchWrites // the snapshot's data
	batchFlushes
	batchFlags
	batchFlagsFlush
)

// batch is chunks that are being saved in one snapshot.
type batch struct {
	at     uint8
	chunks uint8 // mask
	flags  uint8 // what is written to the table
	data   [maxChunks][maxSectors]uint8
}

// How far a request of the guest is.
const (
	reqNone uint8 = iota
	reqWaits
	reqWrites
)

type request struct {
	at, chunk, ver, sector uint8
	trim                   bool
}

// Why a header is written.
const (
	writeNone uint8 = iota
	writeEntry
	writeCursor
	writeGive
	writeTake
	writeOpen
)

// How far a cut is.
const (
	cutNone uint8 = iota
	cutAdded
	cutPrewritten
	cutSuspended
	cutFlushed
	cutFrozen // the cut's instant has been
	cutKept
)

// engine is a host's engine process, or none.
type engine struct {
	up   bool // the process runs; where not, what it had under way may still land
	dead bool // its host is gone for good, and was taken over from
	role uint8
	open header // the header as it goes by it

	// A header write: why, the header, how far (three steps a copy), and which copy is first.
	why, step, first uint8
	next             header

	loaded [maxSnaps]bool  // it has read the snapshot's table
	ones   [maxSnaps]uint8 // what it knows as saved
	placed [maxSnaps]bool  // the snapshot is in place
	batch  [maxSnaps][2]batch
	req    [2]request
	cut    uint8 // of the youngest snapshot
}

type world struct {
	data   [maxChunks][maxSectors]cell
	known  uint8 // the clone's flags in memory (or in the exception cache, which outlives an engine)
	table  cell  // the clone's flags on the storage
	saved  [maxSnaps][maxChunks][maxSectors]cell
	flags  [maxSnaps]cell
	frozen [maxSnaps]uint8
	head   [2]headerCopy
	engine [hosts]engine
	r      readerState

	cutDone [maxSnaps]bool
	image   [maxSnaps][maxChunks][maxSectors]uint8 // what the volume held at the cut

	ask  uint8 // the reader's report of its cursor, on its way
	last uint8 // version given out

	writes, faults, moves, cuts uint8 // that may still happen

	bad string
}

// model is what is explored: the configuration, and what a mutant does otherwise.
type model struct {
	chunks, sectors, snaps, reqs int
	clone                        bool
	start                        world
	no                           mutant
}

// mutant says what is done wrong.
type mutant struct {
	// by the reader
	flagFirst, lookFirst, liveTable, noFrozen, oldZeros, noCursor, oneCopy, tornCopy, savedFirst, anyEntry, earlyReport bool
	// by engines
	unordered, noWait, noDataFlush, noFlagFlush, trims, keepZeros, earlyWrite, oneCopyBreak, earlyCursor bool
	takesUnbroken, noFrozenUpdate, noCutFlush, racingTables, oldHeader, noOpenFlush                      bool
}

type kind uint8

const (
	usual kind = iota
	fault      // counted
)

// steps collects what can happen next.
type steps struct {
	m   *model
	w   *world
	out func(what string, who int8, k kind, w *world)
}

// do offers a step.
func (s *steps) do(what string, who int, k kind, change func(w *world)) {
	n := *s.w
	if k == fault {
		if n.faults == 0 {
			return
		}
		n.faults--
	}
	change(&n)
	s.out(what, int8(who), k, &n)
}

const theReader = hosts // who, in a trace

func (m *model) next(w *world, out func(what string, who int8, k kind, w *world)) {
	s := &steps{m, w, out}
	for h := range hosts {
		s.guest(h)
		s.copier(h)
		s.header(h)
		s.cutting(h)
		s.moving(h)
		s.dying(h)
	}
	s.storage()
	s.reads()
}

// newModel has the volume on host 0, which has every snapshot in place; with cuts the youngest is still to be made.
func newModel(clone bool, chunks, sectors, snaps, writes, faults int) *model {
	m := &model{chunks: chunks, sectors: sectors, snaps: snaps, reqs: 1, clone: clone}
	w := &m.start
	w.last, w.writes, w.faults = versions, uint8(writes), uint8(faults)
	for c := range chunks {
		for s := range sectors {
			v := first
			if clone && c > 0 {
				v = junk // the master's: clear in the table
			}
			w.data[c][s] = cell{v, v}
		}
	}
	if clone {
		w.known, w.table = 1, cell{1, 1}
	}
	h := header{epoch: 1, seq: 1}
	e := &w.engine[0]
	e.up, e.role = true, writer
	for i := range snaps {
		h.entry[i], e.placed[i], w.cutDone[i], w.frozen[i] = entryActive, true, true, w.known
		w.image[i] = m.contents(w)
	}
	e.open = h
	w.head = [2]headerCopy{{h, h}, {h, h}}
	w.r.snap = uint8(snaps - 1)
	return m
}

// withCut has the youngest snapshot not made yet.
func (m *model) withCut() *model {
	i, w := m.snaps-1, &m.start
	w.engine[0].open.entry[i], w.engine[0].placed[i], w.cutDone[i], w.frozen[i] = entryNone, false, false, 0
	h := w.engine[0].open
	w.head = [2]headerCopy{{h, h}, {h, h}}
	w.cuts = 1
	return m
}

// contents is the volume as a guest would read it now.
func (m *model) contents(w *world) (all [maxChunks][maxSectors]uint8) {
	for c := range m.chunks {
		for s := range m.sectors {
			all[c][s] = w.data[c][s].now
			if m.clone && w.known>>c&1 == 0 {
				all[c][s] = masters
			}
		}
	}
	return all
}
