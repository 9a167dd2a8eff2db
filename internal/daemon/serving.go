package daemon

import (
	"context"
	"fmt"

	"github.com/virt-cow/virt-cow/internal/api"
)

// starter makes the function that starts a volume's process, or takes the one that runs already.
func (d *Daemon) starter(v *volume) func() (*process, error) {
	return func() (*process, error) {
		d.mu.Lock()
		w := v.want
		d.mu.Unlock()
		p, err := adoptProcess(d.controlPath(w.Volume))
		if p != nil || err != nil {
			return p, err
		}
		return d.spawn(w)
	}
}

// startVolume returns once the volume is served.
func (d *Daemon) startVolume(ctx context.Context, v *volume) error {
	d.mu.Lock()
	e, w := v.engine, v.want
	if e == nil {
		e = d.newEngine(v.name)
		v.engine = e
		d.tasks.Go(func() { e.run(nil, d.startRecorded(v)) })
	}
	d.mu.Unlock()
	if err := e.wait(ctx); err != nil {
		d.dropEnded(v, e)
		return err
	}
	s, err := e.client.Status(ctx)
	switch {
	case err != nil:
		return err
	case s.Volume != w.Volume || s.Store != w.Store:
		return fmt.Errorf("the engine at %s serves volume %s of %s, not %s of %s",
			d.controlPath(w.Volume), s.Volume, s.Store, w.Volume, w.Store)
	}
	return nil
}

// startRecorded writes the record, then starts.
func (d *Daemon) startRecorded(v *volume) func() (*process, error) {
	start := d.starter(v)
	return func() (*process, error) {
		d.mu.Lock()
		w := v.want
		d.mu.Unlock()
		if err := d.writeRecord(w); err != nil {
			return nil, err
		}
		return start()
	}
}

// dropEnded forgets an engine that nothing looks after any more, so that the next attempt makes a new one.
func (d *Daemon) dropEnded(v *volume, e *engine) {
	select {
	case <-e.ended:
	default:
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if v.engine == e {
		v.engine = nil
	}
}

// stopVolume ends a volume's engine cleanly, if it has one, and leaves the volume in this state.
func (d *Daemon) stopVolume(ctx context.Context, v *volume, state string) error {
	d.mu.Lock()
	e := v.engine
	d.mu.Unlock()
	if e != nil {
		if err := e.stop(ctx); err != nil {
			d.setState(v, api.VolumeFailed, err)
			return err
		}
		d.log.Info().Str("volume", v.name).Msg("engine stopped")
	}
	if err := d.removeRecord(v.name); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	v.engine, v.state, v.err = nil, state, nil
	return nil
}

// stopOrphans ends, once a connection, the engines that no domain has: their domain was stopped, or undefined,
// while no daemon was there. It waits until every domain that libvirt listed was looked at.
func (d *Daemon) stopOrphans(ctx context.Context) {
	d.mu.Lock()
	var orphans []*volume
	if !d.orphansAsked && d.allLooked() {
		d.orphansAsked = true
		for _, v := range d.volumes {
			if v.domain == nil {
				orphans = append(orphans, v)
			}
		}
	}
	d.mu.Unlock()
	for _, v := range orphans {
		if err := d.stopVolume(ctx, v, api.VolumeDetached); err != nil {
			d.log.Error().Err(err).Str("volume", v.name).Msg("engine that no domain has")
			continue
		}
		d.forget(v)
	}
}

// allLooked says whether every domain was looked at over this connection. The caller holds d.mu.
func (d *Daemon) allLooked() bool {
	for _, m := range d.domains {
		if !m.looked {
			return false
		}
	}
	return true
}

// pokeOwner has the domain of a volume looked at.
func (d *Daemon) pokeOwner(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if v := d.volumes[name]; v != nil && v.domain != nil {
		v.domain.kick()
	}
}

func (d *Daemon) volumeNamed(name string) *volume {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.volumes[name]
}

// own notes that a domain has a volume's disk.
func (d *Daemon) own(dom *domain, v *volume) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if v.domain == nil {
		v.domain = dom
	}
}

// keepForeign notes that a disk plugged in by hand uses a volume, whose engine must therefore stay.
func (d *Daemon) keepForeign(dom *domain, name string) {
	v := d.volumeNamed(name)
	if v == nil {
		return // served by hand too
	}
	d.own(dom, v)
	d.setState(v, api.VolumeAttached, nil)
}

func (d *Daemon) engineStatus(ctx context.Context, v *volume) (*api.EngineStatus, error) {
	d.mu.Lock()
	e := v.engine
	d.mu.Unlock()
	if e == nil {
		return nil, fmt.Errorf("volume %s has no engine", v.name)
	}
	return e.client.Status(ctx)
}
