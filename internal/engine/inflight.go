package engine

import "sync"

// inflight is the table of chunk ranges that are being worked on. Writes to chunks whose place is settled
// share a range; whoever settles one (first write, copy, hydration, read-modify-write) has it alone.
// Order is first come, first served: nobody overtakes a waiting span that it overlaps.
type inflight struct {
	mu   sync.Mutex
	held []*span
	wait []*span
	free []*span
}

// span is one held or awaited range, first to last inclusive.
type span struct {
	first, last int64
	shared      bool
	granted     chan struct{} // buffered, one
}

func (s *span) conflicts(o *span) bool {
	return s.first <= o.last && o.first <= s.last && !(s.shared && o.shared)
}

func conflict(with []*span, s *span) bool {
	for _, o := range with {
		if o.conflicts(s) {
			return true
		}
	}
	return false
}

func (t *inflight) newSpan(first, last int64, shared bool) *span {
	if n := len(t.free); n > 0 {
		s := t.free[n-1]
		t.free = t.free[:n-1]
		s.first, s.last, s.shared = first, last, shared
		return s
	}
	return &span{first: first, last: last, shared: shared, granted: make(chan struct{}, 1)}
}

// tryLock returns nil where lock would have to wait.
func (t *inflight) tryLock(first, last int64, shared bool) *span {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.newSpan(first, last, shared)
	if conflict(t.held, s) || conflict(t.wait, s) {
		t.free = append(t.free, s)
		return nil
	}
	t.held = append(t.held, s)
	return s
}

// lock waits for the range.
func (t *inflight) lock(first, last int64, shared bool) *span {
	t.mu.Lock()
	s := t.newSpan(first, last, shared)
	if !conflict(t.held, s) && !conflict(t.wait, s) {
		t.held = append(t.held, s)
		t.mu.Unlock()
		return s
	}
	t.wait = append(t.wait, s)
	t.mu.Unlock()
	<-s.granted
	return s
}

// unlock gives the range up and lets in those who waited for it, oldest first.
func (t *inflight) unlock(s *span) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, o := range t.held {
		if o == s {
			last := len(t.held) - 1
			t.held[i] = t.held[last]
			t.held = t.held[:last]
			break
		}
	}
	t.free = append(t.free, s)
	if len(t.wait) == 0 {
		return
	}
	still := t.wait[:0]
	for _, w := range t.wait {
		if conflict(t.held, w) || conflict(still, w) {
			still = append(still, w)
			continue
		}
		t.held = append(t.held, w)
		w.granted <- struct{}{}
	}
	clear(t.wait[len(still):])
	t.wait = still
}
