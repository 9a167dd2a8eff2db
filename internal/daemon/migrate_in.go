package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/peer"
)

// incoming is what is known of a volume that is to come with its domain. The volume's spec has its grant, so that the next
// daemon goes on with it.
type incoming struct {
	grant     string
	migration string
	owner     api.Owner // of whom the grant was asked
	since     time.Time
	silent    time.Time // since when the owner does not answer, though a guest waits for it here; zero: it does
}

// How long a migration waits for the owner's daemon, which may be on its way up again; and how long a volume stays open for a
// domain of which nothing is seen after the hook has let it through. Then another hook has refused it, of which nobody tells.
const (
	grantPatience = 10 * time.Second
	incomingFor   = time.Minute
)

var grantBackoff = libvirtx.Backoff{Min: 100 * time.Millisecond, Max: time.Second}

// receiveAll opens the volumes of a domain that is about to migrate here, all or none: each is granted by its owner first.
// The hook waits, and the guest runs on meanwhile, elsewhere.
func (d *Daemon) receiveAll(ctx context.Context, dom libvirtx.Domain, r api.PrepareRequest) error {
	if d.config.Peers == nil {
		return errors.New("live migration is off here: [migration] listen is empty in the configuration")
	}
	began, id := time.Now(), uuid.NewString()
	log := d.log.With().Str("migration", id).Str("domain", dom.Name).Logger()
	log.Info().Strs("volumes", r.Volumes).Msg("migrating here: asking for the volumes")
	if err := d.mayCome(ctx, dom, r.Volumes); err != nil {
		return err
	}
	errs := make([]error, len(r.Volumes))
	var wg sync.WaitGroup
	for i, name := range r.Volumes {
		disk := api.PrepareDisk{Volume: name}
		if at := slices.IndexFunc(r.Disks, func(x api.PrepareDisk) bool { return x.Volume == name }); at >= 0 {
			disk = r.Disks[at]
		}
		wg.Go(func() { errs[i] = d.receive(ctx, dom, disk, id) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		for _, name := range r.Volumes {
			if v := d.volumeNamed(name); v != nil {
				d.giveBack(context.WithoutCancel(ctx), v, id)
			}
		}
		d.counters.migrationsFailed.Add(1)
		log.Warn().Err(err).Msg("the migration is refused, the guest stays where it is")
		return err
	}
	log.Info().Strs("volumes", r.Volumes).Dur("took", time.Since(began)).Msg("volumes are open beside their owner, the domain may come")
	return nil
}

// mayCome refuses a domain that is here already, as far as volumes of it are: what they have here is its guest's. During this
// hook libvirt may be asked.
func (d *Daemon) mayCome(ctx context.Context, dom libvirtx.Domain, volumes []string) error {
	d.mu.Lock()
	known := slices.ContainsFunc(volumes, func(name string) bool {
		v := d.volumes[name]
		return v != nil && (v.engine != nil || v.incoming != nil || v.arrived || v.gone)
	})
	d.mu.Unlock()
	if !known {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, hereTimeout)
	defer cancel()
	runs, err := d.runs(ctx, dom)
	if err != nil {
		return fmt.Errorf("whether domain %s is here already: %w", dom.Name, err)
	}
	if runs {
		return fmt.Errorf("domain %s is on this host already: if it is left over from a migration that failed, end it here with `virsh destroy`", dom.Name)
	}
	return nil
}

// hereTimeout bounds that question to libvirt: the hook waits.
const hereTimeout = 5 * time.Second

// receive opens one volume beside its owner.
func (d *Daemon) receive(ctx context.Context, dom libvirtx.Domain, disk api.PrepareDisk, migration string) error {
	w, err := d.wantNamed(disk.Volume)
	if err != nil && disk.Store != "" {
		w, err = libvirtx.Want{Volume: disk.Volume, Store: disk.Store}, nil
	}
	if err != nil {
		return fmt.Errorf("%w: this host must see its store: `virt-cow volume scan` there, or `virt-cow volume adopt`", err)
	}
	if v := d.volumeNamed(disk.Volume); v != nil { // of an attempt before
		d.giveBack(ctx, v, "")
	}
	owner, id, err := d.ownerElsewhere(ctx, w, disk)
	if err != nil {
		return err
	}
	if owner == nil {
		d.log.Info().Str("migration", migration).Str("domain", dom.Name).Str("volume", disk.Volume).
			Msg("no host has the volume open, so the domain is off: nothing to be granted")
		return nil
	}
	if err := d.endGiven(ctx, w.Volume, dom, true); err != nil {
		return err
	}
	self := d.config.Peers.Self()
	in := &incoming{grant: uuid.NewString(), migration: migration, owner: *owner, since: time.Now()}
	d.mu.Lock()
	v, err := d.claimLocked(d.domainFor(dom), w, true)
	if err == nil {
		v.incoming, v.uuid, v.state, v.err = in, id, api.VolumeIncoming, nil
		v.announce()
	}
	d.mu.Unlock()
	if err != nil {
		return err
	}
	answer, err := d.askGrant(ctx, v, in, api.PeerGrantRequest{
		Volume: v.name, UUID: id, Domain: dom.UUID.String(), Migration: migration, Grant: api.Grant{
			ID: in.grant, Host: self.Host, Boot: self.Boot, HostName: self.HostName, Address: d.config.Peers.Address(),
		},
	})
	if err != nil {
		return err
	}
	if answer.Off {
		d.mu.Lock()
		if v.incoming == in {
			v.incoming, v.prepared, v.state = nil, time.Time{}, api.VolumeOff
		}
		m := v.domain
		d.mu.Unlock()
		d.forget(m, v)
		d.log.Info().Str("migration", migration).Str("domain", dom.Name).Str("volume", v.name).Str("owner", owner.HostName).
			Msg("the domain is off where its volume is: nothing to be granted")
		return nil
	}
	d.mu.Lock()
	v.frozen = answer.Frozen
	v.want.Target, v.want.Bus, v.want.Rate, v.plugged = answer.Use.Target, answer.Use.Bus, answer.Rate, answer.Use.Plugged
	v.want.Hydrate = hydrateWord(answer.Hydrate)
	d.mu.Unlock()
	if err := d.startVolume(ctx, v); err != nil {
		d.setState(v, api.VolumeFailed, err)
		return aboutVolume(v.name, err)
	}
	d.mu.Lock() // the time it took is the migration's
	v.state = api.VolumeIncoming
	v.announce()
	d.mu.Unlock()
	return nil
}

// ownerElsewhere is the other host that has a volume, and the volume's UUID. nil is nobody, of a store that is the right one by
// its serial: the domain is off (`virsh migrate --offline`). Whatever it is, a start here goes through Prepare.
func (d *Daemon) ownerElsewhere(ctx context.Context, w libvirtx.Want, disk api.PrepareDisk) (*api.Owner, string, error) {
	h, err := d.inventory.Header(ctx, w.Store)
	if err != nil {
		return nil, "", fmt.Errorf("volume %s: this host can't read it: %w", w.Volume, err)
	}
	id, err := uuid.Parse(h.UUID)
	self := d.config.Peers.Self()
	switch {
	case err != nil:
		return nil, "", fmt.Errorf("volume %s: %w", w.Volume, err)
	case h.Name != w.Volume:
		return nil, "", fmt.Errorf("volume %s: the store at %s is volume %s on this host", w.Volume, w.Store, h.Name)
	case disk.Serial != "" && disk.Serial != libvirtx.Serial(id) && disk.Serial != h.UUID:
		return nil, "", fmt.Errorf("volume %s: the store at %s is another one on this host: the guest's disk has serial %s, this would be %s",
			w.Volume, w.Store, disk.Serial, libvirtx.Serial(id))
	case h.Owner == nil && disk.Serial != "":
		return nil, h.UUID, nil
	case h.Owner == nil:
		return nil, "", fmt.Errorf("volume %s: no host has its store at %s open, so it is not what a guest that runs has; "+
			"that of one that is off is known by its serial: give its disk <serial>%s</serial>", w.Volume, w.Store, libvirtx.Serial(id))
	case h.Owner.Host == self.Host:
		return nil, "", fmt.Errorf("volume %s: this host has it open itself (if both hosts have one UUID, give each its own: engine.host_uuid)", w.Volume)
	case h.Owner.Address == "":
		return nil, "", fmt.Errorf("volume %s: its engine on %s does not say where the daemon there answers: set [migration] there, then `virt-cow volume restart %s`",
			w.Volume, h.Owner.HostName, w.Volume)
	}
	return h.Owner, h.UUID, nil
}

// askGrant asks the owner's daemon, again for a while if it is not there.
func (d *Daemon) askGrant(ctx context.Context, v *volume, in *incoming, r api.PeerGrantRequest) (*api.PeerGrantAnswer, error) {
	var wait time.Duration
	for deadline := time.Now().Add(grantPatience); ; {
		var answer api.PeerGrantAnswer
		asking, cancel := context.WithTimeout(ctx, grantTimeout)
		err := d.config.Peers.Call(asking, in.owner.Address, api.PathPeerGrant, r, &answer)
		cancel()
		if err == nil {
			return &answer, nil
		}
		if !errors.Is(err, peer.ErrUnreachable) || time.Now().After(deadline) {
			return nil, fmt.Errorf("volume %s: %s, which has it: %w", v.name, in.owner.HostName, err)
		}
		wait = grantBackoff.Next(wait)
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("volume %s: %s, which has it: %w", v.name, in.owner.HostName, err)
		case <-time.After(wait):
		}
	}
}

// giveBack closes a volume that was opened for a migration, that one if it is named, and tells its owner. One that this host
// owns by now stays.
func (d *Daemon) giveBack(ctx context.Context, v *volume, migration string) {
	d.mu.Lock()
	in, m := v.incoming, v.domain
	if in == nil || migration != "" && in.migration != migration {
		d.mu.Unlock()
		return
	}
	v.prepared = time.Time{}
	d.mu.Unlock()
	if err := d.stopVolume(ctx, v, m, api.VolumeOff); err != nil {
		d.log.Error().Err(err).Str("volume", v.name).Str("migration", in.migration).Msg("can't close a volume that did not come")
		return
	}
	if m != nil {
		m.kick()
	}
}

// closedElsewhere has the owner know, once a volume that did not come is closed here. It sees that in the store too, if the
// engine got as far as to leave its mark there.
func (d *Daemon) closedElsewhere(v *volume, id string, in *incoming) {
	d.tasks.Go(func() {
		var wait time.Duration
		for range 20 {
			r := api.PeerVolume{Volume: v.name, UUID: id, Grant: in.grant}
			asking, cancel := context.WithTimeout(d.root, grantTimeout)
			err := d.config.Peers.Call(asking, in.owner.Address, api.PathPeerClosed, r, nil)
			cancel()
			if err == nil || !errors.Is(err, peer.ErrUnreachable) {
				return // it asks itself, if this was not understood
			}
			wait = connectBackoff.Next(wait)
			select {
			case <-d.root.Done():
				return
			case <-time.After(wait):
			}
		}
	})
}

func hydrateWord(run bool) string {
	if run {
		return ""
	}
	return "no"
}
