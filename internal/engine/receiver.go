package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/handover"
	"github.com/virt-cow/virt-cow/internal/store"
)

// receive opens the volume as the receiver of a grant. recovered: an engine of this boot had it open by the same grant and
// died.
func (v *Volume) receive(o Options) (recovered bool, err error) {
	if err := v.sharable(); err != nil {
		return false, err
	}
	m := v.moving
	g, err := v.st.Receive(o.Incoming, o.Owner.Host, o.Owner.Boot)
	if errors.Is(err, store.ErrNoGrant) {
		return false, fmt.Errorf("%w: it has ended, or was given to another host or an earlier boot: ask %s for a new one", err, ownerOf(v.st.Header()))
	}
	if err != nil {
		return false, err
	}
	m.share()
	m.role, m.giver = receiver, *v.st.Header().Owner
	m.me.Instance = g.ID
	if isDead(v.st.Header(), o.Dead) {
		m.dead = o.Dead
	}
	m.take(g, int(g.Slot), -1)
	v.cache, err = openCache(o.CachePath, v.st.Header(), g.ID, v.st.Leaves())
	switch {
	case err == nil:
		recovered = true
		failed, err := v.flushFailed(o.AcceptLoss)
		if err != nil {
			return false, err
		}
		if failed { // what it had in memory only may be what was lost
			if err := v.cache.close(true); err != nil {
				return false, err
			}
			if v.cache, err = createCache(o.CachePath, v.st.Header(), g.ID, v.st.Leaves()); err != nil {
				return false, err
			}
			recovered = false
		}
	case errors.Is(err, errNoCache): // all that an engine of this grant had acknowledged is on the device
		if v.cache, err = createCache(o.CachePath, v.st.Header(), g.ID, v.st.Leaves()); err != nil {
			return false, err
		}
	default:
		return false, err
	}
	if err := m.present(); err != nil {
		return false, errors.Join(err, v.cache.close(!recovered))
	}
	v.tellOfFlushes()
	return recovered, nil
}

// present says in the slot that this host has the volume open, and then looks whether the grant is still there.
func (m *mover) present() error {
	m.state = handover.Idle
	says := cowfmt.SlotIdle
	s, used, err := m.v.st.ReadSlot(m.slot)
	switch {
	case err != nil && !errors.Is(err, cowfmt.ErrCorrupt) && !errors.Is(err, cowfmt.ErrInvalid):
		return err // else: the owner chose the slot, whatever is in it
	case used && s.Host == m.me.Host && s.Grant == m.grant.ID && s.State == cowfmt.SlotActive:
		m.state, says, m.wrote = handover.Active, cowfmt.SlotActive, true
	}
	if err := m.say(says); err != nil {
		return err
	}
	if m.mine, err = m.v.st.TakeOwnership(m.grant.ID); err != nil {
		return errors.Join(err, m.v.st.WriteSlot(m.slot, nil))
	}
	return nil
}

// withdraw frees the slot of a receiver whose opening failed.
func (m *mover) withdraw() error {
	if m.role != receiver || m.state != handover.Idle || m.mine {
		return nil
	}
	return m.v.st.WriteSlot(m.slot, nil)
}

// beginToWrite is DoWrite.
func (m *mover) beginToWrite() error {
	if m.v.table != nil && m.v.recovered {
		if err := m.v.table.reconcile(context.Background()); err != nil {
			return err
		}
		m.v.recovered = false
	}
	// The giver may have changed the stack since; now it does no more.
	if err := m.v.st.Reread(); err != nil {
		return err
	}
	if err := m.v.openStack(context.Background()); err != nil {
		return err
	}
	m.mu.Lock()
	m.wrote = true
	m.mu.Unlock()
	return nil
}

// becomeOwner is what is left of DoOwn and DoTakeOver: the header names this host, which from now on is a giver of nothing.
// The cache goes on as soon as what was read while it was off is read again.
func (m *mover) becomeOwner() {
	past := m.tell()
	past.Held, past.Waits, past.PeerState, past.Wrote = 0, "", handover.Unread, true
	if err := m.v.st.WriteSlot(m.slot, nil); err != nil {
		m.v.log.Warn().Err(err).Msg("the migration slot stays: it says nothing any more")
	}
	m.mu.Lock()
	m.role, m.state = giver, handover.Alone
	m.me = *m.v.st.Header().Owner
	m.mu.Unlock()
	m.forget(past)
}

// takeOver is DoTakeOver.
func (m *mover) takeOver() error {
	me, dead := m.me, *m.dead
	me.Instance, me.Since, dead.Boot = m.grant.ID, time.Now().Unix(), m.giver.Boot
	if o := m.v.st.Header().Owner; o.Host == dead.Host {
		dead.Boot = o.Boot
	}
	err := m.v.st.Takeover(context.Background(), me, dead, m.claims)
	if err == nil {
		letNotice(m.claims)
	}
	return err
}

// PeerDead is proof that the host on the other side is dead: its engine will never write again. A receiver takes over
// from exactly the owner that dead names, once its guest runs here; a giver ends its grant.
func (v *Volume) PeerDead(ctx context.Context, dead store.Dead) error {
	m := v.moving
	var grant uuid.UUID
	err := m.call(ctx, func() error {
		if m.role == giver {
			grant = m.grant.ID
			switch {
			case m.state == handover.Alone:
				return nil
			case m.grant.Host != dead.Host:
				return fmt.Errorf("%s: host %v is proven dead, but %s has it open", v.info.Name, dead.Host, m.peerName())
			case dead.Instance != uuid.Nil && dead.Instance != grant:
				return fmt.Errorf("%s: engine %v is proven dead, but %v has it open", v.info.Name, dead.Instance, grant)
			}
			return nil
		}
		h := v.st.Header()
		if !isDead(h, &dead) {
			return fmt.Errorf("%s: %w: %s is the owner, epoch %d", v.info.Name, store.ErrNotDead, ownerOf(h), h.Epoch)
		}
		m.dead = &dead
		m.setPeer(handover.Unread) // read before the proof it proves nothing: the giver may have kept the volume since
		m.wake()
		return nil
	})
	if err != nil || grant == uuid.Nil {
		return err
	}
	return v.EndGrant(ctx, grant, true)
}

func ownerOf(h *cowfmt.Header) string {
	if h.Owner == nil {
		return "nobody"
	}
	if h.Owner.HostName != "" {
		return h.Owner.HostName
	}
	return "host " + h.Owner.Host.String()
}
