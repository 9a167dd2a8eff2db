package daemon

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// statusTimeout bounds what one engine may take to answer: one that hangs must not hide the others.
const statusTimeout = 5 * time.Second

// Status tells of everything the daemon looks after, asking all engines at once.
func (d *Daemon) Status(ctx context.Context) *api.DaemonStatus {
	s := &api.DaemonStatus{APIVersion: api.DaemonVersion, Version: d.config.Version, PID: os.Getpid()}
	d.mu.Lock()
	s.Libvirt.Connected = d.conn != nil
	if d.conn == nil {
		s.Libvirt.Error = d.connError.Error()
	}
	list := make([]*volume, 0, len(d.volumes))
	for _, v := range d.volumes {
		list = append(list, v)
	}
	d.mu.Unlock()
	slices.SortFunc(list, func(a, b *volume) int { return strings.Compare(a.name, b.name) })
	s.Volumes = make([]api.VolumeStatus, len(list))
	var wg sync.WaitGroup
	for i, v := range list {
		wg.Go(func() { s.Volumes[i] = *d.volumeStatus(ctx, v) })
	}
	wg.Wait()
	return s
}

func (d *Daemon) volumeStatus(ctx context.Context, v *volume) *api.VolumeStatus {
	d.mu.Lock()
	s := &api.VolumeStatus{Volume: v.name, Store: v.want.Store, Target: v.want.Target, State: v.state}
	if v.domain != nil {
		s.Domain = v.domain.name()
	}
	if v.err != nil {
		s.Error = v.err.Error()
	}
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
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	if s.Engine, err = e.client.Status(ctx); err != nil && s.Error == "" {
		s.Error = err.Error()
	}
	return s
}

// Hydration changes the hydration of a volume that is served, and what its later starts do.
func (d *Daemon) Hydration(ctx context.Context, r api.VolumeHydrationRequest) (*api.VolumeStatus, error) {
	if r.Rate != nil && *r.Rate < 0 {
		return nil, bad("hydration: rate %d: bytes a second, 0 for no limit", *r.Rate)
	}
	v := d.volumeNamed(r.Volume)
	if v == nil {
		return nil, errNoVolume(r.Volume)
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
		if _, err := e.client.Hydration(ctx, r.HydrationRequest); err != nil {
			return nil, err
		}
	}
	return d.volumeStatus(ctx, v), nil
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
			if r.Rate != nil {
				w.Rate = *r.Rate
			}
			if r.Run != nil && *r.Run {
				w.Hydrate = ""
			} else if r.Run != nil {
				w.Hydrate = "no"
			}
			return setWants(ctx, c, id, v.wants)
		}
	}
	return nil
}
