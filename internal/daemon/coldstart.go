package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/peer"
)

// comeBy sees to it that a store can be opened here, before an engine tries: an owner elsewhere that lives is asked to let go of
// it, for one that does not answer there must be a proof of its death. What can't be found out is left to the engine, which
// refuses what it must.
func (d *Daemon) comeBy(ctx context.Context, v *volume, w libvirtx.Want) error {
	d.mu.Lock()
	in, epoch := v.incoming, v.epochOfGuest()
	v.dead = nil
	d.mu.Unlock()
	if d.config.Peers == nil || in != nil {
		return nil
	}
	h, err := d.inventory.Header(ctx, w.Store)
	if err != nil || h.Owner == nil || h.Owner.Host == d.config.Peers.Self().Host {
		return nil
	}
	d.mu.Lock()
	v.uuid = h.UUID
	d.mu.Unlock()
	if epoch != 0 && epoch != h.Epoch {
		return fmt.Errorf("volume %s: %s has had it since the guest here began (epoch %d, the guest's is %d): this guest must not go on, "+
			"end it with `virsh destroy`", w.Volume, h.Owner.HostName, h.Epoch, epoch)
	}
	owner := h.Owner
	if d.proven(v, owner, h.Epoch) && !d.lives(ctx, v, owner) {
		return nil
	}
	since := time.Unix(owner.Since, 0).Format(time.RFC3339)
	if owner.Address == "" {
		return fmt.Errorf("volume %s is open on %s since %s, whose engine does not say where to ask: stop it there; if that host is dead, and only then: virt-cow host fenced %s",
			w.Volume, owner.HostName, since, owner.HostName)
	}
	r := api.PeerReleaseRequest{Volume: w.Volume, UUID: h.UUID, Why: "it is to be served on " + d.config.Peers.Self().HostName}
	proven := func() bool { return d.proven(v, owner, h.Epoch) } // by the operator, meanwhile
	err = d.askRelease(ctx, owner, r, proven)
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, peer.ErrUnreachable):
		return fmt.Errorf("volume %s is open on %s since %s: %w", w.Volume, owner.HostName, since, err)
	case proven():
		return nil
	}
	if ferr := d.fence(ctx, owner, time.Now()); ferr == nil {
		if err := d.prove(v.name, h.UUID, owner, h.Epoch, byFence); err != nil {
			return err
		}
		d.proven(v, owner, h.Epoch)
		return nil
	} else if !errors.Is(ferr, errNoFence) {
		err = errors.Join(err, ferr)
	}
	if d.config.Reservations {
		d.mu.Lock()
		v.dead = &api.DeadOwner{Host: owner.Host, Instance: owner.Instance, Epoch: h.Epoch, By: api.ByReservation}
		d.mu.Unlock()
		d.log.Warn().Str("volume", v.name).Str("host", owner.HostName).Msg("the owner does not answer: its LUN is to shut it out")
		return nil
	}
	return fmt.Errorf("volume %s is open on %s since %s, which does not answer: %w: if that host is dead, and only then: virt-cow host fenced %s",
		w.Volume, owner.HostName, since, err, owner.HostName)
}

// askRelease asks an owner to close a volume. One that would be fenced, or shut out by its LUN, is asked again for a while: its daemon
// may only be on its way up again, and its guests run. It is not asked again once enough is known.
func (d *Daemon) askRelease(ctx context.Context, owner *api.Owner, r api.PeerReleaseRequest, enough func() bool) error {
	var wait time.Duration
	for began := time.Now(); ; {
		asking, cancel := context.WithTimeout(ctx, releaseTimeout)
		err := d.config.Peers.Call(asking, owner.Address, api.PathPeerRelease, r, nil)
		cancel()
		forced := d.config.FenceCommand != "" || d.config.Reservations
		if !errors.Is(err, peer.ErrUnreachable) || !forced || time.Since(began) > fenceAfter || enough() {
			return err
		}
		wait = grantBackoff.Next(wait)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

// lives says whether the very boot of a host that was proven dead answers: it was cut off for a while, and writes by now, perhaps.
// The proof is void then. An operator's word may be long ago; what the host says is of now.
func (d *Daemon) lives(ctx context.Context, v *volume, owner *api.Owner) bool {
	if owner.Address == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, d.config.PeerTimeout)
	defer cancel()
	var hello api.PeerHello
	err := d.config.Peers.Call(ctx, owner.Address, api.PathPeerHello, struct{}{}, &hello)
	if err != nil || hello.Host != owner.Host || hello.Boot != owner.Boot {
		return false
	}
	d.mu.Lock()
	id := v.uuid
	v.dead = nil
	d.mu.Unlock()
	err = os.Remove(d.proofPath(id))
	d.log.Error().AnErr("removal", err).Str("volume", v.name).Str("host", owner.HostName).
		Msg("a host that was proven dead answers, and was not started anew: the proof counts no more")
	return true
}

// releaseTimeout bounds the closing of a volume elsewhere: what its guest wrote last is flushed then.
const releaseTimeout = 30 * time.Second
