package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/virt-cow/virt-cow/internal/api"
)

var (
	epoch   = gauge("volume_epoch", "Epoch of the store's header: it is higher with each owner.", "volume")
	grants  = gauge("volume_grants", "Open grants: other hosts that may have the volume open.", "volume")
	waiting = gauge("volume_waiting", "Whether a hand-over of the volume waits for somebody; virt-cow status says for what.", "volume")

	grantAge      = gauge("volume_grant_age_seconds", "How long the oldest open grant has been open; only while there is one.", "volume")
	waitingTime   = gauge("volume_waiting_seconds", "How long a hand-over that waits has been in the state it waits in; only while it waits.", "volume")
	handoverState = gauge("volume_handover_state", "1 for the state the hand-over is in on this host, 0 for the others; only during one.",
		"volume", "role", "state")
	handoverTime = gauge("volume_handover_state_seconds", "How long the hand-over has been in its state; only during one.", "volume")
	heldRequests = gauge("volume_held_requests", "Requests of the guest that wait for the hand-over; only during one.", "volume")
)

// handoverStates are all values of the labels role and state.
var handoverStates = map[string][]string{
	api.RoleGiver:    {"alone", "open", "sealed", "reclaim", "yield", "kept", "given"},
	api.RoleReceiver: {"idle", "active", "writer", "owner"},
}

// sendHandover shows who else has a volume, and how far it is on its way.
func sendHandover(ch chan<- prometheus.Metric, v *api.VolumeStatus, now time.Time) {
	name, waits, since := label(v.Volume), false, time.Time{}
	if m := v.Migration; m != nil && m.Waits != "" {
		waits, since = true, time.Unix(m.Since, 0)
	}
	if e := v.Engine; e != nil {
		epoch.send(ch, float64(e.Epoch), name)
		sendGrants(ch, name, e.Grants, now)
		if h := e.Handover; h != nil {
			for role, states := range handoverStates {
				for _, state := range states {
					handoverState.send(ch, truth(h.Role == role && h.State == state), name, role, state)
				}
			}
			handoverTime.send(ch, age(time.UnixMilli(h.Since), now), name)
			heldRequests.send(ch, float64(h.Held), name)
			if h.Waits != "" {
				waits, since = true, time.UnixMilli(h.Since)
			}
		}
	}
	waiting.send(ch, truth(waits), name)
	if waits {
		waitingTime.send(ch, age(since, now), name)
	}
}

func sendGrants(ch chan<- prometheus.Metric, name string, open []api.Grant, now time.Time) {
	grants.send(ch, float64(len(open)), name)
	if len(open) == 0 {
		return
	}
	oldest := open[0].Since
	for _, g := range open[1:] {
		oldest = min(oldest, g.Since)
	}
	grantAge.send(ch, age(time.Unix(oldest, 0), now), name)
}

// age is in seconds, and never below zero: the time may be another host's.
func age(since, now time.Time) float64 { return max(0, now.Sub(since).Seconds()) }
