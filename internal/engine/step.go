package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/handover"
	"github.com/virt-cow/virt-cow/internal/store"
)

func (m *mover) table() []handover.Rule {
	if m.role == receiver {
		return handover.Receiver
	}
	return handover.Giver
}

// step does what the table says until it says nothing.
func (m *mover) step() error {
	for {
		if m.v.lost.Load() != nil {
			if m.isClosing() {
				m.finish(handover.DoLeave)
			}
			return nil
		}
		r := handover.Next(m.table(), m.state, m.facts())
		switch r.Do {
		case handover.Nothing:
			return nil
		case handover.DoRelease, handover.DoClose, handover.DoLeave:
			m.finish(r.Do)
			return nil
		}
		if err := m.perform(r.Do); err != nil {
			if errors.Is(err, store.ErrEpoch) {
				m.v.lose(err)
			}
			return fmt.Errorf("%v, %s: %w", r.State, r.Event, err)
		}
		m.enter(r)
		if m.peer == handover.Unread && m.state != handover.Alone && m.state != handover.Given {
			if err := m.poll(); err != nil {
				return err
			}
		}
	}
}

func (m *mover) perform(do handover.Action) error {
	switch do {
	case handover.DoGrant:
		return m.openGrant()
	case handover.DoSeal:
		return m.seal()
	case handover.DoReclaim:
		return m.say(cowfmt.SlotReclaim)
	case handover.DoYield:
		return m.say(cowfmt.SlotYield)
	case handover.DoReopen:
		return m.say(cowfmt.SlotOpen)
	case handover.DoKeep:
		return m.say(cowfmt.SlotKept)
	case handover.DoEndGrant:
		return m.endGrant()
	case handover.DoHandOver:
		return m.v.st.HandOver(m.grant.ID)
	case handover.DoActivate:
		return m.say(cowfmt.SlotActive)
	case handover.DoWrite:
		return m.beginToWrite()
	case handover.DoOwn:
		return nil // the store is its own since the header was read; enter does the rest
	case handover.DoTakeOver:
		return m.takeOver()
	}
	return fmt.Errorf("action %d of a hand-over is not known", do)
}

// enter is in the next state.
func (m *mover) enter(r handover.Rule) {
	m.v.log.Info().Stringer("grant", m.grant.ID).Str("peer", m.peerName()).Stringer("role", m.role).Stringer("from", m.state).
		Stringer("state", r.Next).Str("because", r.Event).Msg("hand-over")
	if r.Next.MayWrite() && !m.state.MayWrite() {
		m.v.beginWriting()
	}
	m.mu.Lock()
	m.state, m.since = r.Next, time.Now()
	m.mu.Unlock()
	m.guest.forget()
	switch r.Next {
	case handover.Owner:
		m.becomeOwner()
	case handover.Alone:
		m.forget(nil)
	}
	if m.role == giver && m.state == handover.Alone {
		m.v.follow()
		if err := m.v.settleStack(); err != nil {
			m.v.log.Warn().Err(err).Msg("the stack is not in order: it will be once the volume is opened anew")
		}
	}
	m.v.guard(m.state)
}

// finish ends the runner: what is left to do is Close's. What is held has nothing to wait for any more.
func (m *mover) finish(do handover.Action) {
	m.mu.Lock()
	m.last = do
	m.mu.Unlock()
	r, _ := rulesOf(m.state)
	refused := false
	for c := range r {
		if r[c] == hold {
			r[c], refused = refuse, true
		}
	}
	if refused {
		m.v.setRules(r, ErrClosed)
	}
}

func (m *mover) isClosing() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closing
}

// note keeps what went wrong, and logs it once.
func (m *mover) note(err error) {
	m.mu.Lock()
	m.trouble = err
	m.mu.Unlock()
	switch {
	case err == nil:
		m.told = nil
	case m.told == nil || m.told.Error() != err.Error():
		m.told = err
		m.v.log.Warn().Err(err).Stringer("grant", m.grant.ID).Stringer("state", m.state).Msg("hand-over: will be tried again")
	}
}

// settleCache switches the cache to what is wanted of it as soon as this host is alone.
func (m *mover) settleCache() error {
	if m.role != giver || m.state != handover.Alone || m.isLast() || m.v.lost.Load() != nil || m.wanted == m.v.CacheMode() {
		return nil
	}
	if m.wanted == cowfmt.CacheOff {
		return m.v.cacheOff()
	}
	if err := m.endLeftover(); err != nil {
		return err
	}
	return m.v.cacheOn(context.Background())
}

// How often the runner looks when nothing calls it.
const (
	paceUrgent = 10 * time.Millisecond // somebody may be waiting for this host
	paceSlow   = 50 * time.Millisecond // for long already
	paceOpen   = 100 * time.Millisecond
	paceIdle   = time.Second
	paceFailed = 200 * time.Millisecond
	paceAlone  = 5 * time.Second
	lookEvery  = 500 * time.Millisecond // at the header of a shared store that the guest uses: is it still this host's?
	urgentFor  = 10 * time.Second
)

func (m *mover) pace(err error) time.Duration {
	d := paceAlone
	if m.claims.Shared {
		d = lookEvery
	}
	switch m.state {
	case handover.Sealed, handover.Reclaim, handover.Yield, handover.Active, handover.Writer:
		if d = paceUrgent; time.Since(m.since) > urgentFor {
			d = paceSlow
		}
	case handover.Open, handover.Kept:
		d = paceOpen
	case handover.Idle:
		d = paceIdle
		if n, _ := m.v.waiting(); n > 0 || m.facts().Guest == handover.GuestRuns {
			d = paceOpen
		}
	case handover.Alone:
		if m.wanted != m.v.CacheMode() {
			d = time.Second
		}
	}
	if err != nil {
		return max(d, paceFailed)
	}
	return d
}
