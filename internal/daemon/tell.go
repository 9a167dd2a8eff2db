package daemon

import (
	"context"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/plugin"
)

// ask lets plugins refuse what is about to be done with a volume.
func (d *Daemon) ask(ctx context.Context, name string, v *volume, id libvirtx.Domain) error {
	return d.config.Plugins.Ask(ctx, d.event(name, v, &id, nil))
}

// tell lets plugins know what was done with a volume, or went wrong. It does not wait.
func (d *Daemon) tell(name string, v *volume, err error) {
	d.mu.Lock()
	m := v.domain
	d.mu.Unlock()
	var id *libvirtx.Domain
	if m != nil {
		x := m.ident()
		id = &x
	}
	d.config.Plugins.Tell(d.event(name, v, id, err))
}

func (d *Daemon) event(name string, v *volume, id *libvirtx.Domain, err error) plugin.Event {
	known, _ := d.inventory.Lookup(v.name)
	d.mu.Lock()
	defer d.mu.Unlock()
	e := plugin.Event{
		Event:  name,
		Volume: plugin.Volume{Name: v.name, UUID: v.uuid, Store: v.want.Store},
		Target: v.want.Target,
	}
	if e.Volume.UUID == "" { // its engine has not said it yet
		e.Volume.UUID = known.UUID
	}
	if id != nil {
		e.Domain = plugin.Domain{Name: id.Name, UUID: id.UUID.String()}
	}
	if err != nil {
		e.Error = err.Error()
	}
	return e
}
