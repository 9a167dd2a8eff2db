package daemon

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// errUnfinished says that nothing is wrong but something is still to come: look again.
var errUnfinished = errors.New("not finished, look again")

// view is what libvirt says of a domain at one moment.
type view struct {
	wants []libvirtx.Want
	state libvirtx.State
	disks map[string]libvirtx.Disk // ours, by volume; empty while the domain is off
	taken map[string]bool          // targets in use, by ours too
}

// look asks libvirt. A domain it does not know wants nothing and has nothing; the error says so.
func (m *domain) look(ctx context.Context, c libvirtx.Conn) (view, error) {
	v := view{disks: map[string]libvirtx.Disk{}, taken: map[string]bool{}}
	id := m.ident()
	element, err := c.Metadata(ctx, id)
	if err != nil {
		return v, err
	}
	if v.wants, err = libvirtx.ParseWants(element); err != nil {
		return v, fmt.Errorf("domain %s: %w", id.Name, err)
	}
	if v.state, err = c.State(ctx, id); err != nil {
		return v, err
	}
	text, err := c.XML(ctx, id)
	if err != nil {
		return v, err
	}
	// The XML of a domain that has just ended is another one, without our disks.
	if after, err := c.State(ctx, id); err != nil {
		return v, err
	} else if after.Active != v.state.Active {
		return v, fmt.Errorf("domain %s is starting or ending: %w", id.Name, errUnfinished)
	}
	disks, err := libvirtx.Disks(text)
	if err != nil {
		return v, fmt.Errorf("domain %s: %w", id.Name, err)
	}
	for _, disk := range disks {
		v.taken[disk.Target] = true
		if name := m.d.volumeOfSocket(disk.Socket); name != "" && v.state.Active {
			v.disks[name] = disk
		}
	}
	return v, nil
}

// reconcile brings the domain in line with its metadata; see the table at the top of the package. The caller
// holds m.op. An error means that it has to be done again.
func (m *domain) reconcile(ctx context.Context) error {
	c, err := m.d.libvirt()
	if err != nil {
		return nil // every domain is looked at once there is a connection
	}
	v, err := m.look(ctx, c)
	missing := errors.Is(err, libvirtx.ErrNoDomain)
	if err != nil && !missing {
		return err
	}
	errs := []error{err}
	wanted := map[string]bool{}
	for _, w := range v.wants {
		wanted[w.Volume] = true
		vol, err := m.give(ctx, c, v, w)
		if err == nil && !v.state.Active {
			err = m.d.stopVolume(ctx, vol, api.VolumeOff)
		}
		errs = append(errs, err)
	}
	for name, disk := range v.disks {
		if !wanted[name] {
			errs = append(errs, m.takeBack(ctx, c, name, disk))
		}
	}
	for _, vol := range m.d.volumesOf(m) {
		if _, has := v.disks[vol.name]; !wanted[vol.name] && !has {
			if err := m.d.stopVolume(ctx, vol, api.VolumeDetached); err != nil {
				errs = append(errs, err)
				continue
			}
			m.d.forget(vol)
		}
	}
	err = errors.Join(errs...)
	if err == nil {
		err = m.resume(ctx, c, v)
	}
	if err == nil || missing || errors.Is(err, errUnfinished) {
		m.d.noteLooked(m)
		m.d.stopOrphans(ctx)
	}
	return err
}

// give makes sure that a domain that runs has a disk it wants, and that of one that is off the volume is known.
func (m *domain) give(ctx context.Context, c libvirtx.Conn, v view, w libvirtx.Want) (*volume, error) {
	if err := cowfmt.ValidName(w.Volume); err != nil {
		return nil, fmt.Errorf("domain %s: %w", m.name(), err)
	}
	vol, err := m.d.claim(m, w)
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
	err = m.d.startVolume(ctx, vol)
	if err == nil && !has {
		err = m.plug(ctx, c, v, w, vol)
	}
	if err != nil {
		m.d.setState(vol, api.VolumeFailed, err)
		return vol, err
	}
	m.d.setState(vol, api.VolumeAttached, nil)
	return vol, nil
}

// plug attaches a volume that is served.
func (m *domain) plug(ctx context.Context, c libvirtx.Conn, v view, w libvirtx.Want, vol *volume) error {
	if v.taken[w.Target] {
		return &takenError{domain: m.name(), target: w.Target}
	}
	s, err := m.d.engineStatus(ctx, vol)
	if err != nil {
		return err
	}
	id, err := uuid.Parse(s.UUID)
	if err != nil {
		return fmt.Errorf("volume %s: %w", w.Volume, err)
	}
	m.d.mu.Lock()
	version := m.d.connVersion
	m.d.mu.Unlock()
	text, err := libvirtx.DiskXML(libvirtx.Spec{
		Volume: w.Volume, UUID: id, Socket: m.d.socketPath(w.Volume), Target: w.Target, Bus: w.Bus,
	}, version)
	if err != nil {
		return err
	}
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

// takeBack asks the guest to let go of a disk that the metadata no longer names, if it was us who attached it.
func (m *domain) takeBack(ctx context.Context, c libvirtx.Conn, name string, disk libvirtx.Disk) error {
	if disk.Alias != libvirtx.Alias(name) {
		m.d.keepForeign(m, name)
		return nil
	}
	if vol := m.d.volumeNamed(name); vol != nil {
		m.d.setState(vol, api.VolumeDetaching, nil)
		m.d.own(m, vol)
	}
	err := c.Detach(ctx, m.ident(), disk.Alias)
	if err != nil && !errors.Is(err, libvirtx.ErrNoDevice) {
		// QEMU refuses a second request while the first is on its way: that is no failure.
		m.d.log.Debug().Err(err).Str("volume", name).Msg("detach")
	}
	return errUnfinished
}
