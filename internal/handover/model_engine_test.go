package handover

// reset puts the engine into a state: what was known of the other's slot and of the guest was known before.
func (m *model) reset(e *host, s State) {
	e.state, e.at = s, atRest
	if !m.no.fresh {
		e.guest, e.asked = GuestUnknown, GuestUnknown
	}
	if !m.no.forget {
		e.fact = Unread
	}
}

func (e *host) end() {
	e.proc, e.state, e.at, e.grant, e.peer = procNone, 0, atRest, 0, -1
	e.fact, e.guest, e.asked = Unread, GuestUnknown, GuestUnknown
	e.mine, e.peerClosed, e.cache, e.known, e.zero = false, false, false, false, false
	e.wanted, e.wantedBy = 0, -1
}

// said is what the slot of the engine's peer says of its grant.
func (m *model) said(w *world, e *host) Slot {
	p := &w.h[e.peer]
	if p.slotGrant != e.grant && !m.no.sameGrant {
		return Absent
	}
	return p.slot
}

// opener is the host that says in its slot that it has the volume open by the grant of h: all are looked at, for who comes back to
// a grant that was being ended does not know for whom it was.
func (m *model) opener(w *world, h int) int8 {
	for o := range m.hosts {
		p := &w.h[o]
		if o != h && !p.fenced && (p.slot == SlotIdle || p.slot == SlotActive) && (p.slotGrant == w.h[h].grant || m.no.sameGrant) {
			return int8(o)
		}
	}
	return -1
}

func gives(s State) bool { return s >= Alone && s <= Given }

// engine has the engine look, and decide.
func (s *steps) engine(h int) {
	e := &s.w.h[h]
	if !e.up || e.proc != procRuns || e.at != atRest {
		return
	}
	if e.peer >= 0 {
		if now := s.m.said(s.w, e); now != e.fact && e.state != Given {
			s.do("reads the other's slot", h, usual, func(w *world) { w.h[h].fact = now })
		}
		if !gives(e.state) && !e.mine && s.w.owner == int8(h) {
			s.do("reads the header: it is the owner", h, usual, func(w *world) { w.h[h].mine = true })
		}
	}
	f := Facts{
		Peer: e.fact, Guest: e.guest, Mine: e.mine,
		Clients:    e.dom != domNone,
		Waits:      e.req == reqWaits && !e.state.MayWrite() || e.mirror,
		Asked:      e.wanted != 0,
		PeerClosed: e.peerClosed || e.peer >= 0 && s.w.h[e.peer].fenced,
		PeerDead:   e.peer >= 0 && s.w.owner == e.peer && (s.w.h[e.peer].fenced || s.m.no.fence && !s.w.h[e.peer].up),
	}
	table := s.m.receiver
	if gives(e.state) {
		table = s.m.giver
	}
	var done [4]Action
	for i := range done {
		f.Settled = i&1 != 0
		f.Ready = i&2 != 0
		s.decide(h, table, f, done[:i], &done[i])
	}
	if e.daemon && e.want == 0 && e.dom == domNone && (s.w.phase == migNone || !gives(e.state)) {
		f.Closing = true
		var closing Action
		s.decide(h, table, f, done[:], &closing)
	}
}

func (s *steps) decide(h int, table []Rule, f Facts, before []Action, did *Action) {
	r := Next(table, s.w.h[h].state, f)
	*did = r.Do
	for _, b := range before {
		if b == r.Do {
			return
		}
	}
	if r.Do == Nothing {
		return
	}
	s.do(r.Event, h, usual, func(w *world) { s.m.begin(w, h, r.Do) })
}

// begin takes the first step of an action.
func (m *model) begin(w *world, h int, a Action) {
	e := &w.h[h]
	first := map[Action]at{
		DoGrant: grantCommit, DoSeal: sealDrain, DoReclaim: reclaimSlot, DoYield: yieldSlot, DoReopen: reopenSlot, DoKeep: keepSlot,
		DoEndGrant: endHeader, DoHandOver: giveHeader, DoActivate: activateSlot, DoOwn: ownHeader, DoTakeOver: takeHeader,
		DoClose: closeFree, DoRelease: releaseHeader,
	}
	e.at = first[a]
	switch a {
	case DoGrant:
		e.grant, e.peer, e.peerClosed = e.wanted, e.wantedBy, false
		e.wanted, e.wantedBy = 0, -1
		e.cache = m.no.early
		if m.no.commit {
			e.at = grantSlot
		}
	case DoSeal:
		if m.no.drain {
			e.at = sealSlot
		}
	case DoReclaim:
		if m.no.keepBack {
			m.reset(e, Reclaim)
			e.fact = m.said(w, e)
		}
	case DoActivate:
		if m.no.volatileActive { // goes on before its slot is durable
			e.state = Active
			e.fact = m.said(w, e)
		}
	case DoWrite:
		m.reset(e, Writer)
	case DoRelease:
		e.cache = false
	case DoLeave:
		e.end()
	}
}

// land has what the engine is doing on the LUN done. Of an engine that was killed only what it wrote arrives.
func (m *model) land(w *world, h int) {
	e := &w.h[h]
	a := e.at
	if a.writesHeader() && w.owner != int8(h) && a != takeHeader {
		if !e.fenced {
			w.bad = "3: the header is written by a host that it does not name"
		}
		a = atRest // an older epoch: it counts for nothing
	}
	slot := func(s Slot, next State) {
		e.slot, e.slotGrant = s, e.grant
		if s == Absent {
			e.slotGrant = 0
		}
		m.reset(e, next)
	}
	switch a {
	case grantCommit:
		if w.owner == int8(h) {
			w.flag = w.flag || e.flag
		}
		e.at = grantSlot
	case grantSlot:
		slot(SlotOpen, e.state)
		e.at = grantHeader
	case grantHeader:
		w.grant, w.grantTo, w.answer = e.grant, e.peer, e.grant
		m.reset(e, Open)
	case sealDrain:
		e.at = sealSlot
	case sealSlot:
		slot(SlotSealed, Sealed)
	case reclaimSlot:
		slot(SlotReclaim, Reclaim)
	case yieldSlot:
		slot(SlotYield, Yield)
	case reopenSlot:
		slot(SlotOpen, Open)
	case keepSlot:
		slot(SlotKept, Kept)
	case endHeader:
		w.grant, w.grantTo = 0, -1
		e.at = endRead
		if m.no.reread {
			e.at = endFree
		}
	case endRead:
		e.at = endFree
		if o := m.opener(w, h); o >= 0 {
			e.at, e.peer = endBack, o
		}
	case endBack:
		w.grant, w.grantTo = e.grant, e.peer
		e.at = atRest
	case endFree:
		slot(Absent, Alone)
		e.grant, e.peer, e.peerClosed, e.cache, e.flag = 0, -1, false, true, w.flag
	case giveHeader:
		w.owner, w.grant, w.grantTo = e.peer, 0, -1
		m.reset(e, Given)
	case activateSlot:
		if m.no.volatileActive {
			e.slot, e.slotGrant, e.at = SlotActive, e.grant, atRest
			break
		}
		slot(SlotActive, Active)
	case takeHeader:
		w.owner, w.grant, w.grantTo = int8(h), 0, -1
		e.at = ownFree
	case ownHeader:
		e.at = ownFree
	case ownFree:
		slot(Absent, Alone)
		e.grant, e.peer, e.mine, e.cache = 0, -1, false, true
		e.flag = w.flag && !e.zero
	case closeFree:
		slot(Absent, e.state)
		e.at = closeRead
	case closeRead:
		e.at = releaseHeader
		if w.owner != int8(h) {
			e.end()
		}
	case releaseHeader:
		w.owner = -1
		w.flag = w.flag || e.flag
		e.end()
	case openRead:
		e.at = openSlot
		if w.grant != e.grant || w.grantTo != int8(h) {
			e.end()
		}
	case openSlot:
		slot(SlotIdle, e.state)
		e.at = openAgain
	case openAgain:
		if w.grant != e.grant || w.grantTo != int8(h) {
			if !m.no.endCheck {
				e.at = openBack
				break
			}
		}
		m.reset(e, Idle)
		e.zero = m.no.wait && !w.flag // remembers what QEMU's read of sector 0 found
	case openBack:
		slot(Absent, e.state)
		e.end()
	}
}

// disk has something done on the LUN: by an engine, or by what is left of one.
func (s *steps) disk(h int) {
	e := &s.w.h[h]
	live := e.proc == procRuns
	if live && e.at != atRest && !(e.at == sealDrain && e.req >= reqData) || e.proc == procKilled && e.at.writesMeta() {
		s.do("its read or write of slot, header or table is done", h, usual, func(w *world) {
			e := &w.h[h]
			s.m.land(w, h)
			if !live {
				e.at = atRest
				w.buried(h)
			}
		})
	}
	switch holds := e.at == sealDrain || e.at == sealSlot; {
	case live && e.req == reqWaits && e.state.MayWrite() && !holds:
		s.do("begins to write", h, usual, func(w *world) { w.write(h) })
	case live && e.req == reqWaits && e.state == Given && e.at == atRest:
		s.do("fails the guest's write", h, usual, func(w *world) {
			if e := &w.h[h]; e.dom == domRuns || e.dom == domFailed {
				e.req, e.dom = reqNone, domFailed
			} else {
				e.req = reqNone // the migration notices
			}
		})
	case e.proc != procNone && e.req == reqData:
		s.do("data is written", h, usual, func(w *world) { s.m.data(w, h) })
	case e.proc != procNone && e.req == reqFlag:
		s.do("flag is written", h, usual, func(w *world) {
			e := &w.h[h]
			if w.owner == int8(h) || !e.fenced && e.up {
				w.flag = true
			} // a dead owner's goes to the other table area
			if !live {
				w.again(h)
				return
			}
			e.flag = true
			w.ack(h)
		})
	}
	if live && e.mirror {
		if e.state.MayWrite() {
			s.do("writes what --copy-storage-all sent", h, usual, func(w *world) { w.bad = "6: a mirror's write reaches the disk" })
		} else {
			s.do("refuses a mirror's write", h, usual, func(w *world) { w.h[h].mirror = false; w.cancel(); w.h[h].dom = domNone })
		}
	}
	if s.m.no.flush && live && e.dom == domSuspended && (e.state == Sealed || e.state == Given) && e.at == atRest {
		s.do("writes its table for a late FLUSH", h, usual, func(w *world) { w.flag = w.h[h].flag })
	}
}

// write begins the guest's write.
func (w *world) write(h int) {
	e := &w.h[h]
	e.req = reqData
	if w.forked && (w.forkA == int8(h) || w.forkB == int8(h)) {
		if w.claim >= 0 && w.claim != int8(h) {
			w.bad = "2: a guest writes after the same guest wrote on the other host"
		}
		w.claim = int8(h)
	}
}

func (m *model) data(w *world, h int) {
	e := &w.h[h]
	w.data = e.ver
	switch {
	case e.proc != procRuns:
		w.again(h)
	case e.cache || e.flag:
		e.flag = true
		w.ack(h)
	default:
		e.req = reqFlag
	}
}

func (w *world) ack(h int) {
	e := &w.h[h]
	e.req, e.exp, w.acked = reqNone, e.ver, e.ver
}

// again: QEMU sends the request again to the next engine.
func (w *world) again(h int) {
	e := &w.h[h]
	e.req = reqWaits
	if e.dom == domNone {
		e.req = reqNone
	}
	w.buried(h)
}

// buried ends a killed engine of which nothing is on its way any more.
func (w *world) buried(h int) {
	if e := &w.h[h]; e.proc == procKilled && e.req < reqData && !e.at.writesMeta() {
		slot, grant := e.slot, e.slotGrant
		e.end()
		e.slot, e.slotGrant = slot, grant
	}
}
