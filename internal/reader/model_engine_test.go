package reader

// needs says whether a chunk must be saved in snapshot i before it is overwritten, as this engine sees it, and whether it is.
func (m *model) needs(w *world, e *engine, i, chunk int) bool {
	switch {
	case !e.placed[i] || e.open.entry[i] == entryBroken || e.open.entry[i] == entryNone:
		return false
	case int(e.cursorOf(m, i)) > chunk:
		return false
	case m.clone && w.frozen[i]>>chunk&1 == 0:
		return false
	}
	return e.ones[i]>>chunk&1 == 0
}

func (e *engine) cursorOf(m *model, i int) uint8 {
	if m.no.earlyCursor && e.why == writeCursor {
		return e.next.cursor[i]
	}
	return e.open.cursor[i]
}

func (m *model) needsAny(w *world, e *engine, chunk int) bool {
	for i := range m.snaps {
		if m.needs(w, e, i, chunk) {
			return true
		}
	}
	return false
}

// serves says whether requests are carried out.
func (e *engine) serves() bool {
	return e.up && e.role == writer && e.why != writeOpen && e.why != writeTake && (e.cut < cutSuspended || e.cut >= cutKept)
}

// idle says that nothing is under way.
func (e *engine) idle() bool {
	for _, r := range e.req {
		if r.at != reqNone {
			return false
		}
	}
	return e.why == writeNone && e.cut == cutNone && !e.copies()
}

func (e *engine) copies() bool {
	for i := range e.batch {
		for _, b := range e.batch[i] {
			if b.at != batchNone {
				return true
			}
		}
	}
	return false
}

var writesChunk = [maxChunks]string{"guest writes 0", "guest writes 1"}

// guest has its requests come, wait and be carried out; and the clone hydrate and commit.
func (s *steps) guest(h int) {
	e, w, m := &s.w.engine[h], s.w, s.m
	if !e.serves() {
		return
	}
	for n := range m.reqs {
		switch r := &e.req[n]; r.at {
		case reqNone:
			if w.writes == 0 {
				break
			}
			for c := range m.chunks {
				s.do(writesChunk[c], h, usual, func(w *world) {
					w.writes--
					w.last++
					w.engine[h].req[n] = request{at: reqWaits, chunk: uint8(c), ver: w.last}
				})
				s.do("guest trims", h, usual, func(w *world) {
					w.writes--
					w.engine[h].req[n] = request{at: reqWaits, chunk: uint8(c), ver: zeros, trim: true}
				})
			}
		case reqWaits:
			s.admit(h, n)
		case reqWrites:
			s.do("a sector lands", h, usual, func(w *world) { m.land(w, &w.engine[h].req[n]) })
		}
	}
	if !m.clone {
		return
	}
	for c := range m.chunks {
		if w.known>>c&1 == 0 && !e.touches(c) {
			s.do("hydration copies", h, usual, func(w *world) {
				for i := range m.sectors {
					w.data[c][i].now = masters
				}
				w.known |= 1 << c
			})
		}
	}
	if w.known != w.table.dur {
		s.do("commit", h, usual, func(w *world) { m.commit(w) })
	}
}

func (e *engine) touches(chunk int) bool {
	for _, r := range e.req {
		if r.at == reqWrites && int(r.chunk) == chunk {
			return true
		}
	}
	return false
}

// admit lets a request through once every snapshot that needs its chunk has it.
func (s *steps) admit(h, n int) {
	e, m := &s.w.engine[h], s.m
	r := &e.req[n]
	for i := range m.snaps {
		if m.needs(s.w, e, i, int(r.chunk)) && !e.loaded[i] {
			s.do("table is read", h, usual, func(w *world) {
				e := &w.engine[h]
				e.loaded[i], e.ones[i] = true, e.ones[i]|w.flags[i].now
			})
			return
		}
	}
	needed := m.needsAny(s.w, e, int(r.chunk))
	switch {
	case needed && r.trim && !m.no.trims:
		s.do("trim does nothing", h, usual, func(w *world) { w.engine[h].req[n] = request{} })
	case !needed || m.no.noWait || r.trim:
		s.do("request is let through", h, usual, func(w *world) { w.engine[h].req[n].at = reqWrites })
	}
}

// land has the next sector of a request on the storage.
func (m *model) land(w *world, r *request) {
	w.data[r.chunk][r.sector].now = r.ver
	r.sector++
	if int(r.sector) == m.sectors {
		w.known |= 1 << r.chunk
		*r = request{}
	}
}

func (m *model) commit(w *world) {
	w.flushOrigin()
	w.table = cell{w.known, w.known}
}

func (w *world) flushOrigin() {
	for c := range w.data {
		for i := range w.data[c] {
			w.data[c][i].flush()
		}
	}
}

func (w *world) flushSnapshot(i int) {
	for c := range w.saved[i] {
		for n := range w.saved[i][c] {
			w.saved[i][c][n].flush()
		}
	}
	w.flags[i].flush()
}

// copier saves what requests wait for. Batches run beside each other; their table writes one after the other.
func (s *steps) copier(h int) {
	e, m := &s.w.engine[h], s.m
	if !e.up || e.role != writer {
		return
	}
	for i := range m.snaps {
		for n := range e.batch[i] {
			b := &e.batch[i][n]
			if b.at != batchNone {
				if b.at == batchFlags && !m.no.racingTables && e.batch[i][1-n].at == batchFlagsFlush {
					continue
				}
				s.do("copier goes on", h, usual, func(w *world) { m.copy(w, &w.engine[h], i, n) })
				continue
			}
			if n >= m.reqs {
				continue
			}
			busy := e.batch[i][1-n].chunks
			for q := range m.reqs {
				r := &e.req[q]
				c := int(r.chunk)
				if r.at == reqWaits && !r.trim && e.loaded[i] && m.needs(s.w, e, i, c) && busy>>c&1 == 0 && e.cut != cutSuspended {
					s.do("copier begins", h, usual, func(w *world) {
						b := &w.engine[h].batch[i][n]
						b.at, b.chunks = batchReads, 1<<c
						if m.no.unordered {
							b.at = batchFlags
						}
					})
				}
			}
		}
	}
}

// copy is the next step of a batch.
func (m *model) copy(w *world, e *engine, i, n int) {
	b := &e.batch[i][n]
	switch b.at {
	case batchReads:
		for c := range m.chunks {
			for k := range m.sectors {
				b.data[c][k] = w.data[c][k].now
			}
		}
		b.at = batchWrites
		if m.no.racingTables {
			b.flags = e.ones[i] | b.chunks
		}
	case batchWrites:
		m.writeSaved(w, i, b)
		b.at = batchFlushes
		switch {
		case m.no.unordered:
			m.copied(e, i, b)
		case m.no.noDataFlush:
			b.at = batchFlags
		}
	case batchFlushes:
		w.flushSnapshot(i)
		b.at = batchFlags
	case batchFlags:
		m.writeFlags(w, e, i, b)
		b.at = batchFlagsFlush
		if m.no.noFlagFlush {
			m.copied(e, i, b)
		}
	case batchFlagsFlush:
		w.flushSnapshot(i)
		if m.no.unordered {
			b.at = batchReads
			return
		}
		m.copied(e, i, b)
	}
}

func (m *model) writeSaved(w *world, i int, b *batch) {
	for c := range m.chunks {
		for k := range m.sectors {
			if b.chunks>>c&1 == 1 {
				w.saved[i][c][k].now = b.data[c][k]
			}
		}
	}
}

// writeFlags writes the one sector that has all flags: the ones that are known, and the batch's.
func (m *model) writeFlags(w *world, e *engine, i int, b *batch) {
	if !m.no.racingTables {
		b.flags = e.ones[i] | b.chunks
	}
	w.flags[i].now = b.flags
}

func (m *model) copied(e *engine, i int, b *batch) {
	e.ones[i] |= b.chunks
	*b = batch{}
}
