package daemon

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/plugin"
)

// detachWait is how long a detach waits for the guest. The request stays: it is repeated until the guest obeys.
const detachWait = 60 * time.Second

// Detach takes a volume from a domain for good, and waits until the guest let go of it and its store is closed.
func (d *Daemon) Detach(ctx context.Context, r api.DetachRequest) (*api.VolumeStatus, error) {
	c, err := d.libvirt()
	if err != nil {
		return nil, err
	}
	id, err := c.Lookup(ctx, r.Domain)
	if err != nil {
		return nil, err
	}
	m := d.lockDomain(id)
	err = m.unwant(ctx, c, r.Volume)
	done := m.reconciled()
	m.op.Unlock()
	if err != nil {
		return nil, err
	}
	deadline := time.After(detachWait)
	for {
		m.kick()
		select {
		case <-done:
			done = m.reconciled()
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-deadline:
			return nil, fmt.Errorf("domain %s does not let go of volume %s yet: its guest must be up and cooperate; "+
				"it stays asked to, see virt-cow status", id.Name, r.Volume)
		}
		if over, s, err := d.detached(ctx, m, r.Volume); over || err != nil {
			return s, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// unwant removes a volume from the domain's metadata.
func (m *domain) unwant(ctx context.Context, c libvirtx.Conn, volume string) error {
	v, err := m.look(ctx, c)
	if err != nil {
		return err
	}
	disk, has := v.disks[volume]
	_, declared := v.declared[volume]
	rest := slices.DeleteFunc(slices.Clone(v.wants), func(w libvirtx.Want) bool { return w.Volume == volume })
	if len(rest) == len(v.wants) && !has {
		if declared {
			return fmt.Errorf("volume %s is in the definition of domain %s: use virsh edit %s", volume, m.name(), m.name())
		}
		return fmt.Errorf("domain %s has no volume %s", m.name(), volume)
	}
	if vol := m.d.volumeNamed(volume); vol != nil {
		if err := m.d.ask(ctx, plugin.EventDetach, vol, m.ident()); err != nil {
			return err
		}
	}
	switch {
	case len(rest) != len(v.wants):
		if has && disk.Alias == libvirtx.Alias(volume) {
			m.d.takeOver(m, volume) // a restored guest has it, and nobody here plugged it in
		}
		return setWants(ctx, c, m.ident(), rest)
	case m.d.isPlugged(m, volume): // asked for before
		return nil
	case disk.Alias == libvirtx.Alias(volume) && m.d.takeOver(m, volume): // of a saved guest, whose daemon is long gone
		return nil
	}
	return fmt.Errorf("volume %s was plugged into domain %s by hand, or is in its definition: use virsh detach-disk %s %s",
		volume, m.name(), m.name(), disk.Target)
}

// takeOver makes a disk the daemon's to take back.
func (d *Daemon) takeOver(m *domain, name string) bool {
	d.mu.Lock()
	v := d.volumes[name]
	ours := v != nil && v.domain == m
	if ours {
		v.plugged = true
	}
	d.mu.Unlock()
	if ours {
		d.noteIfServed(v)
	}
	return ours
}

// detached says whether the domain is rid of the volume.
func (d *Daemon) detached(ctx context.Context, m *domain, name string) (bool, *api.VolumeStatus, error) {
	v := d.volumeNamed(name)
	if v == nil {
		return true, &api.VolumeStatus{Volume: name, Domain: m.name(), State: api.VolumeDetached}, nil
	}
	d.mu.Lock()
	other, state, err := v.domain != m, v.state, v.err
	d.mu.Unlock()
	if other {
		return true, &api.VolumeStatus{Volume: name, Domain: m.name(), State: api.VolumeDetached}, nil
	}
	if state == api.VolumeFailed {
		return false, nil, err
	}
	return false, nil, nil
}
