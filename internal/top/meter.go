// Package top is the live view of `virt-cow status --watch`: what the volumes do, computed from two looks at the
// engines' counters, as a table for a terminal of any size.
package top

import (
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
)

// Rates is what a volume did between two looks. Nil where that is not known: at the first look, and after its engine
// was started again.
type Rates struct {
	Reads      float64 `json:"reads"`         // requests a second
	Writes     float64 `json:"writes"`        // requests a second
	Flushes    float64 `json:"flushes"`       // requests a second
	ReadBytes  float64 `json:"readBytes"`     // bytes a second
	WriteBytes float64 `json:"writeBytes"`    // bytes a second
	Hydrated   float64 `json:"hydratedBytes"` // bytes a second
	P99        float64 `json:"p99Micros"`     // 99 of 100 requests took no longer, microseconds; 0: none, or not known
	Left       float64 `json:"leftSeconds"`   // until the volume is hydrated at this speed; 0: not known
}

// Meter remembers the last look.
type Meter struct {
	last map[string]look
}

type look struct {
	at    time.Time
	pid   int
	begun int64
	done  int64 // bytes hydrated, -1 if there is no hydration
	speed float64
	io    api.IOCounters
}

// smoothing is the weight of what is new in the speed that the time left is computed with.
const smoothing = 0.3

// Look takes a status that was asked for at this time and returns the rates since the one before, by volume.
func (m *Meter) Look(s *api.DaemonStatus, at time.Time) map[string]*Rates {
	rates, next := map[string]*Rates{}, map[string]look{}
	for _, v := range s.Volumes {
		e := v.Engine
		if e == nil {
			continue
		}
		now := look{at: at, pid: e.PID, begun: e.Started, done: -1, speed: -1, io: e.IO}
		if e.Hydration != nil {
			now.done = e.Hydration.Done
		}
		if was, ok := m.last[v.Volume]; ok && was.pid == now.pid && was.begun == now.begun && at.After(was.at) {
			rates[v.Volume] = between(&was, &now, e.Hydration)
		}
		next[v.Volume] = now
	}
	m.last = next
	return rates
}

func between(was, now *look, h *api.Hydration) *Rates {
	seconds := now.at.Sub(was.at).Seconds()
	per := func(before, after uint64) float64 {
		if after < before {
			return 0
		}
		return float64(after-before) / seconds
	}
	a, b := &was.io, &now.io
	r := &Rates{
		Reads: per(a.Reads, b.Reads), Writes: per(a.Writes, b.Writes), Flushes: per(a.Flushes, b.Flushes),
		ReadBytes: per(a.ReadBytes, b.ReadBytes), WriteBytes: per(a.WriteBytes, b.WriteBytes), Hydrated: per(a.Hydrated, b.Hydrated),
		P99: p99(a.Latency, b.Latency),
	}
	if h == nil || was.done < 0 || now.done < was.done {
		return r
	}
	now.speed = float64(now.done-was.done) / seconds
	if was.speed >= 0 {
		now.speed = smoothing*now.speed + (1-smoothing)*was.speed
	}
	if h.State == api.HydrationRunning && now.speed > 0 && h.Total >= h.Done {
		r.Left = float64(h.Total-h.Done) / now.speed
	}
	return r
}

// p99 is the bound of the bucket in which the 99th of 100 requests between two looks is.
func p99(before, after map[string]*api.Histogram) float64 {
	var counts [api.LatencyBuckets]uint64
	var total uint64
	for kind, h := range after {
		if h == nil {
			continue
		}
		for i, n := range h.Counts {
			if old := before[kind]; old != nil {
				if old.Counts[i] > n {
					return 0
				}
				n -= old.Counts[i]
			}
			counts[i] += n
			total += n
		}
	}
	var sum uint64
	for i, n := range counts {
		if sum += n; total > 0 && sum*100 >= total*99 {
			return float64(uint64(1) << i)
		}
	}
	return 0
}
