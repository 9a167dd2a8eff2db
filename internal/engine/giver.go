package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/handover"
	"github.com/virt-cow/virt-cow/internal/store"
)

// readyGroups is how many table groups are initialised for a receiver: 1 MiB of writes each, before the grant.
const readyGroups = 64

// errReopened says that a receiver came while its grant was being ended.
var errReopened = errors.New("the receiver has opened the volume meanwhile: the grant stays")

// Grant lets another host open the volume: it stops hydration, switches the cache off and makes the grant durable. Slot and
// Since are chosen here. The same grant once more is fine; ErrGranted names the host that has another one.
func (v *Volume) Grant(ctx context.Context, g cowfmt.Grant) error {
	m := v.moving
	if v.info.ReadOnly {
		return fmt.Errorf("grant %s: %w", v.info.Name, blockdev.ErrReadOnly)
	}
	if err := v.sharable(); err != nil {
		return err
	}
	return m.call(ctx, func() error {
		switch {
		case v.Err() != nil:
			return v.Err()
		case m.role == giver && m.state != handover.Alone && m.state != handover.Given && m.grant.ID == g.ID && m.grant.Host == g.Host:
			return nil
		case m.isClosing():
			return fmt.Errorf("grant %s: %w", v.info.Name, ErrClosed)
		case g.Host == m.me.Host:
			return fmt.Errorf("grant %s: this is host %v itself", v.info.Name, g.Host)
		}
		if err := m.undivided("grant"); err != nil {
			return err
		}
		m.asked = &g
		err := m.step()
		m.asked = nil
		if err != nil {
			return errors.Join(fmt.Errorf("grant %s: %w", v.info.Name, err), m.settleCache())
		}
		if m.grant.ID != g.ID {
			return fmt.Errorf("grant %s: not given, it is %v", v.info.Name, m.state)
		}
		return nil
	})
}

// sharable refuses a volume that is not written past the page cache: two hosts would not see each other's writes.
func (v *Volume) sharable() error {
	for _, dev := range []blockdev.Device{v.st.Device(), v.data} {
		if f, _, ok := blockdev.FileOf(dev); ok && !f.Direct() {
			return fmt.Errorf("%s: its file system has no O_DIRECT: two hosts can't have it open", f.Info().Name)
		}
	}
	return nil
}

// openGrant is DoGrant.
func (m *mover) openGrant() error {
	g, st := *m.asked, m.v.st
	if err := m.v.divide(true); err != nil {
		return err
	}
	if err := m.v.cacheOff(); err != nil {
		_ = m.v.divide(false)
		return err
	}
	m.share()
	_, err := st.ReadyGroups(readyGroups)
	var my, their int
	if err == nil {
		my, their, err = st.ChooseSlots(m.me.Host, g.Host)
	}
	if err != nil {
		m.forget(nil)
		return err
	}
	g.Slot, g.Since = uint16(their), time.Now().Unix()
	// What an earlier grant left there would be taken for this one's only if it had this ID.
	m.take(g, my, their)
	if err = m.say(cowfmt.SlotOpen); err == nil {
		err = st.Grant(g)
	}
	if err != nil {
		m.forget(nil)
		return errors.Join(err, st.EndGrant(g.ID))
	}
	return nil
}

// share says that other hosts see the store: from now on it is looked at before each commit whether it is still this one's.
func (m *mover) share() {
	m.claims.Shared = true
	m.v.st.SetClaiming(m.claims)
}

// take notes a grant that is open, or about to be.
func (m *mover) take(g cowfmt.Grant, my, their int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.grant, m.peer, m.past = g, handover.Unread, nil
	m.slot, m.peerSlot = my, their
	m.seen, m.peerClosed, m.fenced, m.mine, m.wrote, m.unwritten = false, false, false, false, false, 0
}

// forget ends what was known of a grant; past is what is told of it still.
func (m *mover) forget(past *Handover) {
	m.take(cowfmt.Grant{}, 0, -1)
	_ = m.v.divide(false)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.past = past
}

// errWrites says that the guest goes on writing, so that it is not suspended after all.
var errWrites = errors.New("the guest writes: not sealed")

// seal is DoSeal. Once the slot may be on the device the receiver may act on it: then there is no way back to writing but
// through a slot of the receiver, so that a slot that could not be written counts, and is written again.
func (m *mover) seal() error {
	v := m.v
	guest, _ := m.guest.now()
	err := v.drainWriters()
	if m.guest.wrote(v.gate.written()); err == nil && guest == handover.GuestStopped {
		if now, _ := m.guest.now(); now != guest {
			err = errWrites
		}
	}
	if err == nil {
		err = v.restStack()
	}
	if err == nil {
		err = v.commit.commit(v.table)
	}
	if err != nil {
		v.undrain()
		return err
	}
	v.quiet.Store(true)
	if err := m.say(cowfmt.SlotSealed); err != nil {
		m.unwritten = cowfmt.SlotSealed
		m.note(err)
	}
	return nil
}

// endGrant is DoEndGrant.
func (m *mover) endGrant() error {
	st := m.v.st
	if m.fenced {
		// What the dead host may still write to the table hits nothing then.
		if err := st.TakeoverGrant(m.grant.ID); err != nil && !errors.Is(err, store.ErrNoGrant) {
			return err
		}
	} else {
		if err := st.EndGrant(m.grant.ID); err != nil {
			return err
		}
		err := m.readPeer(m.grant.Host)
		if err == nil && m.peer != handover.Absent {
			err = errReopened
		}
		if err != nil {
			m.peerClosed = false
			return errors.Join(err, st.Grant(m.grant))
		}
	}
	if err := st.WriteSlot(m.slot, nil); err != nil {
		m.v.log.Warn().Err(err).Msg("the migration slot stays: it says nothing any more")
	}
	return nil
}

// EndGrant ends a grant: the receiver has closed the volume, or never will open it; fenced: it is proven dead. It is
// refused while the receiver's slot says that it has the volume open, unless that is fenced. Where no grant is open it
// does nothing.
func (v *Volume) EndGrant(ctx context.Context, id uuid.UUID, fenced bool) error {
	m := v.moving
	return m.call(ctx, func() error {
		switch {
		case m.role == giver && m.state == handover.Alone:
			return nil
		case m.role == receiver, m.state == handover.Given, m.grant.ID != id:
			return m.undivided("end grant " + id.String() + " of")
		}
		if m.fenced = m.fenced || fenced; !m.fenced {
			if err := m.readPeer(m.grant.Host); err != nil {
				return err
			}
			if m.peer != handover.Absent {
				return fmt.Errorf("end grant %v of %s: %w: %s has it open, its slot says %s", id, v.info.Name, ErrGranted, m.peerName(), slotName(m.peer))
			}
		}
		m.peerClosed = true
		for m.state != handover.Alone {
			was := m.state
			err := m.poll()
			if err == nil {
				err = m.step()
			}
			if err != nil {
				return fmt.Errorf("end grant %v of %s: %w", id, v.info.Name, err)
			}
			if m.state == was {
				return m.undivided("end grant " + id.String() + " of")
			}
		}
		m.note(m.settleCache())
		return nil
	})
}
