package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/plugin"
)

// plug attaches a volume that is served.
func (m *domain) plug(ctx context.Context, c libvirtx.Conn, v view, w libvirtx.Want, vol *volume) error {
	if v.taken[w.Target] {
		return fmt.Errorf("volume %s: %w", w.Volume, &takenError{domain: m.name(), target: w.Target})
	}
	s, err := m.d.alone(ctx, vol)
	if err != nil {
		return err
	}
	id, err := uuid.Parse(s.UUID)
	if err != nil {
		return fmt.Errorf("volume %s: %w", w.Volume, err)
	}
	m.d.mu.Lock()
	version := m.d.connVersion
	vol.plugged = true // noted before it is done: a disk taken for one plugged in by hand would stay for ever
	m.d.mu.Unlock()
	if _, err := m.d.note(vol); err != nil {
		return err
	}
	text, err := libvirtx.DiskXML(libvirtx.Spec{
		Volume: w.Volume, UUID: id, Socket: m.d.socketPath(w.Volume), Target: w.Target, Bus: w.Bus,
	}, version)
	if err != nil {
		return err
	}
	m.removalOver(libvirtx.Alias(w.Volume)) // of the disk before, if that went unseen
	if err := c.Attach(ctx, m.ident(), text); err != nil {
		return fmt.Errorf("volume %s: %w", w.Volume, err)
	}
	v.taken[w.Target] = true
	m.d.log.Info().Str("volume", w.Volume).Str("domain", m.name()).Str("target", w.Target).Msg("attached")
	return nil
}

// takenError says that a domain has another disk where a volume should go.
type takenError struct{ domain, target string }

func (e *takenError) Error() string {
	return "domain " + e.domain + " has another disk at " + e.target + ": choose a free one with --target"
}

// takeBackAgain is how long a guest that was asked to let go of a disk is left in peace. libvirtd 9.0 crashes over a
// request for a disk that QEMU has removed a moment ago and libvirtd does not know of yet: to ask as often as one looks
// is to meet that moment.
const takeBackAgain = 10 * time.Second

// takeBack asks the guest to let go of a disk that the metadata no longer names.
func (m *domain) takeBack(ctx context.Context, c libvirtx.Conn, name string, disk libvirtx.Disk) error {
	if vol := m.d.volumeNamed(name); vol != nil {
		m.d.setState(vol, api.VolumeDetaching, nil)
	}
	if !m.mayTakeBack(disk.Alias) {
		return errUnfinished
	}
	err := c.Detach(ctx, m.ident(), disk.Alias)
	if err != nil && !errors.Is(err, libvirtx.ErrNoDevice) {
		// QEMU refuses a second request while the first is on its way: that is no failure.
		m.d.log.Debug().Err(err).Str("volume", name).Msg("detach")
	}
	return errUnfinished
}

// isPlugged says whether a domain's disk is the daemon's to take back. The record says so, over the daemon's death.
func (d *Daemon) isPlugged(m *domain, name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.volumes[name]
	if v == nil || !v.plugged || v.domain != nil && v.domain != m {
		return false
	}
	v.domain = m
	return true
}

func (d *Daemon) isPrepared(v *volume) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return v.announced()
}

// arrived notes that a guest has its disk.
func (d *Daemon) arrived(v *volume) {
	d.mu.Lock()
	v.prepared = time.Time{}
	if v.incoming != nil || v.gone { // it is still, or again, another host's
		d.mu.Unlock()
		return
	}
	news := !v.arrived
	frozen, m := v.frozen, v.domain
	v.arrived, v.frozen = true, false
	d.mu.Unlock()
	if frozen && m != nil {
		if err := d.cutter.Thaw(m.ident()); err != nil {
			d.log.Error().Err(err).Str("domain", m.name()).Msg("the guest may have come frozen: see virsh domfsthaw")
		}
	}
	d.setState(v, api.VolumeAttached, nil)
	if news {
		d.noteIfServed(v)
		d.tell(plugin.EventAttached, v, nil)
	}
}

// strayed says of a guest that is here that its volume is not any more: another host has it. There is nothing that it could go on
// with, and nobody but the operator to end it. One that is suspended by a migration is about to be gone.
func (d *Daemon) strayed(vol *volume, v view) error {
	d.mu.Lock()
	gone, lost, m, out := vol.gone, vol.lost, vol.domain, vol.outgoing
	d.mu.Unlock()
	if m == nil || !gone && !lost || v.state.Moving {
		return nil
	}
	state, where := api.VolumeFailed, "another host"
	if gone {
		state = api.VolumeElsewhere
		if out != nil {
			where = out.grant.HostName
		}
	}
	err := fmt.Errorf("volume %s is %s's by now, and this guest must not go on with it: end the guest here with `virsh destroy %s`; "+
		"if it does not run anywhere then, start it anew", vol.name, where, m.name())
	d.setState(vol, state, err)
	return err
}

// left notes that a domain no longer has a volume. If it stays served, then for whoever may open its socket.
func (d *Daemon) left(ctx context.Context, m *domain, v *volume) {
	d.tell(plugin.EventDetached, v, nil)
	d.forget(m, v)
	d.mu.Lock()
	held := v.held != ""
	d.mu.Unlock()
	if held {
		_ = d.startVolume(ctx, v) // watch tries on
	}
	d.noteIfServed(v)
}
