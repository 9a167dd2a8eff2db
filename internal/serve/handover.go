package serve

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/handover"
	"github.com/virt-cow/virt-cow/internal/store"
)

// handoverPatience bounds a request of the control API that has to do with a hand-over: whoever asked may be gone, and what was
// begun goes on by itself.
const handoverPatience = 2 * time.Minute

func patient() (context.Context, context.CancelFunc) {
	// Not the request's: half of a switch is not what a client that goes away wants.
	return context.WithTimeout(context.Background(), handoverPatience)
}

func (k *control) cache(w http.ResponseWriter, r *http.Request) {
	var in api.CacheRequest
	if !decode(w, r, &in) {
		return
	}
	mode, ok := map[string]cowfmt.CacheMode{api.CacheOn: cowfmt.CacheOn, api.CacheOff: cowfmt.CacheOff}[in.Mode]
	if !ok {
		refuse(w, fmt.Errorf("cache of %s: mode %q: want %s or %s", k.volume.Info().Name, in.Mode, api.CacheOn, api.CacheOff))
		return
	}
	ctx, cancel := patient()
	defer cancel()
	k.answer(w, k.volume.SetCache(ctx, mode))
}

func (k *control) grant(w http.ResponseWriter, r *http.Request) {
	var in api.GrantRequest
	if !decode(w, r, &in) {
		return
	}
	g := cowfmt.Grant{HostName: in.HostName, Address: in.Address}
	if err := parseUUIDs([]string{in.ID, in.Host, in.Boot}, &g.ID, &g.Host, &g.Boot); err != nil {
		refuse(w, fmt.Errorf("grant %s: id, host and boot: %w", k.volume.Info().Name, err))
		return
	}
	ctx, cancel := patient()
	defer cancel()
	k.answer(w, k.volume.Grant(ctx, g))
}

func parseUUIDs(texts []string, into ...*uuid.UUID) (err error) {
	for i, text := range texts {
		if *into[i], err = uuid.Parse(text); err != nil {
			return fmt.Errorf("%q: %w", text, err)
		}
	}
	return nil
}

func (k *control) endGrant(w http.ResponseWriter, r *http.Request) {
	var in api.GrantEndRequest
	if !decode(w, r, &in) {
		return
	}
	id, err := uuid.Parse(in.ID)
	if err == nil && in.Why != api.GrantClosed && in.Why != api.GrantFenced {
		err = fmt.Errorf("why %q: want %s or %s", in.Why, api.GrantClosed, api.GrantFenced)
	}
	if err != nil {
		refuse(w, fmt.Errorf("end grant of %s: %w", k.volume.Info().Name, err))
		return
	}
	ctx, cancel := patient()
	defer cancel()
	k.answer(w, k.volume.EndGrant(ctx, id, in.Why == api.GrantFenced))
}

var guests = map[string]handover.Guest{
	api.GuestRuns: handover.GuestRuns, api.GuestLeaves: handover.GuestLeaves, api.GuestStopped: handover.GuestStopped, api.GuestUnknown: handover.GuestUnknown,
}

func (k *control) guest(w http.ResponseWriter, r *http.Request) {
	var in api.GuestRequest
	if !decode(w, r, &in) {
		return
	}
	state, ok := guests[in.State]
	if !ok {
		refuse(w, fmt.Errorf("guest of %s: state %q: want %s, %s, %s or %s", k.volume.Info().Name, in.State,
			api.GuestRuns, api.GuestLeaves, api.GuestStopped, api.GuestUnknown))
		return
	}
	k.volume.SetGuest(state, in.Turn, api.GuestFor*time.Second)
	k.answer(w, nil)
}

func (k *control) dead(w http.ResponseWriter, r *http.Request) {
	var in api.DeadOwner
	if !decode(w, r, &in) {
		return
	}
	dead, err := deadOwner(&in)
	if err != nil {
		refuse(w, err)
		return
	}
	ctx, cancel := patient()
	defer cancel()
	k.answer(w, k.volume.PeerDead(ctx, *dead))
}

// deadOwner is the proof as the engine takes it; nil for nil.
func deadOwner(d *api.DeadOwner) (*store.Dead, error) {
	if d == nil {
		return nil, nil
	}
	out := &store.Dead{Epoch: d.Epoch}
	var err error
	if out.Host, err = uuid.Parse(d.Host); err == nil {
		out.Instance, err = uuid.Parse(d.Instance)
	}
	if err != nil {
		return nil, fmt.Errorf("dead owner: host %q, instance %q: %w", d.Host, d.Instance, err)
	}
	return out, nil
}

// handover tells of owner, grants and hand-over.
func (k *control) handover(h *cowfmt.Header, out *api.EngineStatus) {
	if at := k.volume.CacheSince(); !at.IsZero() {
		out.CacheSince = at.Unix()
	}
	if o := h.Owner; o != nil {
		out.Owner = &api.Owner{
			Host: o.Host.String(), Boot: o.Boot.String(), Instance: o.Instance.String(), HostName: o.HostName, Address: o.Address, Since: o.Since,
		}
	}
	for _, g := range h.Grants {
		out.Grants = append(out.Grants, api.Grant{
			ID: g.ID.String(), Host: g.Host.String(), Boot: g.Boot.String(), HostName: g.HostName, Address: g.Address, Since: g.Since,
		})
	}
	m := k.volume.Handover()
	if m == nil {
		return
	}
	guest := api.GuestUnknown
	for name, state := range guests {
		if state == m.Guest {
			guest = name
		}
	}
	out.Handover = &api.Handover{
		Role: m.Role, State: m.State.String(), Since: m.Since.UnixMilli(), Grant: m.Grant.String(), Peer: m.Peer,
		PeerHost: m.PeerHost.String(), PeerState: m.PeerSays(), Guest: guest, Turn: m.Turn, Held: m.Held, Wrote: m.Wrote, Waits: m.Waits,
	}
}
