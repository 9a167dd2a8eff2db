package daemon

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/virt-cow/virt-cow/internal/api"
)

// Hosts lists the other hosts that have volumes of the catalogue, and asks each whether it answers.
func (d *Daemon) Hosts(ctx context.Context) (*api.HostList, error) {
	if d.config.Peers == nil {
		return nil, bad("there are no other hosts: [migration] listen is empty in the configuration")
	}
	list := &api.HostList{This: d.config.Peers.Self(), Hosts: []api.HostStatus{}}
	at := map[string]int{}
	host := func(id, name, address string) *api.HostStatus {
		i, known := at[id]
		if !known {
			i = len(list.Hosts)
			at[id] = i
			list.Hosts = append(list.Hosts, api.HostStatus{Host: id, HostName: name, Address: address, Volumes: []string{}})
		}
		return &list.Hosts[i]
	}
	for _, info := range d.inventory.List() {
		h, err := d.inventory.Header(ctx, info.Store)
		if err != nil {
			continue // volume list tells of it
		}
		if o := h.Owner; o != nil && o.Host != list.This.Host {
			s := host(o.Host, o.HostName, o.Address)
			s.Volumes = append(s.Volumes, info.Name)
		}
		for _, g := range h.Grants {
			if g.Host != list.This.Host {
				host(g.Host, g.HostName, g.Address)
			}
		}
	}
	var wg sync.WaitGroup
	for i := range list.Hosts {
		wg.Go(func() { d.hello(ctx, &list.Hosts[i]) })
	}
	wg.Wait()
	slices.SortFunc(list.Hosts, func(a, b api.HostStatus) int {
		return cmp.Or(cmp.Compare(a.HostName, b.HostName), cmp.Compare(a.Host, b.Host))
	})
	return list, nil
}

// hello asks a host whether it is there.
func (d *Daemon) hello(ctx context.Context, h *api.HostStatus) {
	if h.Address == "" {
		h.Error = "its engines do not say where its daemon answers"
		return
	}
	ctx, cancel := context.WithTimeout(ctx, d.config.PeerTimeout)
	defer cancel()
	var hello api.PeerHello
	if err := d.config.Peers.Call(ctx, h.Address, api.PathPeerHello, struct{}{}, &hello); err != nil {
		h.Error = err.Error()
		return
	}
	h.Answers, h.Version = true, hello.Version
	if hello.Host != h.Host {
		h.Error = "another host answers there: " + hello.HostName + " (" + hello.Host + ")"
	}
}

// Cache switches a volume's exception cache.
func (d *Daemon) Cache(ctx context.Context, name string, r api.CacheRequest) (*api.VolumeStatus, error) {
	if r.Mode != api.CacheOn && r.Mode != api.CacheOff {
		return nil, bad("cache %q: must be %s or %s", r.Mode, api.CacheOn, api.CacheOff)
	}
	v := d.volumeNamed(name)
	if v == nil {
		return nil, errNoVolume(name)
	}
	d.mu.Lock()
	e := v.engine
	d.mu.Unlock()
	if e == nil {
		return nil, bad("volume %s has no engine: nothing serves it now", name)
	}
	ctx, cancel := context.WithTimeout(ctx, grantTimeout)
	defer cancel()
	if _, err := e.client.Cache(ctx, r); err != nil {
		return nil, err
	}
	return d.volumeStatus(ctx, v), nil
}
