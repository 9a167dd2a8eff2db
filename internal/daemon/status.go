package daemon

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// Status tells of everything the daemon looks after, asking all engines at once.
func (d *Daemon) Status(ctx context.Context) *api.DaemonStatus {
	s := &api.DaemonStatus{
		APIVersion: api.DaemonVersion, Version: d.config.Version, PID: os.Getpid(),
		Launcher: d.config.Launcher.Name(), Started: d.started.Unix(),
		Catalogue: d.inventory.Len(), Counters: d.count(),
	}
	d.mu.Lock()
	s.Libvirt.Connected = d.conn != nil
	if d.conn == nil {
		s.Libvirt.Error = d.connError.Error()
	}
	s.Domains = d.problems()
	s.Snapshots = d.notes
	d.mu.Unlock()
	s.Volumes = d.volumeStatuses(ctx)
	s.Backups = d.backupStatuses()
	return s
}

// volumeStatuses tells of all volumes in use, in the order of their names.
func (d *Daemon) volumeStatuses(ctx context.Context) []api.VolumeStatus {
	d.mu.Lock()
	list := slices.Collect(maps.Values(d.volumes))
	d.mu.Unlock()
	slices.SortFunc(list, func(a, b *volume) int { return strings.Compare(a.name, b.name) })
	out := make([]api.VolumeStatus, len(list))
	var wg sync.WaitGroup
	for i, v := range list {
		wg.Go(func() { out[i] = *d.volumeStatus(ctx, v) })
	}
	wg.Wait()
	return out
}

func (d *Daemon) volumeStatus(ctx context.Context, v *volume) *api.VolumeStatus {
	d.mu.Lock()
	s := &api.VolumeStatus{Volume: v.name, Store: v.want.Store, Target: v.want.Target, State: v.state, Held: v.held}
	if v.domain != nil {
		s.Domain = v.domain.name()
	}
	if v.err != nil {
		s.Error = v.err.Error()
	}
	s.Migration, s.MissingSnapshots = v.migration(), v.missing
	e := v.engine
	d.mu.Unlock()
	if e == nil {
		return s
	}
	s.PID = e.pid()
	ready, err := e.isReady()
	if err != nil {
		s.State, s.Error = api.VolumeFailed, err.Error()
	}
	if !ready {
		return s
	}
	if s.Engine, err = d.engineStatus(ctx, v); err != nil {
		if s.Error == "" {
			s.Error = err.Error()
		}
		return s
	}
	s.Old = s.Engine.Version != d.config.Version
	if s.Migration != nil && s.Engine.Handover != nil {
		s.Migration.Waits = s.Engine.Handover.Waits
	}
	return s
}

// migration tells of the migration that a volume is part of, nil for none. The caller holds d.mu.
func (v *volume) migration() *api.MigrationStatus {
	switch {
	case v.incoming != nil:
		return &api.MigrationStatus{ID: v.incoming.migration, Direction: "in", Peer: v.incoming.owner.HostName, Since: v.incoming.since.Unix()}
	case v.outgoing != nil:
		return &api.MigrationStatus{ID: v.outgoing.migration, Direction: "out", Peer: v.outgoing.grant.HostName, Since: v.outgoing.since.Unix()}
	}
	return nil
}

// problems lists what is wrong with domains as a whole, in the order of their names. The caller holds d.mu.
func (d *Daemon) problems() []api.DomainStatus {
	list := []api.DomainStatus{}
	for _, m := range d.domains {
		if m.err != nil {
			id := m.ident()
			list = append(list, api.DomainStatus{Domain: id.Name, UUID: id.UUID.String(), Error: m.err.Error()})
		}
	}
	slices.SortFunc(list, func(a, b api.DomainStatus) int { return strings.Compare(a.Domain, b.Domain) })
	return list
}

// Hydration changes the hydration of a volume, now and at its later starts. One that nobody uses is served until it
// is cut loose.
func (d *Daemon) Hydration(ctx context.Context, r api.VolumeHydrationRequest) (*api.VolumeStatus, error) {
	if r.Rate != nil && *r.Rate < 0 {
		return nil, bad("hydration: rate %d: bytes a second, 0 for no limit", *r.Rate)
	}
	v := d.volumeNamed(r.Volume)
	start := r.Run != nil && *r.Run
	switch {
	case v == nil && !start:
		return nil, errNoVolume(r.Volume)
	case start && (v == nil || d.isIdle(v)):
		held, err := d.hold(ctx, r.Volume, api.HeldHydration)
		if err != nil {
			return nil, err
		}
		v = held // not by its name: one that is cut loose already may be gone again
	}
	d.mu.Lock()
	dom, e := v.domain, v.engine
	d.mu.Unlock()
	if dom != nil {
		if err := d.keepHydration(ctx, dom.ident(), r); err != nil {
			return nil, err
		}
	}
	if e != nil {
		ctx, cancel := context.WithTimeout(ctx, statusTimeout)
		defer cancel()
		if _, err := e.client.Hydration(ctx, r.HydrationRequest); err != nil {
			return nil, err
		}
	}
	d.mu.Lock()
	changeHydration(&v.want, r)
	only := v.held == api.HeldHydration && !start && r.Run != nil
	d.mu.Unlock()
	if only {
		return d.Stop(ctx, r.Volume)
	}
	d.noteIfServed(v)
	return d.volumeStatus(ctx, v), nil
}

// isIdle says whether nothing serves a volume.
func (d *Daemon) isIdle(v *volume) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return v.engine == nil
}

func changeHydration(w *libvirtx.Want, r api.VolumeHydrationRequest) {
	if r.Rate != nil {
		w.Rate = *r.Rate
	}
	if r.Run != nil && *r.Run {
		w.Hydrate = ""
	} else if r.Run != nil {
		w.Hydrate = "no"
	}
}

func errNoVolume(name string) error {
	return noVolumeError{errors.New("no volume " + name + ": see virt-cow status")}
}

type noVolumeError struct{ error }

// keepHydration writes the change into the domain's metadata.
func (d *Daemon) keepHydration(ctx context.Context, id libvirtx.Domain, r api.VolumeHydrationRequest) error {
	c, err := d.libvirt()
	if err != nil {
		return err
	}
	m := d.lockDomain(id)
	defer m.op.Unlock()
	v, err := m.look(ctx, c)
	if err != nil {
		return err
	}
	for i := range v.wants {
		if w := &v.wants[i]; w.Volume == r.Volume {
			changeHydration(w, r)
			return setWants(ctx, c, id, v.wants)
		}
	}
	return nil
}
