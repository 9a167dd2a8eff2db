package daemon

import (
	"context"
	"errors"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/inventory"
	"github.com/virt-cow/virt-cow/internal/plugin"
)

// watchEvery is how often volumes are looked at that are being hydrated, or are held with no domain to look after
// them.
const watchEvery = 3 * time.Second

// watch tells of volumes that are cut loose, lets go of those held only for that, and serves again what is held.
func (d *Daemon) watch(ctx context.Context) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		d.mu.Lock()
		var list []*volume
		for _, v := range d.volumes {
			if !v.hydrated && v.engine != nil || v.held != "" {
				list = append(list, v)
			}
		}
		d.mu.Unlock()
		for _, v := range list {
			d.watchOne(ctx, v)
		}
	}
}

func (d *Daemon) watchOne(ctx context.Context, v *volume) {
	d.mu.Lock()
	held, alone, e, reserved := v.held, v.domain == nil, v.engine, v.client != nil
	d.mu.Unlock()
	if e != nil && !e.hasEnded() {
		if ready, _ := e.isReady(); !ready { // nor to be waited for: there are others
			return
		}
	}
	if held != "" && alone && (e == nil || e.hasEnded() || reserved) {
		if err := d.startVolume(ctx, v); errors.Is(err, errForgotten) {
			return
		} else if err != nil {
			d.setState(v, api.VolumeFailed, err)
			return
		}
		d.setState(v, api.VolumeServed, nil)
	}
	s, err := d.engineStatus(ctx, v)
	if err != nil || s.Hydration == nil || s.Hydration.State != api.HydrationDone {
		return
	}
	d.mu.Lock()
	news := !v.hydrated
	v.hydrated = true
	if v.held == api.HeldHydration {
		v.held = ""
	}
	d.mu.Unlock()
	if news {
		d.cutLoose(v)
		d.tell(plugin.EventHydrated, v, nil)
		d.noteIfServed(v)
	}
	if held != api.HeldHydration {
		return
	}
	if alone {
		if err := d.stopVolume(ctx, v, nil, api.VolumeOff); err != nil {
			d.log.Error().Err(err).Str("volume", v.name).Msg("engine of a volume that is cut loose")
			d.mu.Lock()
			if v.held == "" && v.domain == nil {
				v.held = held // to be let go of the next time
			}
			d.mu.Unlock()
			return
		}
		d.forget(nil, v)
	}
	d.pokeOwner(v.name)
}

// cutLoose has the catalogue know: its master may be served again.
func (d *Daemon) cutLoose(v *volume) {
	if err := d.inventory.CutLoose(v.name); err != nil && !errors.Is(err, inventory.ErrNotFound) {
		d.log.Error().Err(err).Str("volume", v.name).Msg("the catalogue still takes it for a clone")
	}
}
