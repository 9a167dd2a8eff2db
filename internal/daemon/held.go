package daemon

import (
	"context"
	"fmt"

	"github.com/virt-cow/virt-cow/internal/api"
)

// Start has a volume served though no domain has it: for virsh attach-device by hand, for another NBD client, or to
// be hydrated.
func (d *Daemon) Start(ctx context.Context, name string) (*api.VolumeStatus, error) {
	v, err := d.hold(ctx, name, api.HeldRequest)
	if err != nil {
		return nil, err
	}
	return d.volumeStatus(ctx, v), nil
}

// hold has a volume served until it is let go.
func (d *Daemon) hold(ctx context.Context, name, why string) (*volume, error) {
	w, err := d.wantNamed(name)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	v := d.volumes[name]
	if v != nil && (v.incoming != nil || v.gone) {
		d.mu.Unlock()
		return nil, bad("volume %s is another host's: its domain is migrating, or has left: `virt-cow status` tells of it", name)
	}
	if v == nil {
		w.Hydrate = "no"
		v = &volume{name: name, want: w, state: api.VolumeStarting}
		d.volumes[name] = v
	}
	was := v.held
	if was != api.HeldRequest {
		v.held = why
	}
	d.mu.Unlock()
	if err := d.startVolume(ctx, v); err != nil {
		d.mu.Lock()
		if v.held != "" { // nobody has let go of it meanwhile
			v.held = was
		}
		d.mu.Unlock()
		d.setState(v, api.VolumeFailed, err)
		return nil, err
	}
	d.mu.Lock()
	if v.state != api.VolumeAttached {
		v.state, v.err = api.VolumeServed, nil
	}
	d.mu.Unlock()
	d.noteIfServed(v)
	return v, nil
}

func (d *Daemon) letGo(v *volume) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v.held = ""
}

// Stop ends what Start began. A domain that has the volume keeps it.
func (d *Daemon) Stop(ctx context.Context, name string) (*api.VolumeStatus, error) {
	v := d.volumeNamed(name)
	if v == nil {
		return nil, errNoVolume(name)
	}
	d.mu.Lock()
	held, m, store := v.held, v.domain, v.want.Store
	d.mu.Unlock()
	if held == "" && m != nil {
		return nil, &inUseError{volume: name, store: store, domain: m.name()}
	}
	d.letGo(v)
	if m != nil {
		d.noteIfServed(v)
		m.kick()
		return d.volumeStatus(ctx, v), nil
	}
	if err := d.stopVolume(ctx, v, nil, api.VolumeOff); err != nil {
		return nil, err
	}
	d.forget(nil, v)
	return d.volumeStatus(ctx, v), nil
}

// Restart replaces a volume's engine by a new process of the program as it is now. QEMU connects again; on a
// libvirt without <reconnect> for NBD the guest may be paused for a moment, and is resumed.
func (d *Daemon) Restart(ctx context.Context, name string) (*api.VolumeStatus, error) {
	v := d.volumeNamed(name)
	if v == nil {
		return nil, errNoVolume(name)
	}
	if err := d.restartEngine(ctx, v); err != nil {
		return nil, err
	}
	d.pokeOwner(name)
	return d.volumeStatus(ctx, v), nil
}

func (d *Daemon) restartEngine(ctx context.Context, v *volume) error {
	v.op.Lock()
	defer v.op.Unlock()
	d.mu.Lock()
	e := v.engine
	d.mu.Unlock()
	if e == nil {
		return bad("volume %s has no engine: nothing serves it now", v.name)
	}
	if s, err := d.engineStatus(ctx, v); err == nil && s.Divided() {
		return bad("volume %s is shared with another host just now, and its engine needed: `virt-cow status` tells of it", v.name)
	}
	if err := e.stop(ctx); err != nil {
		return fmt.Errorf("volume %s: its engine is left as it is: %w", v.name, err)
	}
	d.mu.Lock()
	v.engine = nil
	d.mu.Unlock()
	if err := d.startLocked(ctx, v); err != nil {
		d.setState(v, api.VolumeFailed, err)
		d.pokeOwner(v.name) // which goes on trying
		return err
	}
	return nil
}
