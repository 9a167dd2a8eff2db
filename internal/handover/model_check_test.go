package handover

// check is the first promise that is broken.
func (m *model) check(w *world) string {
	writes, headers := 0, 0
	for h := range m.hosts {
		e := &w.h[h]
		holds := e.at == sealDrain || e.at == sealSlot
		if e.proc != procNone && e.req == reqData || e.proc == procRuns && e.state.MayWrite() && !holds && e.at != releaseHeader {
			writes++
		}
		if e.proc != procNone && e.at.writesHeader() && !e.fenced {
			headers++
		}
		if e.proc == procRuns && e.cache && (w.owner != int8(h) || w.grant != 0) {
			return "4: the cache is on at a host that is not the owner, or has granted"
		}
		if e.proc == procRuns && e.cache {
			for o := range m.hosts {
				if p := &w.h[o]; o != h && p.proc == procRuns && p.at < closeFree && (p.state == Idle || p.state == Active || p.state == Writer) && p.at != ownFree && p.at != ownHeader {
					return "4: the cache is on while another host has the volume open"
				}
			}
		}
	}
	if writes > 1 {
		return "1: two hosts write, or may begin to"
	}
	if headers > 1 {
		return "3: two hosts write the header"
	}
	for h := range m.hosts {
		if bad := m.reads(w, h); bad != "" {
			return bad
		}
	}
	return ""
}

// reads looks at what the guest would read now: by a one that is known, by the table on the LUN, or from the master.
func (m *model) reads(w *world, h int) string {
	e := &w.h[h]
	if e.dom != domRuns || e.proc != procRuns || e.state == Given || e.state == Closed || e.state == 0 {
		return ""
	}
	if w.forked && (w.forkA == int8(h) || w.forkB == int8(h)) && w.claim >= 0 && w.claim != int8(h) {
		return "" // the other one has the disk; this one does not live on
	}
	got := uint8(0)
	if e.flag || !e.cache && !e.zero && w.flag {
		got = w.data
	}
	if got != e.exp && !(e.req != reqNone && got == e.ver) {
		if e.zero {
			return "5: a receiver remembers a zero"
		}
		return "2: a guest does not read what it wrote"
	}
	return ""
}

// end says of a state that needs nothing more: "good", or for what it waits, in the words of docs/MIGRATION.md.
func (m *model) end(w *world) string {
	if w.phase != migNone {
		return ""
	}
	doms, at := 0, -1
	for h := range m.hosts {
		e := &w.h[h]
		if e.dom == domArriving || e.dom == domSuspended {
			return ""
		}
		if e.dom != domNone {
			doms, at = doms+1, h
		}
	}
	for h := range m.hosts {
		if e := &w.h[h]; !e.up && !e.fenced && (w.owner == int8(h) || w.grantTo == int8(h)) {
			return "host dead"
		}
	}
	switch {
	case doms > 1:
		return "runs on both"
	case doms == 0:
		for h := range m.hosts {
			if e := &w.h[h]; e.proc != procNone && e.state != Given && e.state != Alone {
				return ""
			}
		}
		if w.grant != 0 {
			return ""
		}
		return "good"
	}
	e := &w.h[at]
	if e.proc == procRuns && e.state == Alone && e.at == atRest && e.cache && w.owner == int8(at) && w.grant == 0 && e.req == reqNone && e.dom == domRuns {
		for o := range m.hosts {
			if p := &w.h[o]; o != at && p.proc != procNone && p.state != Given {
				return ""
			}
		}
		return "good"
	}
	switch {
	case w.owner != int8(at) && (e.state == Given || e.dom == domFailed || e.proc == procNone && e.slot != SlotIdle && e.slot != SlotActive):
		return "went on elsewhere"
	case w.owner >= 0 && w.owner != int8(at) && w.grant != 0 && w.h[w.owner].slot == SlotKept:
		return "stayed at the source"
	}
	return ""
}
