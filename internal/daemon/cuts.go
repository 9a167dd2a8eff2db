package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cut"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// cutEngines are the engines of this host, for cuts.
type cutEngines struct{ d *Daemon }

// cutEngine is one that has the block device of a snapshot let through to it before it is asked to open that.
type cutEngine struct {
	*api.Engine
	d      *Daemon
	volume *volume
}

// AddSnapshot implements cut.Engine.
func (e *cutEngine) AddSnapshot(ctx context.Context, r api.SnapshotAddRequest) (*api.EngineStatus, error) {
	e.d.mu.Lock()
	e.volume.snapshots = with(e.volume.snapshots, r.UUID, r.Store)
	e.d.mu.Unlock()
	spec, err := e.d.note(e.volume) // for an engine that is started again meanwhile
	if err != nil {
		return nil, err
	}
	if err := e.d.config.Launcher.Allow(ctx, spec); err != nil {
		return nil, err
	}
	return e.Engine.AddSnapshot(ctx, r)
}

// with is a map with one entry more; the one before is somebody else's, perhaps.
func with(m map[string]string, key, value string) map[string]string {
	more := map[string]string{key: value}
	for k, v := range m {
		if k != key {
			more[k] = v
		}
	}
	return more
}

// Hold implements cut.Engines.
func (c cutEngines) Hold(ctx context.Context, id string) (cut.Engine, func(), error) {
	d := c.d
	v, err := d.takeForCut(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	release := func() { d.doneWithCut(v) }
	if err := d.startVolume(ctx, v); err != nil {
		release()
		return nil, nil, err
	}
	e, err := d.engineOf(v)
	if err != nil {
		release()
		return nil, nil, err
	}
	return &cutEngine{e.client, d, v}, release, nil
}

// takeForCut has a volume stay served from now on. One that nobody serves is another host's if that has it open, or is to.
func (d *Daemon) takeForCut(ctx context.Context, id string) (*volume, error) {
	if v := d.volumeWithUUID(id); v != nil && d.keepForCut(v) {
		return v, nil
	}
	w, err := d.wantWithUUID(id)
	if err != nil {
		return nil, err
	}
	h, err := d.inventory.Header(ctx, w.Store)
	if err != nil {
		return nil, err
	}
	if h.Owner != nil && d.config.Peers != nil && h.Owner.Host != d.config.Peers.Self().Host {
		return nil, fmt.Errorf("%w: %s", cut.ErrElsewhere, h.Owner.HostName)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.volumes[w.Volume]
	switch {
	case v == nil:
		v = &volume{name: w.Volume, want: w, state: api.VolumeStarting}
		d.volumes[w.Volume] = v
	case v.incoming != nil || v.gone:
		return nil, fmt.Errorf("volume %s: %w: its domain is migrating, or has left", w.Volume, cut.ErrElsewhere)
	}
	v.cutting++
	return v, nil
}

// keepForCut has a volume that is served here stay so.
func (d *Daemon) keepForCut(v *volume) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if v.engine == nil || v.incoming != nil || v.gone || d.volumes[v.name] != v {
		return false
	}
	v.cutting++
	return true
}

// wantWithUUID is how a volume of the catalogue is served that no domain has: only to be looked after.
func (d *Daemon) wantWithUUID(id string) (libvirtx.Want, error) {
	for _, v := range d.inventory.List() {
		if v.UUID == id {
			return libvirtx.Want{Volume: v.Name, Store: v.Store, Hydrate: "no"}, nil
		}
	}
	return libvirtx.Want{}, errNoVolume(id)
}

// doneWithCut lets a volume go. One that nobody else needs is closed.
func (d *Daemon) doneWithCut(v *volume) {
	d.mu.Lock()
	v.cutting--
	m, idle := v.domain, v.cutting == 0 && !v.needed()
	d.mu.Unlock()
	switch {
	case m != nil:
		m.kick()
	case idle:
		d.tasks.Go(func() {
			if err := d.stopVolume(context.WithoutCancel(d.root), v, nil, api.VolumeOff); err != nil {
				d.log.Error().Err(err).Str("volume", v.name).Msg("engine that was needed for a snapshot only")
				return
			}
			d.forget(nil, v)
		})
	}
}

// Listed implements cut.Engines.
func (c cutEngines) Listed(ctx context.Context, id, snapshot string) (bool, error) {
	d := c.d
	if v := d.volumeWithUUID(id); v != nil {
		if s, err := d.engineStatus(ctx, v); err == nil {
			return cut.Entry(s, snapshot) != nil, nil
		}
	}
	w, err := d.wantWithUUID(id)
	var gone noVolumeError
	if errors.As(err, &gone) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	h, err := d.inventory.Header(ctx, w.Store)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(h.Stack, func(e api.SnapshotStatus) bool { return e.UUID == snapshot }), nil
}

// Unlist implements cut.Engines. A guest that is to start meanwhile waits for it.
func (c cutEngines) Unlist(ctx context.Context, id, snapshot string) error {
	d := c.d
	v, err := d.takeForCut(ctx, id)
	if err != nil {
		return err
	}
	defer d.doneWithCut(v)
	v.op.Lock()
	defer v.op.Unlock()
	d.mu.Lock()
	served, store := v.engine != nil, v.want.Store
	d.mu.Unlock()
	if served {
		return errServed
	}
	if err := d.inventory.Unlist(ctx, store, snapshot); err != nil {
		d.log.Debug().Err(err).Str("volume", v.name).Str("snapshot", snapshot).Msg("its engine has to take the snapshot away")
		return err
	}
	return nil
}

var errServed = errors.New("it is served")

// cutGuests is libvirt, for cuts.
type cutGuests struct{ d *Daemon }

// Running implements cut.Guests.
func (c cutGuests) Running(ctx context.Context, x libvirtx.Domain) (bool, error) {
	return c.d.runs(ctx, x)
}

// Freeze implements cut.Guests. The agent is asked how it is first: one that does not answer that is not asked to freeze,
// which it might do much later.
func (c cutGuests) Freeze(ctx context.Context, x libvirtx.Domain) (int, error) {
	conn, err := c.d.libvirt()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", cut.ErrNotFrozen, err)
	}
	frozen, err := conn.Frozen(ctx, x)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%w: %w", cut.ErrNotFrozen, err)
	case frozen: // by somebody who will thaw it when he likes
		return 0, fmt.Errorf("%w by this: %w", cut.ErrNotFrozen, libvirtx.ErrFrozen)
	}
	return conn.Freeze(ctx, x) // after a hook that failed it is thawed, too: others before that one have done their part
}

// Thaw implements cut.Guests.
func (c cutGuests) Thaw(ctx context.Context, x libvirtx.Domain) (int, error) {
	conn, err := c.d.libvirt()
	if err != nil {
		return 0, err
	}
	n, err := conn.Thaw(ctx, x)
	switch {
	case errors.Is(err, libvirtx.ErrHook): // of the guest, after the thaw
		return n, fmt.Errorf("%w any more, but: %w", cut.ErrNotFrozen, err)
	case err == nil && n == 0:
		return 0, cut.ErrNotFrozen
	case err == nil:
		return n, nil
	}
	// A guest that is off, or has gone to another host, has nothing to thaw here; but one that is saved comes back frozen.
	if runs, asked := c.Running(ctx, x); asked != nil || runs {
		return 0, err
	}
	saved, asked := conn.Saved(ctx, x)
	switch {
	case saved:
		return 0, fmt.Errorf("it is saved, and thawed once it goes on: %w", err)
	case asked != nil && !errors.Is(asked, libvirtx.ErrNoDomain):
		return 0, asked
	}
	return 0, fmt.Errorf("%w: the domain is not on this host", cut.ErrNotFrozen)
}
