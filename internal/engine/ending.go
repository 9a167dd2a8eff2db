package engine

import (
	"errors"
	"os"

	"github.com/virt-cow/virt-cow/internal/handover"
)

// Err is why the volume does not work any more, or nil: a flush failed, or another host has taken the store.
func (v *Volume) Err() error {
	if err := v.lost.Load(); err != nil {
		return *err
	}
	return v.FlushError()
}

// Lost says that another host has taken the store, or shut this one out of it: every request fails.
func (v *Volume) Lost() bool { return v.lost.Load() != nil }

// BeginClose says that the volume is to be closed as soon as it may: not while another host has it open. It goes on
// serving; MayClose tells when.
func (v *Volume) BeginClose() {
	m := v.moving
	m.mu.Lock()
	m.closing = true
	m.mu.Unlock()
	m.wake()
}

// MayClose is closed once the volume may be closed, after BeginClose. What a hand-over still held was refused then.
func (v *Volume) MayClose() <-chan struct{} { return v.moving.ended }

// Close drains the volume, commits its table, gives up the store and closes the master. While another host has the volume
// open it waits until that is over: see BeginClose. On an error what a successor needs is left in place: open the volume
// again. The device stays the caller's to close.
func (v *Volume) Close() error {
	v.BeginClose()
	<-v.MayClose()
	if v.closed.Swap(true) {
		return os.ErrClosed
	}
	return v.end(v.moving.last)
}

// Abandon ends the volume as if its process were killed, but for requests inside, which it waits for: store, slots and
// exception cache stay as they are, and the next engine goes on from there.
func (v *Volume) Abandon() error {
	v.moving.kill()
	if v.closed.Swap(true) {
		return os.ErrClosed
	}
	return v.end(v.moving.last)
}

// end does what the table of the hand-over says last; Nothing where it has said nothing.
func (v *Volume) end(do handover.Action) error {
	if v.hydrator != nil {
		v.hydrator.shut()
	}
	v.closeGate()
	v.awaitCut()
	if v.stopTicks != nil {
		v.stopTicks()
		v.ticks.Wait()
	}
	var err error
	over := do != handover.Nothing // nothing in the cache is needed any more
	if over {
		err = v.closeStack()
	}
	switch {
	case err != nil:
	case v.info.ReadOnly:
		over = false // it has no file
	case do == handover.DoRelease:
		if err = v.commit.commit(v.table); err == nil {
			err = v.st.Release()
		}
	case do == handover.DoClose:
		err = v.moving.closeReceiver()
	}
	v.shutStack()
	v.freezes.Lock() // who comes after finds the volume closed
	defer v.freezes.Unlock()
	return errors.Join(err, v.cache.close(over && err == nil), v.closeMaster())
}

// closeReceiver is DoClose: the giver may have made this host the owner before it saw the slot.
func (m *mover) closeReceiver() error {
	if err := m.v.st.WriteSlot(m.slot, nil); err != nil {
		return err
	}
	mine, err := m.v.st.TakeOwnership(m.grant.ID)
	if err != nil {
		m.v.log.Warn().Err(err).Msg("closed; whether the volume was handed over meanwhile is not known")
		return nil
	}
	if mine {
		return m.v.st.Release()
	}
	return nil
}

// stillborn ends a mover that never ran.
func (m *mover) stillborn() {
	m.last = handover.DoLeave
	close(m.ended)
}

// SetClients says how to find out whether anybody is connected. Until then the volume takes it that somebody is.
func (v *Volume) SetClients(count func() int) { v.moving.clients.Store(&count) }
