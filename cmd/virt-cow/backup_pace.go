package main

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
)

// paceOver is the time that rates are of.
const paceOver = 15 * time.Second

// pace is how fast a job has been lately.
type pace struct{ samples []sample }

// sample is how far a job was. Sizes are bytes.
type sample struct {
	at                  time.Time
	seen, read, written int64
}

// add takes a look at the job into account. One that is not being copied, or went back to its last checkpoint, begins anew.
func (p *pace) add(now time.Time, s *api.JobStatus) {
	next := sample{now, s.Seen, s.Read, s.Written}
	if n := len(p.samples); n > 0 && s.Ended == 0 {
		if last := p.samples[n-1]; s.State != api.JobCopying || next.seen < last.seen || next.read < last.read || next.written < last.written {
			p.samples = nil
		}
	}
	p.samples = append(p.samples, next)
	for len(p.samples) > 2 && now.Sub(p.samples[1].at) >= paceOver { // the first is at least that old
		p.samples = p.samples[1:]
	}
}

// rates are bytes a second.
func (p *pace) rates() (seen, read, written float64) {
	if len(p.samples) < 2 {
		return 0, 0, 0
	}
	a, b := p.samples[0], p.samples[len(p.samples)-1]
	took := max(b.at.Sub(a.at).Seconds(), 0.001)
	return float64(b.seen-a.seen) / took, float64(b.read-a.read) / took, float64(b.written-a.written) / took
}

// jobProgress is what follows from a job's counters. Rates are bytes a second.
type jobProgress struct {
	Percent   float64 `json:"percent"` // of all disks, read or known to be zeros
	ReadRate  int64   `json:"readRate"`
	WriteRate int64   `json:"writeRate"`
	Sparse    float64 `json:"sparsePercent"`
	Reused    float64 `json:"reusedPercent"`
	Fill      float64 `json:"snapshotFillPercent,omitempty"` // of the fullest snapshot's store
	ETA       *int64  `json:"etaSeconds,omitempty"`

	fullest string // its disk; "": not known
}

func (p *pace) progress(s *api.JobStatus) *jobProgress {
	seen, read, written := p.rates()
	of := func(part, whole int64) float64 {
		return math.Round(float64(part)/float64(max(whole, 1))*1e4) / 100
	}
	out := &jobProgress{
		Percent: of(s.Seen, s.Size), ReadRate: int64(read), WriteRate: int64(written), Sparse: of(s.Zero, s.Size), Reused: of(s.Reused, s.Size),
	}
	if left := s.Size - s.Seen; left == 0 || seen >= 1 {
		eta := int64(float64(left) / max(seen, 1))
		out.ETA = &eta
	}
	for _, d := range s.Disks {
		if d.Saved == nil {
			continue
		}
		if fill := of(*d.Saved, d.Size); out.fullest == "" || fill > out.Fill {
			out.Fill, out.fullest = fill, d.Target
		}
	}
	return out
}

// text is a line: what matters most comes first, a narrow terminal cuts off the rest.
//
//	12.3% (1 GiB of 8 GiB) in 3s, ETA 21s, read 340 MiB/s, write 20 MiB/s, snapshot of vda 0.3% full, sparse 10.0%, reused 5.0%
func (p *jobProgress) text(s *api.JobStatus, now time.Time) string {
	eta := "--"
	if p.ETA != nil {
		eta = (time.Duration(*p.ETA) * time.Second).String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%5.1f%% (%s of %s) in %s, ETA %s, read %s/s, write %s/s", p.Percent, formatSize(s.Seen), formatSize(s.Size),
		max(now.Sub(time.Unix(s.Started, 0)), 0).Round(time.Second), eta, formatSize(p.ReadRate), formatSize(p.WriteRate))
	if p.fullest != "" {
		fmt.Fprintf(&b, ", snapshot of %s %.1f%% full", p.fullest, p.Fill)
	}
	fmt.Fprintf(&b, ", sparse %.1f%%, reused %.1f%%", p.Sparse, p.Reused)
	return b.String()
}
