package handover

// The model: hosts, the LUN, an engine and a daemon a host, libvirt with its QEMUs, messages and an operator. Whatever can
// happen next is one step, of whichever of them. Engines decide by Next and the tables that real engines run; every read and
// write they do on the LUN is a step of its own, and what is under way when one dies may land later.

const maxHosts = 3

// What a domain is doing on a host.
const (
	domNone uint8 = iota
	domArriving
	domRuns
	domSuspended // by the migration
	domFailed    // paused: its disk refused a write
)

// The life of an engine process.
const (
	procNone uint8 = iota
	procRuns
	procKilled // something that it wrote is still to land, and until then its locks are held
)

// What an engine is in the middle of.
type at uint8

const (
	atRest at = iota
	grantCommit
	grantSlot
	grantHeader
	sealDrain
	sealSlot
	reclaimSlot
	yieldSlot
	reopenSlot
	keepSlot
	endHeader
	endRead
	endFree
	endBack // the header gets its grant back
	giveHeader
	activateSlot
	ownHeader
	ownFree
	takeHeader
	closeFree
	closeRead
	releaseHeader
	openRead
	openSlot
	openAgain
	openBack
)

// writesMeta says that a write of the slot, the header or the table is under way.
func (a at) writesMeta() bool {
	return a != atRest && a != sealDrain && a != endRead && a != closeRead && a != openRead && a != openAgain
}

func (a at) writesHeader() bool {
	return a == grantHeader || a == endHeader || a == endBack || a == giveHeader || a == ownHeader || a == takeHeader || a == releaseHeader
}

// A write of the guest on its way.
const (
	reqNone  uint8 = iota
	reqWaits       // sent to the engine, perhaps held by it
	reqData        // its data is being written
	reqFlag        // its flag is being written
)

type host struct {
	up, fenced bool
	daemon     bool
	known      bool  // the daemon knows of the engine that it began
	want       uint8 // the grant for which the daemon prepares

	proc       uint8
	state      State
	grant      uint8
	peer       int8
	at         at
	fact       Slot
	guest      Guest
	asked      Guest // what the daemon heard from libvirt and has not told the engine yet
	mine       bool
	peerClosed bool
	wanted     uint8 // the grant that it is asked for, and by whom
	wantedBy   int8
	flag       bool // it knows the chunk's flag as one
	zero       bool // only a mutant: it knows it as zero
	cache      bool

	slot      Slot // on the LUN
	slotGrant uint8

	dom    uint8
	req    uint8
	ver    uint8 // what the request writes
	mirror bool  // a write of --copy-storage-all waits
	exp    uint8 // what the guest must read
}

// How far a migration is.
const (
	migNone uint8 = iota
	migHook       // the destination's hook runs
	migCopies
	migSuspended // the source is
	migResumed   // the destination is; the source does not know yet
)

type world struct {
	h [maxHosts]host

	owner   int8 // the header; -1: nobody
	grant   uint8
	grantTo int8
	data    uint8 // the version on the LUN, 0: the master's
	flag    bool
	last    uint8 // the last version given out
	acked   uint8

	phase    uint8
	from, to int8
	id       uint8 // of the migration and of its grant

	ask, closed uint8 // messages under way, by grant: may be late or twice, and need not arrive
	answer      uint8

	// Two guests may be able to run from one memory image: the first to write has the disk.
	forked       bool
	forkA, forkB int8
	claim        int8

	migrations, writes, faults, fences uint8 // that may still happen

	bad string
}

// model is what is explored: the tables, the bounds, and what a mutant leaves out.
type model struct {
	hosts           int
	giver, receiver []Rule
	start           world
	mirror          bool // migrations have --copy-storage-all
	unseenEnds      bool // a restarted source may end before anybody has seen it run
	operator        bool

	no mutant
}

// mutant says which step of an action is left out.
type mutant struct {
	commit, drain, reread, forget, fresh, sameGrant, keepBack, volatileActive, early, closeRead, endCheck, flush, wait, fence bool
}

type kind uint8

const (
	usual    kind = iota // happens in the end if nothing hinders it
	fault                // counted
	operator             // counted
)

type label struct {
	what string
	host int8
}

// steps collects what can happen next.
type steps struct {
	m   *model
	w   *world
	out func(label, kind, *world)
}

// do offers a step.
func (s *steps) do(what string, h int, k kind, change func(w *world)) {
	n := *s.w
	change(&n)
	if n.bad == "" {
		n.bad = s.m.check(&n)
	}
	s.out(label{what, int8(h)}, k, &n)
}

func (m *model) next(w *world, out func(label, kind, *world)) {
	s := &steps{m, w, out}
	for h := range m.hosts {
		s.engine(h)
		s.disk(h)
		s.daemon(h)
		s.faults(h)
	}
	s.libvirt()
}

// newModel has the volume on host 0, whose guest runs; its one chunk is the master's, or written and not committed.
func newModel(hosts, migrations, writes, faults int, dirty bool) *model {
	m := &model{hosts: hosts, giver: Giver, receiver: Receiver, operator: true}
	w := &m.start
	w.grantTo, w.forkA, w.forkB, w.claim, w.from, w.to = -1, -1, -1, -1, -1, -1
	w.migrations, w.writes, w.faults, w.fences = uint8(migrations), uint8(writes), uint8(faults), 2
	for h := range hosts {
		w.h[h] = host{up: true, daemon: true, slot: Absent, peer: -1, wantedBy: -1}
	}
	a := &w.h[0]
	a.proc, a.state, a.cache, a.dom, a.known = procRuns, Alone, true, domRuns, true
	if dirty {
		w.data, w.last, w.acked, a.exp, a.flag = 1, 1, 1, 1, true
	}
	return m
}
