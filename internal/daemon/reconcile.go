package daemon

import (
	"context"
	"errors"
	"fmt"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/inventory"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/plugin"
)

// errUnfinished says that nothing is wrong but something is still to come: look again.
var errUnfinished = errors.New("not finished, look again")

// reconcile brings the domain in line with its metadata and its disks; see the table at the top of the package.
// The caller holds m.op. An error means that it has to be done again.
func (m *domain) reconcile(ctx context.Context) error {
	c, err := m.d.libvirt()
	if err != nil {
		return nil // every domain is looked at once there is a connection
	}
	v, err := m.look(ctx, c)
	missing := errors.Is(err, libvirtx.ErrNoDomain)
	if err != nil && !missing {
		if !errors.Is(err, libvirtx.ErrGone) && !errors.Is(err, errUnfinished) {
			m.d.noteProblem(m, err)
		}
		if errors.Is(err, errMetadata) { // which keeps no guest paused
			err = errors.Join(err, m.resume(ctx, c, v))
		}
		return err
	}
	m.d.noteSeen(m, v)
	errs := []error{err}
	problem := m.giveAll(ctx, c, v, &errs)
	m.keepAll(ctx, c, v, &errs)
	m.stopRest(ctx, v, &errs)
	m.noteDeclared(v)
	m.d.noteProblem(m, problem)
	errs = append(errs, m.resume(ctx, c, v))
	err = errors.Join(errs...)
	if err == nil || missing || errors.Is(err, errUnfinished) {
		m.d.noteLooked(m)
		m.d.stopOrphans(ctx)
	}
	return err
}

// giveAll sees to the volumes in the metadata. What can't be said of a volume, as it is another domain's, is
// returned.
func (m *domain) giveAll(ctx context.Context, c libvirtx.Conn, v view, errs *[]error) error {
	var problems []error
	for _, w := range v.wants {
		vol, err := m.give(ctx, c, v, w, false)
		if vol == nil {
			problems = append(problems, err)
		}
		if err == nil && !v.state.Active {
			err = m.d.stopVolume(ctx, vol, m, api.VolumeOff)
		}
		*errs = append(*errs, err)
	}
	return errors.Join(problems...)
}

// give makes sure that a domain that runs has a disk it wants, and that of one that is off the volume is known. Unless
// they were, plugins are asked before the volume is served: an engine may begin to hydrate at once.
func (m *domain) give(ctx context.Context, c libvirtx.Conn, v view, w libvirtx.Want, asked bool) (*volume, error) {
	if err := cowfmt.ValidName(w.Volume); err != nil {
		return nil, fmt.Errorf("domain %s: %w", m.name(), err)
	}
	vol, err := m.d.claim(m, w, v.state.Active)
	if err != nil {
		return nil, fmt.Errorf("domain %s: %w", m.name(), err)
	}
	if !v.state.Active {
		return vol, nil
	}
	_, has := v.disks[w.Volume]
	if !has {
		m.d.setStarting(vol)
	}
	if !has && !asked {
		err = m.d.ask(ctx, plugin.EventAttach, vol, m.ident())
	}
	if err == nil {
		err = m.d.startVolume(ctx, vol)
	}
	if err == nil && !has {
		err = m.plug(ctx, c, v, w, vol)
	}
	if err != nil {
		if !errors.Is(err, libvirtx.ErrGone) { // then it is looked at again over the next connection
			m.d.setState(vol, api.VolumeFailed, err)
		}
		return vol, err
	}
	m.d.arrived(vol)
	return vol, m.d.strayed(vol, v)
}

// keepAll sees to disks of ours that the metadata does not name: those this daemon plugged in, or one before it,
// are taken back; those of the domain's definition, or plugged in by hand, are kept served.
func (m *domain) keepAll(ctx context.Context, c libvirtx.Conn, v view, errs *[]error) {
	for name, disk := range v.disks {
		switch {
		case v.wanted(name):
		case m.d.isPlugged(m, name):
			*errs = append(*errs, m.takeBack(ctx, c, name, disk))
		default:
			*errs = append(*errs, m.keep(ctx, v, name, disk))
		}
	}
}

// keep has the volume of a disk served that is not ours to take back.
func (m *domain) keep(ctx context.Context, v view, name string, disk libvirtx.Disk) error {
	w, err := m.d.wantNamed(name)
	if errors.Is(err, inventory.ErrNotFound) {
		return nil // served by hand too
	} else if err != nil {
		return err
	}
	w.Target = disk.Target
	vol, err := m.d.claim(m, w, true)
	if err != nil {
		return fmt.Errorf("domain %s: %w", m.name(), err)
	}
	if err := m.d.startVolume(ctx, vol); err != nil {
		m.d.setState(vol, api.VolumeFailed, err)
		return err
	}
	m.d.arrived(vol)
	return m.d.strayed(vol, v)
}

// stopRest ends the engines of volumes that the domain no longer has, or has no use for while it is off.
func (m *domain) stopRest(ctx context.Context, v view, errs *[]error) {
	for _, vol := range m.d.volumesOf(m) {
		_, has := v.disks[vol.name]
		_, declared := v.declared[vol.name]
		switch {
		case v.wanted(vol.name), has:
		case declared:
			*errs = append(*errs, m.d.stopVolume(ctx, vol, m, api.VolumeOff))
		case v.state.Active && m.d.hasClients(ctx, vol):
			// QEMU lets go of it a moment after the guest did. A libvirtd that was killed in the middle of an attach knows
			// of no such disk, and QEMU has it until the guest ends.
			m.d.setState(vol, api.VolumeDetaching, nil)
			*errs = append(*errs, errUnfinished)
		default:
			err := m.d.stopVolume(ctx, vol, m, api.VolumeDetached)
			if err == nil && !m.d.isPrepared(vol) {
				m.d.left(ctx, m, vol)
			}
			*errs = append(*errs, err)
		}
	}
}

// noteDeclared has it known that a domain that is off has volumes in its definition: they must not be deleted.
func (m *domain) noteDeclared(v view) {
	for name, disk := range v.declared {
		w, err := m.d.wantNamed(name)
		if err != nil {
			continue // no volume of ours; the hook says so when the domain is to start
		}
		w.Target = disk.Target
		m.d.mu.Lock()
		if m.d.volumes[name] == nil {
			m.d.volumes[name] = &volume{name: name, want: w, domain: m, state: api.VolumeOff}
		}
		m.d.mu.Unlock()
	}
}
