package daemon

import (
	"context"
	"errors"
	"fmt"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/inventory"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/plugin"
)

// openInventory opens the catalogue and ties it to the rest of the daemon.
func (d *Daemon) openInventory() (err error) {
	c := d.config.Inventory
	c.InUse, c.Veto, c.GuestDisks = d.inUse, d.veto, d.guestDisks
	c.Pools = func() (inventory.Pools, error) { return d.libvirt() }
	c.Provider = func(name string) (inventory.Provider, error) {
		p, err := d.config.Plugins.Provider(name)
		if err != nil {
			return nil, err // not a nil *plugin.Provider in an interface, which is not nil
		}
		return p, nil
	}
	d.inventory, err = inventory.Open(c)
	return err
}

// storeOf is the path of a catalogued volume's store.
func (d *Daemon) storeOf(name string) (string, error) {
	v, err := d.inventory.Lookup(name)
	return v.Store, err
}

// inUse says who has a volume: a domain, also one that is off, or "" for one that is only served.
func (d *Daemon) inUse(name string) (domain string, used bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.volumes[name]
	if v != nil && v.domain != nil {
		return v.domain.name(), true
	}
	for _, m := range d.domains {
		if m.names[name] {
			return m.name(), true
		}
	}
	return "", v != nil && (v.engine != nil || v.needed())
}

// veto has plugins asked whether something may be done to a volume that nobody uses.
func (d *Daemon) veto(ctx context.Context, event string, v api.VolumeInfo) error {
	return d.config.Plugins.Ask(ctx, plugin.Event{Event: event, Volume: volumeOf(v)})
}

func volumeOf(v api.VolumeInfo) plugin.Volume {
	return plugin.Volume{Name: v.Name, UUID: v.UUID, Store: v.Store}
}

// guestDisks lists the files and devices that domains have as disks, without us.
func (d *Daemon) guestDisks(ctx context.Context) ([]string, error) {
	c, err := d.libvirt()
	if err != nil {
		return nil, err
	}
	domains, err := c.Domains(ctx)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, id := range domains {
		text, err := c.XML(ctx, id)
		if errors.Is(err, libvirtx.ErrNoDomain) {
			continue
		} else if err != nil {
			return nil, err
		}
		disks, err := libvirtx.FoundDisks(ctx, c, text)
		if err != nil {
			return nil, err
		}
		for _, disk := range disks {
			if disk.Source != "" {
				paths = append(paths, disk.Source)
			}
		}
	}
	return paths, nil
}

// Volumes lists the catalogue, with what is going on with each volume.
func (d *Daemon) Volumes(ctx context.Context) *api.VolumeList {
	list := &api.VolumeList{Volumes: d.inventory.List()}
	status := map[string]*api.VolumeStatus{}
	all := d.volumeStatuses(ctx)
	for i := range all {
		status[all[i].Volume] = &all[i]
	}
	for i := range list.Volumes {
		list.Volumes[i].Status = status[list.Volumes[i].Name]
	}
	return list
}

// Volume tells of one volume of the catalogue.
func (d *Daemon) Volume(ctx context.Context, name string) (api.VolumeInfo, error) {
	info, err := d.inventory.Show(ctx, name)
	if v := d.volumeNamed(name); err == nil && v != nil {
		info.Status = d.volumeStatus(ctx, v)
	}
	return info, err
}

// Create makes a volume.
func (d *Daemon) Create(ctx context.Context, r api.CreateRequest) (api.VolumeInfo, error) {
	return d.done(plugin.EventCreated)(d.inventory.Create(ctx, r))
}

// Adopt takes a store into the catalogue.
func (d *Daemon) Adopt(ctx context.Context, r api.AdoptRequest) (api.VolumeInfo, error) {
	if r.Check { // nothing is done that plugins could be told of
		return d.inventory.Adopt(ctx, r)
	}
	return d.done(plugin.EventCreated)(d.inventory.Adopt(ctx, r))
}

// Delete removes a volume.
func (d *Daemon) Delete(ctx context.Context, name string, r api.DeleteRequest) (api.VolumeInfo, error) {
	if !r.KeepStore && !r.Force {
		if err := d.allSeen(); err != nil {
			return api.VolumeInfo{}, fmt.Errorf("volume %s: it can't be known which domains that are off have it: %w", name, err)
		}
	}
	return d.done(plugin.EventDeleted)(d.inventory.Delete(ctx, name, r))
}

// allSeen returns why it is not known of every domain which volumes it has and should have.
func (d *Daemon) allSeen() error {
	if _, err := d.libvirt(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range d.domains {
		if !m.seen {
			return fmt.Errorf("domain %s was not looked at yet: %w", m.name(), errUnfinished)
		}
	}
	return nil
}

// done has plugins told of what was done to a volume, if it was.
func (d *Daemon) done(event string) func(api.VolumeInfo, error) (api.VolumeInfo, error) {
	return func(v api.VolumeInfo, err error) (api.VolumeInfo, error) {
		if err == nil {
			d.config.Plugins.Tell(plugin.Event{Event: event, Volume: volumeOf(v)})
		}
		return v, err
	}
}

// devicesOf lists the block devices that a volume's engine opens.
func (d *Daemon) devicesOf(v *volume) []string {
	d.mu.Lock()
	name, store := v.name, v.want.Store
	d.mu.Unlock()
	e, err := d.inventory.Lookup(name)
	if err != nil || e.Store != store {
		return nil // an engine that ran before there was a catalogue
	}
	return d.inventory.Devices(e)
}
