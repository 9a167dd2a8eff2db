package reader

// dying kills engines and hosts, has what they had under way land late or never, and starts them again.
func (s *steps) dying(h int) {
	e, w, m := &s.w.engine[h], s.w, s.m
	if e.up {
		s.do("engine is killed", h, fault, func(w *world) { w.engine[h].die() })
		if m.clone && w.known != w.table.now {
			s.do("host loses power", h, fault, func(w *world) { w.engine[h].die(); w.known = w.table.now })
		}
		return
	}
	s.late(h)
	if e.role == away || w.head[0].now.torn && w.head[1].now.torn {
		return
	}
	if !e.dead && !e.under() {
		s.do("engine starts again", h, usual, func(w *world) { m.restart(w, h) })
	}
	if o := &w.engine[1-h]; e.role == writer && e.open.owner == uint8(h) && o.role == away && !o.dead {
		s.do("other host takes over", h, usual, func(w *world) { m.takeover(w, h) })
	}
}

// die leaves of an engine what is under way.
func (e *engine) die() {
	e.up, e.cut = false, cutNone
	for n := range e.req {
		if e.req[n].at != reqWrites {
			e.req[n] = request{}
		}
	}
	for i := range e.batch {
		for n := range e.batch[i] {
			if b := &e.batch[i][n]; b.at != batchWrites && b.at != batchFlags {
				*b = batch{}
			}
		}
	}
	if e.why != writeNone && e.step%3 == 2 {
		e.why = writeNone
	}
	if e.role == receiver {
		*e = engine{}
	}
}

// under says whether something that a dead engine wrote may still land: until then its locks are held.
func (e *engine) under() bool {
	for _, r := range e.req {
		if r.at != reqNone {
			return true
		}
	}
	return e.why != writeNone || e.copies()
}

// late has the writes of a dead engine land, or not.
func (s *steps) late(h int) {
	e, m := &s.w.engine[h], s.m
	for n := range e.req {
		if e.req[n].at == reqWrites {
			s.do("a sector lands late", h, usual, func(w *world) {
				r := &w.engine[h].req[n]
				m.land(w, r)
				*r = request{}
			})
			s.do("a sector is lost", h, usual, func(w *world) { w.engine[h].req[n] = request{} })
		}
	}
	for i := range e.batch {
		for n := range e.batch[i] {
			at := e.batch[i][n].at
			if at == batchNone {
				continue
			}
			s.do("a batch's write lands late", h, usual, func(w *world) {
				b := &w.engine[h].batch[i][n]
				if at == batchWrites {
					m.writeSaved(w, i, b)
				} else {
					m.writeFlags(w, &w.engine[h], i, b)
				}
				*b = batch{}
			})
			s.do("a batch's write is lost", h, usual, func(w *world) { w.engine[h].batch[i][n] = batch{} })
		}
	}
	if e.why != writeNone {
		s.do("a header copy lands late", h, usual, func(w *world) {
			e := &w.engine[h]
			w.head[(e.first+e.step/3)%2].now = e.next
			e.why = writeNone
		})
		s.do("a header copy is torn", h, usual, func(w *world) {
			e := &w.engine[h]
			w.head[(e.first+e.step/3)%2].now = header{torn: true}
			e.why = writeNone
		})
		s.do("a header copy is not written", h, usual, func(w *world) { w.engine[h].why = writeNone })
	}
}

// restart has a host's engine go on from the header. A cut that it does not know to be made is void.
func (m *model) restart(w *world, h int) {
	e := &w.engine[h]
	now := chosen(w.head[0].now, w.head[1].now)
	role := e.role
	*e = engine{up: true, role: role, open: now}
	for i := range m.snaps {
		e.placed[i] = now.entry[i] == entryActive
		if !m.no.noOpenFlush {
			w.flushSnapshot(i) // a one that it reads may be of a batch that was not flushed
		}
	}
	switch {
	case now.owner != uint8(h) && role == giver: // its last header write has landed, in one copy at least
		*e = engine{}
	case now.owner != uint8(h) && w.engine[1-h].dead: // its takeover has not come to anything
		*e = engine{}
	case role == giver || now.owner != uint8(h):
	default:
		m.begin(w, h, writeOpen, func(n *header) { dropPending(n) })
	}
}

func dropPending(n *header) {
	for i := range n.entry {
		if n.entry[i] == entryPending {
			n.entry[i] = entryNone
		}
	}
}

// takeover is the other host's, by force: the dead one's data writes have ended, its table and header writes may land late.
func (m *model) takeover(w *world, h int) {
	d, e := &w.engine[h], &w.engine[1-h]
	d.dead = true
	d.req = [2]request{}
	for i := range d.batch {
		for n := range d.batch[i] {
			if d.batch[i][n].at != batchFlags {
				d.batch[i][n] = batch{}
			}
		}
	}
	w.known = w.table.now
	*e = engine{up: true, role: writer, open: chosen(w.head[0].now, w.head[1].now)}
	m.begin(w, 1-h, writeTake, func(n *header) {
		n.epoch++
		n.owner = uint8(1 - h)
		for i := range n.entry {
			if n.entry[i] == entryActive && !m.no.takesUnbroken || n.entry[i] == entryPending {
				n.entry[i] = entryBroken
			}
		}
	})
}

// storage has a spot go bad, or loses its power, and with it any part of what was not flushed: then all engines die.
func (s *steps) storage() {
	if s.w.faults == 0 {
		return
	}
	for i := range s.w.head {
		if other := s.w.head[1-i]; !s.w.head[i].now.torn && !other.now.torn && other.now == other.dur {
			s.do("a header copy is damaged", hosts, fault, func(w *world) { w.head[i] = headerCopy{header{torn: true}, header{torn: true}} })
		}
	}
	base := *s.w
	for h := range base.engine {
		if e := &base.engine[h]; e.up {
			e.die()
		}
		e := &base.engine[h]
		e.req, e.batch, e.why = [2]request{}, [maxSnaps][2]batch{}, writeNone
	}
	n := volatiles(&base)
	for pick := range 1 << min(len(n), 5) {
		s.do("storage loses power", hosts, fault, func(w *world) {
			*w = base
			w.faults--
			for i, lose := range volatiles(w) {
				lose(pick>>min(i, 4)&1 == 1)
			}
			for i := range w.head {
				w.head[i].dur = w.head[i].now
			}
			w.known = w.table.now
		})
	}
}

// volatiles are what isn't durable; each is kept, or is what was durable.
func volatiles(w *world) (all []func(keep bool)) {
	settle := func(c *cell) {
		if c.now != c.dur {
			all = append(all, func(keep bool) {
				if !keep {
					c.now = c.dur
				}
				c.flush()
			})
		}
	}
	for c := range w.data {
		for i := range w.data[c] {
			settle(&w.data[c][i])
		}
	}
	for s := range w.saved {
		for c := range w.saved[s] {
			for i := range w.saved[s][c] {
				settle(&w.saved[s][c][i])
			}
		}
		settle(&w.flags[s])
	}
	settle(&w.table)
	for i := range w.head {
		if c := &w.head[i]; c.now != c.dur {
			all = append(all, func(keep bool) {
				if !keep {
					c.now = c.dur
				}
			})
		}
	}
	return all
}
