package reader

// begin starts a header write of an engine.
func (m *model) begin(w *world, h int, why uint8, change func(next *header)) {
	e := &w.engine[h]
	e.next = e.open
	e.next.torn = false
	e.next.seq++
	change(&e.next)
	e.why, e.step, e.first = why, 0, 0
	if a, b := w.head[0].now, w.head[1].now; !a.torn && (b.torn || a.newer(b) || why == writeTake) {
		e.first = 1 // the one that is good stays
	}
	if why == writeEntry && m.no.earlyWrite {
		e.open = e.next
	}
}

// header goes on with a header write: a copy is torn, then whole, then durable; then the other one.
func (s *steps) header(h int) {
	e, m := &s.w.engine[h], s.m
	switch {
	case !e.up:
		return
	case e.why != writeNone:
		s.do("header write goes on", h, usual, func(w *world) {
			e := &w.engine[h]
			m.writeStep(w, e)
			if e.step++; e.step == 6 || e.step == 3 && m.no.oneCopyBreak && e.why == writeEntry {
				m.written(w, h)
			}
		})
		return
	case e.role == giver:
		s.do("giver hands the header over", h, usual, func(w *world) {
			m.begin(w, h, writeGive, func(n *header) { n.epoch++; n.owner = uint8(1 - h) })
		})
		return
	case e.role != writer:
		return
	}
	if e.open.owner != uint8(h) {
		now := chosen(s.w.head[0].now, s.w.head[1].now)
		if now.owner == uint8(h) && s.w.engine[1-h].why != writeGive { // in one copy alone: for long enough
			s.do("owns the header", h, usual, func(w *world) { m.owns(w, h) })
		}
		return
	}
	for i := range m.snaps {
		if e.open.entry[i] == entryActive && s.holdsUp(e, i) {
			s.do("breaks a snapshot", h, fault, func(w *world) {
				m.begin(w, h, writeEntry, func(n *header) { n.entry[i] = entryBroken })
			})
		}
	}
	if i := s.w.r.snap; s.w.ask > e.open.cursor[i] && e.open.entry[i] == entryActive && e.cut == cutNone {
		s.do("cursor moves", h, usual, func(w *world) {
			ask := w.ask
			w.ask = 0
			m.begin(w, h, writeCursor, func(n *header) { n.cursor[i] = ask })
		})
	}
}

// holdsUp says whether a request waits for a snapshot.
func (s *steps) holdsUp(e *engine, i int) bool {
	for n := range s.m.reqs {
		if r := &e.req[n]; r.at == reqWaits && s.m.needs(s.w, e, i, int(r.chunk)) {
			return true
		}
	}
	return false
}

// owns is a receiver that finds itself in the header, and goes by that from here on.
func (m *model) owns(w *world, h int) {
	e := &w.engine[h]
	now := chosen(w.head[0].now, w.head[1].now)
	if m.no.oldHeader {
		now.entry, now.cursor = e.open.entry, e.open.cursor
	}
	e.open = now
}

func (m *model) writeStep(w *world, e *engine) {
	c := &w.head[(e.first+e.step/3)%2]
	switch e.step % 3 {
	case 0:
		c.now = header{torn: true}
	case 1:
		c.now = e.next
	case 2:
		c.dur = c.now
	}
}

// written ends a header write.
func (m *model) written(w *world, h int) {
	e := &w.engine[h]
	if e.why == writeGive {
		*e = engine{}
		return
	}
	e.open = e.next
	if e.why == writeTake || e.why == writeOpen {
		for i := range m.snaps {
			e.placed[i] = e.open.entry[i] == entryActive
		}
	}
	e.why, e.step, e.first, e.next = writeNone, 0, 0, header{}
	if e.cut == cutKept {
		e.cut = cutNone
	}
}

// cutting makes the youngest snapshot: the table of a clone is frozen, first while the guest writes, then again while it waits.
func (s *steps) cutting(h int) {
	e, w, m := &s.w.engine[h], s.w, s.m
	i := m.snaps - 1
	if !e.up || e.role != writer || e.why != writeNone || e.open.owner != uint8(h) {
		return
	}
	switch e.cut {
	case cutNone:
		if w.cuts > 0 && e.open.entry[i] == entryNone && w.engine[1-h].role == away {
			s.do("snapshot is added", h, usual, func(w *world) {
				w.cuts--
				m.begin(w, h, writeEntry, func(n *header) { n.entry[i] = entryPending })
				w.engine[h].cut = cutAdded
			})
		}
		return
	case cutAdded:
		s.do("table is frozen ahead", h, usual, func(w *world) { w.frozen[i] = w.known; w.engine[h].cut = cutPrewritten })
		return
	case cutPrewritten:
		for _, r := range e.req {
			if r.at == reqWrites {
				return
			}
		}
		s.do("suspend", h, usual, func(w *world) { w.engine[h].cut = cutSuspended })
		return
	case cutSuspended:
		s.do("flush for the cut", h, usual, func(w *world) {
			if !m.no.noCutFlush {
				m.commit(w)
			}
			w.engine[h].cut = cutFlushed
		})
	case cutFlushed:
		s.do("table is frozen", h, usual, func(w *world) {
			if !m.no.noFrozenUpdate {
				w.frozen[i] = w.known
			}
			w.image[i], w.cutDone[i] = m.contents(w), true
			w.engine[h].cut = cutFrozen
		})
	case cutFrozen:
		s.do("keep", h, usual, func(w *world) {
			m.begin(w, h, writeEntry, func(n *header) { n.entry[i] = entryActive })
			e := &w.engine[h]
			e.cut, e.placed[i], e.loaded[i], e.ones[i] = cutKept, true, false, 0
		})
	}
	if e.cut < cutKept {
		s.do("deadline of the cut", h, usual, func(w *world) {
			m.begin(w, h, writeEntry, func(n *header) { n.entry[i] = entryNone })
			w.engine[h].cut, w.cutDone[i], w.image[i] = cutNone, false, [maxChunks][maxSectors]uint8{}
		})
	}
}

// moving hands the volume to the other host.
func (s *steps) moving(h int) {
	e, o, m := &s.w.engine[h], &s.w.engine[1-h], s.m
	owns := e.up && e.role == writer && e.open.owner == uint8(h) && e.cut == cutNone && e.why != writeOpen && e.why != writeTake
	switch {
	case owns && o.role == away && !o.dead && s.w.moves > 0 && !s.w.head[0].now.torn && !s.w.head[1].now.torn:
		s.do("other host opens the volume", h, usual, func(w *world) {
			w.moves--
			o := &w.engine[1-h]
			*o = engine{up: true, role: receiver, open: chosen(w.head[0].now, w.head[1].now)}
			for i := range m.snaps {
				o.placed[i] = o.open.entry[i] == entryActive
			}
		})
	case owns && o.up && o.role == receiver && e.idle():
		s.do("hand-over", h, usual, func(w *world) {
			m.commit(w)
			w.engine[h].role, w.engine[1-h].role = giver, writer
			if !m.no.keepZeros {
				w.engine[1-h].loaded = [maxSnaps]bool{}
			}
		})
	}
	if e.up && e.role == receiver {
		for i := range m.snaps {
			if e.placed[i] && (!e.loaded[i] || e.ones[i] != s.w.flags[i].now) {
				s.do("receiver reads a table", h, usual, func(w *world) {
					e := &w.engine[h]
					e.loaded[i], e.ones[i] = true, e.ones[i]|w.flags[i].now
				})
			}
		}
	}
}
