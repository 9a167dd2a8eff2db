package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/launch"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

func (d *Daemon) specPath(volume string) string {
	return filepath.Join(d.config.RunDir, volume+api.SpecSuffix)
}

// specOf is what a volume's engine is to serve.
func (d *Daemon) specOf(v *volume) *api.EngineSpec {
	devices := d.devicesOf(v) // not under the lock: a path may be on a file system that hangs
	d.mu.Lock()
	defer d.mu.Unlock()
	w := v.want
	return &api.EngineSpec{
		Version: api.SpecVersion, Volume: v.name, UUID: v.uuid, Store: w.Store,
		Socket: d.socketPath(v.name), Control: d.controlPath(v.name), Group: d.config.Group,
		Client: d.peerOf(v.domain), Address: d.address(), Incoming: v.incoming.spec(), Dead: v.dead, Epoch: v.epochOfGuest(), Reservations: d.config.Reservations,
		Hydrate: w.Hydrate != "no", Rate: w.Rate, Devices: devices, Snapshots: v.snapshots,
		Use: &api.Use{Target: w.Target, Bus: w.Bus, Plugged: v.plugged, Held: v.held, Arrived: v.arrived, Hydrated: v.hydrated, Thaw: v.frozen},
	}
}

// epochOfGuest is the epoch in which the guest has the volume, 0 if it does not. The caller holds d.mu.
func (v *volume) epochOfGuest() uint32 {
	if !v.arrived {
		return 0
	}
	return v.epoch
}

// address is where other hosts reach this daemon, "" for nowhere.
func (d *Daemon) address() string {
	if d.config.Peers == nil {
		return ""
	}
	return d.config.Peers.Address()
}

// spec is what an engine is told of it.
func (in *incoming) spec() *api.Incoming {
	if in == nil {
		return nil
	}
	return &api.Incoming{Grant: in.grant}
}

// peerOf is whose QEMU may connect: that of the domain. The caller holds d.mu.
func (d *Daemon) peerOf(m *domain) *api.Peer {
	if m == nil {
		return nil
	}
	id := m.ident()
	return &api.Peer{Domain: id.Name, UUID: id.UUID.String(), PIDFile: filepath.Join(d.config.QEMURunDir, id.Name+".pid")}
}

// note writes a volume's spec, so that the next daemon knows what this one does.
func (d *Daemon) note(v *volume) (*api.EngineSpec, error) {
	v.noting.Lock()
	defer v.noting.Unlock()
	spec := d.specOf(v)
	b, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	path := d.specPath(v.name)
	if err := os.WriteFile(path+".new", b, 0o640); err != nil {
		return nil, err
	}
	return spec, os.Rename(path+".new", path)
}

// noteIfServed writes the spec of a volume that has an engine.
func (d *Daemon) noteIfServed(v *volume) {
	d.mu.Lock()
	served := v.engine != nil
	d.mu.Unlock()
	if !served {
		return
	}
	if _, err := d.note(v); err != nil {
		d.log.Error().Err(err).Str("volume", v.name).Msg("can't note how the volume is used")
	}
}

func (d *Daemon) removeSpec(volume string) error {
	err := os.Remove(d.specPath(volume))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// adopt finds the engines an earlier daemon left. Each stays with the domain it was for until that was looked at: another
// one that has the volume in its definition too must not take it from a guest that runs.
func (d *Daemon) adopt() error {
	paths, err := filepath.Glob(filepath.Join(d.config.RunDir, "*"+api.SpecSuffix))
	if err != nil {
		return err
	}
	for _, path := range paths {
		if err := d.adoptOne(path); err != nil {
			// Its volume is left alone: an engine may well run.
			d.log.Error().Err(err).Str("spec", path).Msg("can't adopt an engine")
		}
	}
	return nil
}

// adoptOne goes on with one engine. One that died with no daemon there to see it is started again all the same:
// its guest goes on, or, if nobody wants it, its store is closed cleanly.
func (d *Daemon) adoptOne(path string) error {
	spec, err := readSpec(path)
	if err != nil {
		return err
	}
	p, unknown := launch.Adopt(d.controlPath(spec.Volume)) // asked again before one is started
	v := &volume{
		name: spec.Volume, uuid: spec.UUID, client: spec.Client, state: api.VolumeStarting,
		want: libvirtx.Want{
			Volume: spec.Volume, Store: spec.Store, Rate: spec.Rate, Hydrate: map[bool]string{false: "no"}[spec.Hydrate],
		},
	}
	if u := spec.Use; u != nil {
		v.want.Target, v.want.Bus = u.Target, u.Bus
		v.plugged, v.held, v.arrived, v.hydrated, v.frozen = u.Plugged, u.Held, u.Arrived, u.Hydrated, u.Thaw
	}
	v.epoch, v.snapshots = spec.Epoch, spec.Snapshots
	if in := spec.Incoming; in != nil {
		v.incoming = &incoming{grant: in.Grant, migration: in.Grant, since: time.Now()}
		v.announce()
	}
	v.engine = d.newEngine(v.name)
	d.mu.Lock()
	if c := spec.Client; c != nil {
		if id, err := uuid.Parse(c.UUID); err == nil {
			v.domain = d.domainFor(libvirtx.Domain{Name: c.Domain, UUID: id})
		}
	}
	d.volumes[v.name] = v
	d.mu.Unlock()
	switch {
	case p != nil:
		d.log.Info().Str("volume", v.name).Int("pid", p.PID).Msg("engine adopted")
	case unknown != nil:
		d.log.Error().Err(unknown).Str("volume", v.name).Msg("whether it has an engine is not known")
	default:
		d.log.Warn().Str("volume", v.name).Msg("engine has ended while no daemon was there: starting it again")
	}
	d.tasks.Go(func() { v.engine.run(p, d.starter(v)) })
	if d.config.Peers != nil { // it may be shared with another host, or have come to its end with that
		d.follow(v)
	}
	return nil
}

// recordVersion1 is what the daemon before specs wrote.
type recordVersion1 struct {
	Want libvirtx.Want `json:"want"`
}

func readSpec(path string) (*api.EngineSpec, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var s api.EngineSpec
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, err
	}
	switch s.Version {
	case api.SpecVersion, api.SpecVersion - 1:
	case 1:
		var r recordVersion1
		if err := json.Unmarshal(b, &r); err != nil {
			return nil, err
		}
		w := r.Want
		s = api.EngineSpec{
			Volume: w.Volume, Store: w.Store, Hydrate: w.Hydrate != "no", Rate: w.Rate,
			Use: &api.Use{Target: w.Target, Bus: w.Bus, Plugged: true},
		}
	default:
		return nil, fmt.Errorf("version %d, this program knows %d", s.Version, api.SpecVersion)
	}
	if err := cowfmt.ValidName(s.Volume); err != nil {
		return nil, err
	}
	if filepath.Base(path) != s.Volume+api.SpecSuffix {
		return nil, fmt.Errorf("is of volume %s", s.Volume)
	}
	return &s, nil
}
