package handover

// daemon has a host's daemon do something, and what it tells others.
func (s *steps) daemon(h int) {
	e, w := &s.w.h[h], s.w
	if !e.up {
		return
	}
	if !e.daemon {
		s.do("daemon starts again", h, usual, func(w *world) { w.h[h].daemon = true })
		return
	}
	if e.proc == procNone && (e.dom != domNone || e.slot == SlotIdle || e.slot == SlotActive || w.owner == int8(h) && w.grant != 0) {
		s.do("daemon starts the engine again", h, usual, func(w *world) { s.m.restart(w, h) })
	}
	if live := e.proc == procRuns && e.at == atRest; live && (e.state == Open || e.state == Sealed || e.state == Reclaim || e.state == Idle) {
		if now := w.libvirtSays(h); e.asked == GuestUnknown && e.guest != now {
			s.do("daemon asks libvirt", h, usual, func(w *world) { w.h[h].asked = now })
		}
		if e.asked != GuestUnknown {
			s.do("daemon tells the engine of the guest", h, usual, func(w *world) { w.h[h].guest, w.h[h].asked = w.h[h].asked, GuestUnknown })
		}
		if e.guest == GuestStopped || e.guest == GuestRuns {
			s.do("what the daemon told is too old", h, usual, func(w *world) { w.h[h].guest = GuestUnknown })
		}
	}
	if w.ask != 0 && w.askTo == int8(h) && w.owner == int8(h) && e.proc == procRuns && e.state == Alone && e.at == atRest && e.wanted == 0 {
		by := w.askBy
		s.do("daemon has the engine asked for a grant", h, usual, func(w *world) {
			w.h[h].wanted, w.h[h].wantedBy = w.ask, by
			w.ask = 0
		})
		if w.faults > 0 {
			s.do("request for a grant comes, and will come again", h, fault, func(w *world) {
				w.h[h].wanted, w.h[h].wantedBy = w.ask, by
				w.faults--
			})
		}
	}
	if w.closed != 0 && e.proc == procRuns && gives(e.state) && e.peer >= 0 && !e.peerClosed && (e.grant == w.closed || s.m.no.sameGrant) {
		s.do("daemon hears that the receiver has closed", h, usual, func(w *world) { w.h[h].peerClosed = true })
	}
	s.receiver(h)
}

func (s *steps) receiver(h int) {
	e, w := &s.w.h[h], s.w
	if w.phase == migHook && w.to == int8(h) {
		if e.want == 0 && e.proc == procNone && w.owner == w.from {
			s.do("hook: daemon asks the owner for a grant", h, usual, func(w *world) { w.h[h].want = w.id; w.ask, w.askTo, w.askBy = w.id, w.owner, int8(h) })
		}
		if e.want == w.id && w.answer == w.id && e.proc == procNone && e.slot != SlotIdle {
			s.do("hook: daemon starts the engine", h, usual, func(w *world) { w.launch(h, w.id) })
		}
	}
	open := e.proc != procNone && (e.known || e.slot == SlotIdle || e.slot == SlotActive)
	if g := w.grant; g != 0 && w.grantTo == int8(h) && w.closed != g && !open && e.want == 0 && e.dom == domNone &&
		!(e.slotGrant == g && e.slot != Absent) {
		s.do("daemon says that it has not got the volume open", h, usual, func(w *world) { w.closed = g })
	}
}

// libvirtSays is what it says of the domain at this moment.
func (w *world) libvirtSays(h int) Guest {
	switch e := &w.h[h]; {
	case e.dom != domRuns && e.dom != domFailed:
		return GuestStopped
	case w.phase != migNone && w.from == int8(h):
		return GuestLeaves
	default:
		return GuestRuns
	}
}

func (w *world) launch(h int, grant uint8) {
	e := &w.h[h]
	e.proc, e.at, e.grant, e.peer, e.known = procRuns, openRead, grant, w.owner, true
	e.state, e.fact, e.flag = Closed, Unread, false
}

// restart has an engine go on from what the header and its slot say.
func (m *model) restart(w *world, h int) {
	e := &w.h[h]
	flag := e.flag
	slot, grant := e.slot, e.slotGrant
	if grant == 0 {
		slot = Absent
	}
	switch {
	case w.owner == int8(h) && w.grant != 0:
		states := map[Slot]State{SlotOpen: Open, SlotSealed: Sealed, SlotReclaim: Reclaim, SlotYield: Yield, SlotKept: Kept}
		e.proc, e.grant, e.peer = procRuns, w.grant, w.grantTo
		m.reset(e, states[slot])
	case w.owner == int8(h) && (slot == SlotIdle || slot == SlotActive): // it had not got to owning it
		e.proc, e.grant, e.mine = procRuns, grant, true
		m.reset(e, Active)
		e.at = ownHeader
	case w.owner == int8(h) && slot != Absent: // a grant that was being made or ended
		e.proc, e.grant, e.state, e.at = procRuns, grant, Kept, endRead
	case w.owner == int8(h):
		e.proc = procRuns
		m.reset(e, Alone)
		e.cache, flag = true, flag || w.flag
	case (slot == SlotIdle || slot == SlotActive) && w.grant == grant && w.grantTo == int8(h):
		e.proc, e.grant, e.peer = procRuns, grant, w.owner
		m.reset(e, map[Slot]State{SlotIdle: Idle, SlotActive: Active}[slot])
	case slot == SlotIdle || slot == SlotActive:
		e.proc, e.state, e.grant, e.at = procRuns, Idle, grant, closeFree
	case w.owner >= 0 && slot != Absent:
		e.proc, e.grant = procRuns, grant
		m.reset(e, Given)
	default:
		return
	}
	e.flag, e.known = flag, true
}

// libvirt has the migration, if any, go on or fail.
func (s *steps) libvirt() {
	w := s.w
	if w.phase == migNone {
		for from := range s.m.hosts {
			for to := range s.m.hosts {
				if from != to && w.migrations > 0 && w.h[from].dom == domRuns && w.h[to].dom == domNone && w.h[to].up {
					s.do("migration begins", from, usual, func(w *world) {
						w.migrations--
						w.id++
						w.phase, w.from, w.to, w.answer = migHook, int8(from), int8(to), 0
					})
				}
			}
		}
		return
	}
	a, b := &w.h[w.from], &w.h[w.to]
	from, to := int(w.from), int(w.to)
	switch w.phase {
	case migHook:
		if b.proc == procRuns && b.state == Idle && b.at == atRest && b.grant == w.id && b.daemon && b.want == w.id {
			s.do("hook ends, QEMU starts", to, usual, func(w *world) { w.phase = migCopies; w.h[to].dom = domArriving; w.h[to].want = 0 })
		}
		s.do("hook vetoes, or times out", to, usual, func(w *world) { w.cancel() })
	case migCopies:
		if s.m.mirror && !b.mirror && w.faults > 0 {
			s.do("--copy-storage-all writes", to, fault, func(w *world) { w.h[to].mirror = true; w.faults-- })
		}
		if a.dom == domRuns && b.dom == domArriving {
			s.do("source is suspended", from, usual, func(w *world) { w.phase = migSuspended; w.h[from].dom = domSuspended })
		}
	case migSuspended:
		if s.m.mirror && !b.mirror && w.faults > 0 {
			s.do("--copy-storage-all writes", to, fault, func(w *world) { w.h[to].mirror = true; w.faults-- })
		}
		if a.req == reqNone && !b.mirror && a.dom == domSuspended && b.dom == domArriving {
			s.do("destination resumes", to, usual, func(w *world) {
				w.phase = migResumed
				w.h[to].dom, w.h[to].exp = domRuns, w.h[from].exp
				w.forked, w.forkA, w.forkB, w.claim = true, w.from, w.to, -1
			})
		}
	case migResumed:
		if b.up {
			s.do("source ends", from, usual, func(w *world) { w.h[from].dom = domNone; w.phase = migNone; w.unfork() })
		}
		if w.faults > 0 || !b.up {
			k, cost := fault, uint8(1)
			if !b.up {
				k, cost = usual, 0
			}
			s.do("Finish's reply is lost, source runs again", from, k, func(w *world) { w.faults -= cost; w.cancel() })
		}
	}
	if w.faults > 0 && (w.phase == migCopies || w.phase == migSuspended) {
		s.do("migration is cancelled or fails", from, fault, func(w *world) {
			w.faults--
			w.cancel()
			w.h[to].dom, w.h[to].mirror = domNone, false
		})
	}
}

// cancel: the migration is over, and the source goes on.
func (w *world) cancel() {
	if w.from >= 0 {
		if a := &w.h[w.from]; a.dom == domSuspended {
			a.dom = domRuns
		}
	}
	if w.to >= 0 {
		w.h[w.to].want = 0
	}
	w.phase = migNone
}

// unfork: of the two that could run at most one is left that may write.
func (w *world) unfork() {
	if !w.forked {
		return
	}
	a, b := w.h[w.forkA].dom, w.h[w.forkB].dom
	if a == domNone && w.claim != w.forkA || b == domNone && w.claim != w.forkB || a == domNone && b == domNone {
		w.forked, w.forkA, w.forkB, w.claim = false, -1, -1, -1
	}
}

// ends takes a domain from a host, and what it had under way out of QEMU.
func (w *world) ends(h int) {
	e := &w.h[h]
	e.dom, e.mirror = domNone, false
	if e.req == reqWaits {
		e.req = reqNone
	}
	if w.phase != migNone && (w.from == int8(h) || w.to == int8(h)) {
		if w.from == int8(h) && w.phase != migResumed {
			w.h[w.to].dom, w.h[w.to].mirror = domNone, false
		}
		w.cancel()
	}
	w.unfork()
}

// faults: guests write, and anything may die.
func (s *steps) faults(h int) {
	e, w := &s.w.h[h], s.w
	if e.dom == domRuns && e.req == reqNone && w.writes > 0 {
		s.do("guest writes", h, usual, func(w *world) {
			e := &w.h[h]
			w.writes--
			w.last++
			e.req, e.ver = reqWaits, w.last
			held := !e.state.MayWrite() || e.at == sealDrain || e.at == sealSlot
			if !s.m.no.fresh && (held || e.guest == GuestStopped || e.asked == GuestStopped) {
				e.guest, e.asked = GuestUnknown, GuestUnknown
			}
		})
	}
	if !e.up && !e.fenced && s.m.operator && w.fences > 0 && !(e.proc != procNone && e.req == reqData) {
		s.do("operator: the host is fenced", h, operator, func(w *world) {
			w.h[h].fenced = true
			w.fences--
			for o := range w.h { // who hears of it reads the dead one's slot again
				if w.h[o].peer == int8(h) && !s.m.no.forget {
					w.h[o].fact = Unread
				}
			}
		})
	}
	if !e.up && e.proc != procNone {
		s.do("what was under way is lost", h, usual, func(w *world) { w.h[h].req = reqNone; w.h[h].at = atRest; w.buried(h) })
	}
	if !e.up && !e.fenced && e.proc == procNone && s.m.operator && w.fences > 0 {
		s.do("operator: the host boots", h, operator, func(w *world) { w.h[h].up, w.h[h].daemon = true, true; w.h[h].flag = false; w.fences-- })
	}
	// A source that was started again while the destination runs, and wrote: nobody has seen yet that it runs.
	unseen := w.forked && w.claim == int8(h) && w.forkA == int8(h) && w.owner == int8(h) && w.grant != 0 && e.slot != SlotKept &&
		!s.m.unseenEnds && !(s.m.no.keep && e.guest == GuestRuns)
	if s.m.operator && w.fences > 0 && e.dom != domNone && e.dom != domArriving && !unseen {
		s.do("operator destroys the guest", h, operator, func(w *world) { w.fences--; w.ends(h) })
	}
	if w.faults == 0 || !e.up {
		return
	}
	if e.daemon {
		s.do("daemon is killed", h, fault, func(w *world) {
			e := &w.h[h]
			e.daemon, e.known, e.want, e.asked = false, false, 0, GuestUnknown
			w.faults--
			if w.phase == migHook && w.to == int8(h) {
				w.cancel()
			}
		})
	}
	if e.proc == procRuns {
		s.do("engine is killed", h, fault, func(w *world) { w.faults--; w.h[h].kill(); w.buried(h) })
	}
	if e.dom == domRuns && w.phase == migResumed && w.to == int8(h) {
		s.do("destination's QEMU is killed", h, fault, func(w *world) { w.faults--; w.ends(h) })
	}
	if (!e.cache || !e.flag || w.flag) && !unseen {
		s.do("host dies", h, fault, func(w *world) {
			e := &w.h[h]
			w.faults--
			e.up, e.daemon, e.want = false, false, 0
			e.kill()
			w.ends(h)
			w.buried(h)
		})
	}
}

func (e *host) kill() {
	if e.proc == procRuns {
		e.proc, e.cache = procKilled, false
	}
	e.known, e.mine, e.peerClosed, e.fact, e.guest, e.asked = false, false, false, Unread, GuestUnknown, GuestUnknown
	e.wanted, e.wantedBy = 0, -1
}
