package daemon

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/peer"
)

// How often an engine in a hand-over is told what its guest does, unless an event comes first; how often the giver asks
// whether the receiver has the volume open still, once its guest runs on; and how long a receiver whose guest runs waits before
// it asks the giver to stop writing.
const (
	followEvery = 50 * time.Millisecond
	askEvery    = 3 * time.Second
	sealAfter   = time.Second
	jobEvery    = 500 * time.Millisecond // that libvirt is asked whether a guest is being migrated
)

// follow has somebody look after a volume as long as two hosts have it open, and look at once.
func (d *Daemon) follow(v *volume) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if v.look == nil {
		v.look = make(chan struct{}, 1)
		d.tasks.Go(func() { d.followed(v, v.look) })
	}
	select {
	case v.look <- struct{}{}:
	default:
	}
}

// followed tells the engine what libvirt says of the guest, and the other host what only this one knows, until nothing is left
// of the hand-over.
func (d *Daemon) followed(v *volume, look <-chan struct{}) {
	var asked, sealAsked time.Time
	var asking atomic.Bool
	ask := func(question func(*volume, *api.EngineStatus), s *api.EngineStatus) { // beside, since the guest waits for what the engine is told
		if asking.CompareAndSwap(false, true) {
			d.tasks.Go(func() {
				defer asking.Store(false)
				question(v, s)
			})
		}
	}
	var known *api.Handover
	for d.root.Err() == nil {
		s, err := d.tellGuest(v, known)
		if known = nil; err == nil {
			known = s.Handover
		}
		switch {
		case errors.Is(err, errNotServed), err == nil && !s.Divided():
			if d.followedEnough(v, s) {
				return
			}
		case err != nil: // the engine is being started again, or hangs
		case s.Handover.Role == api.RoleGiver && time.Since(asked) > askEvery:
			asked = time.Now()
			ask(d.askReceivers, s)
		case s.Handover.Role == api.RoleReceiver && s.Handover.State == "active" && slices.Contains(mayStopWriting, s.Handover.PeerState) &&
			time.Since(time.UnixMilli(s.Handover.Since)) > sealAfter && time.Since(sealAsked) > sealAfter:
			sealAsked = time.Now()
			ask(d.askSeal, s)
		}
		select {
		case <-d.root.Done():
			return
		case <-look:
		case <-time.After(followEvery):
		}
	}
}

// mayStopWriting is what the slot says of a giver that a receiver waits for: that it stops, hands over, or is proven dead.
var mayStopWriting = []string{"open", "sealed", "reclaim", "yield"}

// given says whether an engine has handed its volume over: what it says of it is the other host's.
func given(s *api.EngineStatus) bool {
	return s.Handover != nil && s.Handover.Role == api.RoleGiver && s.Handover.State == "given"
}

// followedEnough ends the following, unless there is reason for more.
func (d *Daemon) followedEnough(v *volume, s *api.EngineStatus) bool {
	d.mu.Lock()
	if v.engine == nil && v.incoming != nil { // about to be opened
		d.mu.Unlock()
		return false
	}
	if len(v.look) > 0 {
		d.mu.Unlock()
		return false
	}
	v.look = nil
	in, out, m := v.incoming, v.outgoing, v.domain
	came := in != nil && s != nil && s.Owner != nil && s.Owner.Host == d.config.Peers.Self().Host
	if came {
		v.incoming, v.prepared = nil, time.Time{}
	}
	v.outgoing = nil
	d.mu.Unlock()
	if came {
		d.counters.migrationsIn.Add(1)
		d.log.Info().Str("migration", in.migration).Str("volume", v.name).Uint32("epoch", s.Epoch).Str("cache", s.Cache).
			Dur("took", time.Since(in.since)).Msg("this host owns the volume")
		d.noteIfServed(v)
	}
	if out != nil {
		d.log.Info().Str("migration", out.migration).Str("volume", v.name).Str("grant", out.grant.ID).Msg("the grant is over")
	}
	if m != nil {
		m.kick()
	}
	return true
}

var errNotServed = errors.New("not served")

// tellGuest asks libvirt what the guest does and tells the engine. What libvirt does not say is not told. Known is what the
// engine answered last, nil if it is to be asked first: where that is of an earlier turn, what is told does not count, and is
// found out again at once.
func (d *Daemon) tellGuest(v *volume, known *api.Handover) (*api.EngineStatus, error) {
	d.mu.Lock()
	e, m := v.engine, v.domain
	d.mu.Unlock()
	if e == nil {
		return nil, errNotServed
	}
	ctx, cancel := context.WithTimeout(d.root, statusTimeout)
	defer cancel()
	if known != nil {
		s, err := d.tellGuestOf(ctx, v, e, m, *known)
		if err != nil || !s.Divided() || s.Handover != nil && s.Handover.Guest != api.GuestUnknown {
			return s, err
		}
	}
	s, err := e.client.Status(ctx)
	if err != nil || !s.Divided() {
		return s, err
	}
	d.noteShared(v, s)
	var turn api.Handover
	if s.Handover != nil {
		turn = *s.Handover
	}
	return d.tellGuestOf(ctx, v, e, m, turn)
}

func (d *Daemon) tellGuestOf(ctx context.Context, v *volume, e *engine, m *domain, turn api.Handover) (*api.EngineStatus, error) {
	s, err := e.client.Guest(ctx, api.GuestRequest{State: d.guestState(ctx, v, m, turn.Role == api.RoleGiver), Turn: turn.Turn})
	if err == nil && given(s) && m != nil {
		d.gone(v, s)
	}
	return s, err
}

// guestState is what libvirt says of a domain now. Of a giver's it asks for the job too, now and then and only while the guest runs:
// libvirt asks QEMU for that, and a QEMU that hangs in its switch-over, as the migration's network is gone, would have that question
// keep libvirt from cancelling the migration. In between the guest is said to be leaving, on which nothing is decided.
func (d *Daemon) guestState(ctx context.Context, v *volume, m *domain, giver bool) string {
	if m == nil {
		return api.GuestStopped
	}
	c, err := d.libvirt()
	if err != nil {
		return api.GuestUnknown
	}
	state := func() string {
		s, err := c.State(ctx, m.ident())
		switch {
		case errors.Is(err, libvirtx.ErrNoDomain), err == nil && (!s.Active || s.Moving):
			return api.GuestStopped
		case err != nil, s.Ending: // which does not run here for good, and may write still
			return api.GuestUnknown
		}
		return api.GuestRuns
	}
	now := state()
	if now != api.GuestRuns || !giver {
		return now
	}
	d.mu.Lock()
	ask := time.Since(v.jobAsked) >= jobEvery
	if ask {
		v.jobAsked = time.Now()
	}
	d.mu.Unlock()
	if !ask {
		return api.GuestLeaves
	}
	leaving, err := c.Leaving(ctx, m.ident())
	// And once more: a guest that runs after its migration was over has stayed. The other way round it may be gone by now.
	if now = state(); now != api.GuestRuns {
		return now
	}
	switch {
	case err != nil:
		return api.GuestUnknown
	case d.isLeaving(v, leaving):
		return api.GuestLeaves
	}
	return api.GuestRuns
}

// isLeaving takes a domain for one that leaves, too, while its migration was not seen yet: the grant is asked for before the
// domain is sent.
func (d *Daemon) isLeaving(v *volume, seen bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := v.outgoing
	if out == nil {
		return seen
	}
	out.leaving = out.leaving || seen
	return seen || !out.leaving && time.Since(out.since) < incomingFor
}

// gone notes that a volume has another owner by now: its domain is looked at, and its engine has no more to do.
func (d *Daemon) gone(v *volume, s *api.EngineStatus) {
	d.mu.Lock()
	if v.gone {
		d.mu.Unlock()
		return
	}
	out, m := v.outgoing, v.domain
	v.gone, v.state, v.err = true, api.VolumeElsewhere, nil
	d.mu.Unlock()
	d.counters.migrationsOut.Add(1)
	log := d.log.Info().Str("volume", v.name).Str("to", s.Handover.Peer)
	if out != nil {
		log = log.Str("migration", out.migration)
	}
	log.Msg("handed over")
	if m != nil {
		m.kick()
	}
}

// askReceivers asks each host with a grant whether it has the volume open still: one whose daemon died between the grant and the
// opening will never say so by itself.
func (d *Daemon) askReceivers(v *volume, s *api.EngineStatus) {
	for _, g := range s.Grants {
		ctx, cancel := context.WithTimeout(d.root, d.config.PeerTimeout)
		var answer api.PeerOpenAnswer
		err := d.config.Peers.Call(ctx, g.Address, api.PathPeerOpen, api.PeerVolume{Volume: v.name, UUID: s.UUID, Grant: g.ID}, &answer)
		cancel()
		if err != nil || answer.Open || answer.Host != g.Host {
			continue
		}
		why := api.GrantClosed
		if answer.Boot != "" && answer.Boot != g.Boot { // the host itself says that it was rebooted
			why = api.GrantFenced
		}
		if err := d.endGrant(d.root, v, g.ID, why); err != nil {
			d.log.Debug().Err(err).Str("volume", v.name).Str("grant", g.ID).Msg("grant is not over yet")
		}
	}
}

// askSeal asks the giver to look at its guest.
func (d *Daemon) askSeal(v *volume, s *api.EngineStatus) {
	d.mu.Lock()
	in := v.incoming
	d.mu.Unlock()
	if in == nil {
		return
	}
	ctx, cancel := context.WithTimeout(d.root, d.config.PeerTimeout)
	defer cancel()
	began := time.Now()
	err := d.config.Peers.Call(ctx, in.owner.Address, api.PathPeerSeal, api.PeerVolume{Volume: v.name, UUID: s.UUID, Grant: in.grant}, nil)
	silent := errors.Is(err, peer.ErrUnreachable)
	d.noteSilent(v, began, silent)
	switch {
	case silent:
		d.proveByFence(v, s)
	case err != nil:
		d.log.Warn().Err(err).Str("volume", v.name).Str("migration", in.migration).Msg("the giver was asked to stop writing")
	}
}

// followShared begins to follow a volume whose engine says that another host has it open: an earlier daemon knew of it.
func (d *Daemon) followShared(v *volume, s *api.EngineStatus) {
	if d.config.Peers == nil || !s.Divided() {
		return
	}
	d.noteShared(v, s)
	d.follow(v)
}

// noteShared takes note of what an engine says of a hand-over, as far as only an earlier daemon knew of it.
func (d *Daemon) noteShared(v *volume, s *api.EngineStatus) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s.Handover != nil && s.Handover.Role == api.RoleReceiver && s.Owner != nil {
		if v.incoming == nil {
			v.incoming = &incoming{grant: s.Handover.Grant, migration: s.Handover.Grant, since: time.UnixMilli(s.Handover.Since)}
		}
		if v.incoming.owner.Host == "" {
			in := *v.incoming // others may be reading it
			in.owner = *s.Owner
			v.incoming = &in
		}
	}
	if len(s.Grants) > 0 && v.outgoing == nil && (s.Handover == nil || s.Handover.Role == api.RoleGiver) {
		g := s.Grants[0]
		v.outgoing = &outgoing{grant: g, migration: g.ID, since: time.Unix(g.Since, 0)}
	}
}

// followDomain has the engines of a domain in a hand-over told at once what it does.
func (d *Daemon) followDomain(x libvirtx.Domain) {
	d.mu.Lock()
	var list []*volume
	for _, v := range d.volumes {
		if v.look != nil && v.domain != nil && v.domain.ident().UUID == x.UUID {
			list = append(list, v)
		}
	}
	d.mu.Unlock()
	for _, v := range list {
		d.follow(v)
	}
}
