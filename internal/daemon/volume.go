package daemon

import (
	"path/filepath"
	"strings"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// volume is what the registry knows of one volume. Its fields are guarded by Daemon.mu.
type volume struct {
	name   string
	want   libvirtx.Want
	domain *domain // that has it, nil for none
	state  string  // api.Volume…
	err    error   // why it failed
	engine *engine // nil while it has no process
}

func (d *Daemon) socketPath(volume string) string {
	return filepath.Join(d.config.RunDir, volume+".sock")
}

func (d *Daemon) controlPath(volume string) string {
	return api.ControlPath(d.socketPath(volume))
}

// volumeOfSocket is the volume whose socket this would be, "" if it is none of ours.
func (d *Daemon) volumeOfSocket(socket string) string {
	name, ok := strings.CutSuffix(filepath.Base(socket), ".sock")
	if !ok || filepath.Clean(socket) != d.socketPath(name) {
		return ""
	}
	return name
}

// claim gives a volume to a domain, or says who has it.
func (d *Daemon) claim(dom *domain, w libvirtx.Want) (*volume, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, v := range d.volumes {
		if v.domain != nil && v.domain != dom && (v.name == w.Volume || v.want.Store == w.Store) {
			return nil, &inUseError{volume: w.Volume, store: w.Store, domain: v.domain.name()}
		}
		if v.name != w.Volume && v.want.Store == w.Store && (v.domain != nil || v.engine != nil) {
			return nil, &inUseError{volume: v.name, store: w.Store, domain: dom.name()}
		}
	}
	v := d.volumes[w.Volume]
	if v == nil {
		v = &volume{name: w.Volume, state: api.VolumeOff}
		d.volumes[w.Volume] = v
	}
	if v.engine != nil && v.want.Store != w.Store {
		return nil, &inUseError{volume: w.Volume, store: v.want.Store, domain: dom.name()}
	}
	v.want, v.domain = w, dom
	return v, nil
}

// inUseError says that a volume can't be given to a domain.
type inUseError struct{ volume, store, domain string }

func (e *inUseError) Error() string {
	return "volume " + e.volume + " (" + e.store + ") belongs to domain " + e.domain +
		": detach it there first: virt-cow detach " + e.domain + " " + e.volume
}

// setState records how a volume is; err is nil unless it failed.
func (d *Daemon) setState(v *volume, state string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v.state, v.err = state, err
}

// setStarting records a first attempt; a repeated one goes on showing why the last one failed.
func (d *Daemon) setStarting(v *volume) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if v.err == nil {
		v.state = api.VolumeStarting
	}
}

// volumesOf lists a domain's volumes.
func (d *Daemon) volumesOf(dom *domain) []*volume {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []*volume
	for _, v := range d.volumes {
		if v.domain == dom {
			list = append(list, v)
		}
	}
	return list
}

// poke has a domain looked at.
func (d *Daemon) poke(x libvirtx.Domain) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.domainFor(x).kick() // under the lock: a domain with a kick is not forgotten
}

// lockDomain takes a domain's operation lock.
func (d *Daemon) lockDomain(x libvirtx.Domain) *domain {
	for {
		d.mu.Lock()
		m := d.domainFor(x)
		d.mu.Unlock()
		m.op.Lock()
		if !m.gone {
			return m
		}
		m.op.Unlock()
	}
}

// domainFor finds or makes what the daemon keeps of a domain, and takes note of its present name. The caller
// holds d.mu.
func (d *Daemon) domainFor(x libvirtx.Domain) *domain {
	dom := d.domains[x.UUID]
	if dom == nil {
		dom = newDomain(d, x)
		d.domains[x.UUID] = dom
		d.tasks.Go(dom.run)
	}
	dom.rename(x)
	return dom
}

// forget drops a volume that nobody has and that has no process.
func (d *Daemon) forget(v *volume) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if v.engine == nil {
		v.domain = nil
		if d.volumes[v.name] == v {
			delete(d.volumes, v.name)
		}
	}
}

// forgetDomain drops a domain that libvirt no longer knows, unless something of it is left or to be looked at.
// The caller holds m.op.
func (d *Daemon) forgetDomain(m *domain) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, v := range d.volumes {
		if v.domain == m {
			return false
		}
	}
	if len(m.kicks) > 0 {
		return false
	}
	delete(d.domains, m.ident().UUID)
	return true
}

// noteLooked records that a domain was looked at over this connection.
func (d *Daemon) noteLooked(m *domain) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m.looked = true
}
