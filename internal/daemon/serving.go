package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/inventory"
	"github.com/virt-cow/virt-cow/internal/launch"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/plugin"
)

// starter makes the function that starts a volume's process, or takes the one that runs already.
func (d *Daemon) starter(v *volume) func(context.Context) (*launch.Process, error) {
	return func(ctx context.Context) (*launch.Process, error) {
		spec, err := d.note(v)
		if err != nil {
			return nil, err
		}
		p, err := launch.Adopt(spec.Control)
		if p != nil || err != nil {
			return p, err
		}
		d.mu.Lock()
		v.client = spec.Client
		d.mu.Unlock()
		return d.config.Launcher.Start(ctx, spec, d.specPath(v.name))
	}
}

// errForgotten says that a volume was given up while somebody was about to start it.
var errForgotten = errors.New("it was let go of just now: try again")

// startVolume returns once the volume is served, to the domain that has it.
func (d *Daemon) startVolume(ctx context.Context, v *volume) error {
	v.op.Lock()
	defer v.op.Unlock()
	return d.startLocked(ctx, v)
}

// startLocked is startVolume for one who holds v.op.
func (d *Daemon) startLocked(ctx context.Context, v *volume) error {
	d.mu.Lock()
	if v.engine != nil && v.engine.hasEnded() { // and nobody took note: why it did is no reason not to start another one
		v.engine = nil
	}
	e, w, known := v.engine, v.want, d.volumes[v.name] == v
	fresh := e == nil
	d.mu.Unlock()
	if !known { // nobody would ever stop what is started for it
		return fmt.Errorf("volume %s: %w", v.name, errForgotten)
	}
	if fresh {
		if err := d.mayServe(ctx, w); err != nil {
			return err
		}
		if err := d.comeBy(ctx, v, w); err != nil {
			return err
		}
		d.findSnapshots(ctx, v, w)
		e = d.beginEngine(v)
	}
	if err := e.wait(ctx); err != nil {
		d.dropEnded(v, e)
		return err
	}
	s, err := d.engineStatus(ctx, v)
	switch {
	case err != nil:
		return err
	case s.Volume != w.Volume || s.Store != w.Store:
		return fmt.Errorf("the engine at %s serves volume %s of %s, not %s of %s",
			d.controlPath(w.Volume), s.Volume, s.Store, w.Volume, w.Store)
	}
	d.mu.Lock()
	v.lost = s.Lost
	d.mu.Unlock()
	if done := s.Hydration != nil && s.Hydration.State == api.HydrationDone; fresh && done && s.IO.Hydrated == 0 {
		d.mu.Lock()
		v.hydrated = true // long ago
		d.mu.Unlock()
		d.cutLoose(v)
	}
	if fresh {
		d.takenOver(v)
	}
	d.followShared(v, s)
	return d.introduce(ctx, v, e, s)
}

// beginEngine has a volume looked after by an engine that is not there yet. The caller holds v.op.
func (d *Daemon) beginEngine(v *volume) *engine {
	e := d.newEngine(v.name)
	d.mu.Lock()
	v.engine = e
	d.mu.Unlock()
	d.tasks.Go(func() { e.run(nil, d.starter(v)) })
	return e
}

// mayServe asks the catalogue. That the volume is used is noted by now: if it is being deleted, one of the two sees
// the other. A store that only the metadata of a domain names is taken into the catalogue.
func (d *Daemon) mayServe(ctx context.Context, w libvirtx.Want) error {
	e, err := d.inventory.Lookup(w.Volume)
	switch {
	case errors.Is(err, inventory.ErrNotFound):
		_, err := d.done(plugin.EventCreated)(d.inventory.AdoptNamed(ctx, w.Store, w.Volume))
		return err
	case err != nil:
		return err
	case e.Store != w.Store:
		return fmt.Errorf("volume %s is at %s, says the catalogue, and at %s, says the domain: if it was moved, run `virt-cow volume scan`",
			w.Volume, e.Store, w.Store)
	}
	if clones := d.inventory.Clones(w.Volume); len(clones) > 0 {
		return fmt.Errorf("volume %s is the master of %s and must not change: let them be cut loose first, with `virt-cow hydrate start`",
			w.Volume, strings.Join(clones, ", "))
	}
	return nil
}

// introduce tells an engine whose QEMU it is for, if it does not know.
func (d *Daemon) introduce(ctx context.Context, v *volume, e *engine, s *api.EngineStatus) error {
	d.mu.Lock()
	v.uuid = s.UUID
	moved := false
	if v.incoming == nil && !v.gone && !given(s) { // else it is not what the guest has
		moved = v.arrived && v.epoch != s.Epoch
		v.epoch = s.Epoch
	}
	peer := d.peerOf(v.domain)
	if s.ControlVersion >= 2 {
		v.client = s.Client // it may have been started again by systemd, with a spec of before
	}
	same := peer == nil && v.client == nil || peer != nil && v.client != nil && *peer == *v.client
	d.mu.Unlock()
	if moved { // systemd goes by the spec as it is
		if _, err := d.note(v); err != nil {
			return err
		}
	}
	if same || s.ControlVersion < 2 {
		return nil
	}
	if s.Client != nil && peer != nil && s.Client.UUID != peer.UUID {
		if _, err := d.alone(ctx, v); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	if _, err := e.client.Client(ctx, api.ClientRequest{Client: peer}); err != nil {
		return err
	}
	d.mu.Lock()
	v.client = peer
	d.mu.Unlock()
	_, err := d.note(v)
	return err
}

// aloneWait is how long a guest that is about to get a volume waits for its last client to be gone: that of a QEMU that
// was just ended may still have requests on their way.
const aloneWait = 10 * time.Second

// alone returns once nobody has the volume open: two guests that write to one disk destroy it.
func (d *Daemon) alone(ctx context.Context, v *volume) (*api.EngineStatus, error) {
	for deadline := time.Now().Add(aloneWait); ; {
		s, err := d.engineStatus(ctx, v)
		if err != nil || s.Connections == 0 {
			return s, err
		}
		if time.Now().After(deadline) {
			e := &connectedError{volume: v.name, connections: s.Connections}
			if s.Client != nil {
				e.domain = s.Client.Domain
			}
			return nil, e
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// connectedError says that a volume can't be given to a guest, as somebody has it open.
type connectedError struct {
	volume      string
	connections int
	domain      string // "" if not known
}

func (e *connectedError) Error() string {
	who := "an NBD client"
	if e.domain != "" {
		who = "domain " + e.domain
	}
	return fmt.Sprintf("volume %s: %s has it open (%d connections to its engine), and two that write to one disk destroy it: end that first",
		e.volume, who, e.connections)
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

// stopVolume ends the engine of a volume that domain m has, nil for none, cleanly, if there is one, and leaves the volume
// in this state. A volume that somebody else has by now, or needs, is left as it is.
func (d *Daemon) stopVolume(ctx context.Context, v *volume, m *domain, state string) error {
	v.op.Lock()
	defer v.op.Unlock()
	d.mu.Lock()
	if v.domain != m {
		d.mu.Unlock()
		return nil
	}
	e, needed, in := v.engine, v.needed(), v.incoming
	if needed && in == nil {
		v.state, v.err = state, nil
		if v.held != "" {
			v.state = api.VolumeServed
		}
	}
	d.mu.Unlock()
	if needed {
		return nil
	}
	if e != nil {
		if err := d.mayStop(ctx, v); err != nil {
			return err
		}
		d.setStopping(v)
		if err := d.closeVolume(ctx, v, e); err != nil {
			d.setState(v, api.VolumeFailed, err)
			return err
		}
		d.log.Info().Str("volume", v.name).Msg("engine stopped")
	}
	if err := errors.Join(d.config.Launcher.Gone(ctx, v.name), d.removeSpec(v.name)); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if in != nil && v.incoming != nil && v.incoming.grant == in.grant {
		in, v.incoming = v.incoming, nil // with the owner, if that was found out meanwhile
		d.counters.migrationsFailed.Add(1)
		d.log.Info().Str("migration", in.migration).Str("volume", v.name).Msg("the domain did not come: the volume is closed here")
		d.closedElsewhere(v, v.uuid, in)
	}
	if v.gone && state == api.VolumeOff {
		state = api.VolumeElsewhere
	}
	v.engine, v.client, v.arrived, v.state, v.err = nil, nil, false, state, nil
	v.gone, v.lost, v.epoch, v.outgoing = false, false, 0, nil
	return nil
}

// endGiven ends an engine that has handed its volume over, for a domain whose guest here is gone: it is about to have the volume
// anew, and that engine would refuse all that it asks. So would one that fails for good, and so does any, if void, since another
// host is the owner. What is known of the guest before goes with it.
func (d *Daemon) endGiven(ctx context.Context, name string, dom libvirtx.Domain, void bool) error {
	v := d.volumeNamed(name)
	if v == nil {
		return nil
	}
	v.op.Lock()
	defer v.op.Unlock()
	s, err := d.engineStatus(ctx, v)
	d.mu.Lock()
	e, m := v.engine, v.domain
	over := void || e == nil || v.gone || err == nil && (given(s) || s.Error != "")
	d.mu.Unlock()
	if !over || m != nil && m.ident().UUID != dom.UUID {
		return nil
	}
	if e != nil {
		if err := d.closeVolume(ctx, v, e); err != nil {
			return fmt.Errorf("volume %s: the engine that its guest had here before: %w", name, err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	v.engine, v.client, v.outgoing = nil, nil, nil
	v.arrived, v.gone, v.epoch = false, false, 0
	return nil
}

// mayStop says whether an engine may be asked to end now. One that has granted its volume ends only once it is handed over, or
// the grant is, and one that was granted it and may have written only as its owner: until then the domain is looked at again.
func (d *Daemon) mayStop(ctx context.Context, v *volume) error {
	s, err := d.engineStatus(ctx, v)
	if err != nil || len(s.Grants) == 0 {
		return nil
	}
	if h := s.Handover; h != nil && h.Role == api.RoleReceiver && h.State != "writer" {
		return nil
	}
	d.followShared(v, s)
	return fmt.Errorf("volume %s: %s has it open: %w", v.name, s.Grants[0].HostName, errUnfinished)
}

// stopOrphans ends, once a connection, the engines that no domain has: their domain was stopped, or undefined,
// while no daemon was there. It waits until every domain that libvirt listed was looked at.
func (d *Daemon) stopOrphans(ctx context.Context) {
	d.mu.Lock()
	var orphans []*volume
	if !d.orphansAsked && d.allLooked() {
		d.orphansAsked = true
		for _, v := range d.volumes {
			if v.domain == nil && v.held == "" {
				orphans = append(orphans, v)
			}
		}
	}
	d.mu.Unlock()
	for _, v := range orphans {
		if err := d.stopVolume(ctx, v, nil, api.VolumeDetached); err != nil {
			d.log.Error().Err(err).Str("volume", v.name).Msg("engine that no domain has")
			continue
		}
		d.forget(nil, v)
	}
}

// hasClients says whether anybody is connected to a volume's engine. One that does not answer has none that matters.
func (d *Daemon) hasClients(ctx context.Context, v *volume) bool {
	s, err := d.engineStatus(ctx, v)
	return err == nil && s.Connections > 0
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

// engineStatus asks a volume's engine.
func (d *Daemon) engineStatus(ctx context.Context, v *volume) (*api.EngineStatus, error) {
	d.mu.Lock()
	e := v.engine
	d.mu.Unlock()
	if e == nil {
		return nil, fmt.Errorf("volume %s has no engine", v.name)
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	return e.client.Status(ctx)
}

// statusTimeout bounds what one engine may take to answer: one that hangs must not hide the others.
const statusTimeout = 5 * time.Second
