package daemon

import (
	"path/filepath"
	"sync"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/plugin"
)

// volume is what the registry knows of one volume in use. Its fields are guarded by Daemon.mu, but for the locks.
type volume struct {
	name   string
	op     sync.Mutex // held while its engine is started or stopped
	noting sync.Mutex // held while its spec is written

	uuid     string // "" until its engine said it
	want     libvirtx.Want
	domain   *domain   // that has it, nil for none
	plugged  bool      // into the domain by this daemon or one before it, whose it is to take back
	held     string    // api.Held…: why it is served though no domain has it
	arrived  bool      // its domain's guest has it, and plugins were told so
	hydrated bool      // plugins need not be told any more that it is cut loose
	prepared time.Time // until when it is kept for a domain that was announced to start
	client   *api.Peer // whose QEMU its engine lets in, as far as it was told
	state    string    // api.Volume…
	err      error     // why it failed
	engine   *engine   // nil while it has no process

	epoch    uint32         // in which the guest has it; 0: it does not
	gone     bool           // it was handed over, and its engine has no more to do
	lost     bool           // another host has taken it over from the guest that has it here
	incoming *incoming      // it is another host's, and to come with its domain
	outgoing *outgoing      // another host was granted it
	dead     *api.DeadOwner // proof for its next engine
	fencedAt time.Time      // when its owner's host was to be fenced last
	jobAsked time.Time      // when libvirt was asked last whether its guest is being migrated
	cutting  int            // that its engine is held for, by cuts and by who removes snapshots
	frozen   bool           // its guest may come frozen from another host
	look     chan struct{}  // wakes whoever follows its hand-over, nil if nobody does

	snapshots map[string]string // paths of its snapshots' stores here, by UUID; never changed, but replaced
	missing   []string          // UUIDs of snapshots that it can't be opened without, and that were not found here
}

// preparedFor is how long a volume stays served for a domain whose start the hook announced, if nothing more is
// heard of it: QEMU itself may take its time to begin.
const preparedFor = 5 * time.Minute

// announce keeps a volume for a domain that is about to start, or to come; the caller holds Daemon.mu. libvirt has the hook
// announce a start for one that comes, too.
func (v *volume) announce() {
	wait := preparedFor
	if v.incoming != nil {
		wait = incomingFor
	}
	v.prepared = time.Now().Add(wait)
}

// announced says whether a domain was announced to start with the volume; the caller holds Daemon.mu.
func (v *volume) announced() bool { return time.Now().Before(v.prepared) }

// needed says whether a volume must stay served whatever its domain does; the caller holds Daemon.mu.
func (v *volume) needed() bool { return v.held != "" || v.announced() || v.cutting > 0 }

func (d *Daemon) socketPath(volume string) string {
	return filepath.Join(d.config.RunDir, volume+".sock")
}

func (d *Daemon) controlPath(volume string) string {
	return api.ControlPath(d.socketPath(volume))
}

// volumeOfSocket is the volume whose socket this would be, "" if it is none of ours.
func (d *Daemon) volumeOfSocket(socket string) string {
	name := libvirtx.VolumeOf(socket, d.config.RunDir)
	if name+".sock" == api.DaemonSocket {
		return ""
	}
	return name
}

// claim gives a volume to a domain, or says who has it. One that runs, or is about to, takes a volume over from
// one that is off: a site may define a guest twice, as long as it runs it once.
func (d *Daemon) claim(dom *domain, w libvirtx.Want, starting bool) (*volume, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.claimLocked(dom, w, starting)
}

// claimLocked is claim for one who holds d.mu.
func (d *Daemon) claimLocked(dom *domain, w libvirtx.Want, starting bool) (*volume, error) {
	for _, v := range d.volumes {
		if v.name != w.Volume && v.want.Store != w.Store {
			continue
		}
		idle := starting && v.engine == nil && v.name == w.Volume && !v.needed() && !v.arrived
		if v.domain != nil && v.domain != dom && !idle {
			return nil, &inUseError{volume: w.Volume, store: w.Store, domain: v.domain.name()}
		}
		if v.name != w.Volume && (v.domain != nil || v.engine != nil) {
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

// setState records how a volume is; err is nil unless it failed. A failure that is new is told to plugins.
func (d *Daemon) setState(v *volume, state string, err error) {
	d.mu.Lock()
	news := err != nil && (v.err == nil || v.err.Error() != err.Error())
	v.state, v.err = state, err
	d.mu.Unlock()
	if news {
		d.tell(plugin.EventFailed, v, err)
	}
}

// setStarting records a first attempt; a repeated one goes on showing why the last one failed, and a volume that is to come with
// its domain stays incoming.
func (d *Daemon) setStarting(v *volume) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if v.err == nil && v.incoming == nil {
		v.state = api.VolumeStarting
	}
}

// setStopping records that a volume's engine is asked to end; why serving it or ending it failed before goes on being shown.
func (d *Daemon) setStopping(v *volume) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v.state = api.VolumeStopping
}

func (d *Daemon) volumeNamed(name string) *volume {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.volumes[name]
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

// forget takes a volume from its domain and drops it, unless it has a process or is about to. One that was prepared
// meanwhile stays with the domain.
func (d *Daemon) forget(m *domain, v *volume) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if v.domain != m || v.announced() {
		return // another has it by now
	}
	v.domain, v.plugged, v.want.Target = nil, false, ""
	if v.engine == nil && v.held == "" && d.volumes[v.name] == v {
		delete(d.volumes, v.name)
	}
}
