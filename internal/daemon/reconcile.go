package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/inventory"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/plugin"
)

// errUnfinished says that nothing is wrong but something is still to come: look again.
var errUnfinished = errors.New("not finished, look again")

// view is what libvirt says of a domain at one moment.
type view struct {
	wants    []libvirtx.Want
	state    libvirtx.State
	disks    map[string]libvirtx.Disk // that QEMU has of ours, by volume; empty while the domain is off
	declared map[string]libvirtx.Disk // that the definition of a domain that is off has of ours
	taken    map[string]bool          // targets in use, by ours too
}

// look asks libvirt. A domain it does not know wants nothing and has nothing; the error says so.
func (m *domain) look(ctx context.Context, c libvirtx.Conn) (view, error) {
	v := view{disks: map[string]libvirtx.Disk{}, declared: map[string]libvirtx.Disk{}, taken: map[string]bool{}}
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
		name := m.d.volumeOfSocket(disk.Socket)
		switch {
		case name == "":
		case v.state.Active:
			v.disks[name] = disk
		default:
			v.declared[name] = disk
		}
	}
	return v, nil
}

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
		return err
	}
	errs := []error{err}
	problem := m.giveAll(ctx, c, v, &errs)
	m.keepAll(ctx, c, v, &errs)
	m.stopRest(ctx, v, &errs)
	m.noteDeclared(v)
	m.d.noteSeen(m)
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
	return vol, nil
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
			*errs = append(*errs, m.keep(ctx, name, disk))
		}
	}
}

// keep has the volume of a disk served that is not ours to take back.
func (m *domain) keep(ctx context.Context, name string, disk libvirtx.Disk) error {
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
	return nil
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

func (v view) wanted(volume string) bool {
	return slices.ContainsFunc(v.wants, func(w libvirtx.Want) bool { return w.Volume == volume })
}

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
	if errors.Is(err, libvirtx.ErrGone) { // the guest was not asked, as far as is known
		m.removalOver(disk.Alias)
	}
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
	return time.Now().Before(v.prepared)
}

// arrived notes that a guest has its disk.
func (d *Daemon) arrived(v *volume) {
	d.mu.Lock()
	news := !v.arrived
	v.arrived, v.prepared = true, time.Time{}
	d.mu.Unlock()
	d.setState(v, api.VolumeAttached, nil)
	if news {
		d.noteIfServed(v)
		d.tell(plugin.EventAttached, v, nil)
	}
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
