package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// report gathers every run. Ratios are ours to the peer's: IOPS above 1 and CPU below 1 are in our favour.
type report struct {
	Started  time.Time         `json:"started"`
	Kernel   string            `json:"kernel"`
	CPUs     int               `json:"cpus"`
	Options  *options          `json:"options"`
	Peers    map[string]string `json:"peers"` // name -> what it is
	Cells    []*cellReport     `json:"cells,omitempty"`
	Rows     []*row            `json:"rows,omitempty"`
	Standing []standing        `json:"summary,omitempty"`

	order []*peer
	rows  []*row
}

// cellReport is one cell with the figures of each peer.
type cellReport struct {
	Name  string        `json:"name"`
	Peers []*peerReport `json:"peers"`
}

// peerReport is one peer's figures in one cell.
type peerReport struct {
	Peer      string   `json:"peer"`
	Median    sample   `json:"median"`
	Spread    float64  `json:"iopsSpreadPercent"`
	IOPSRatio float64  `json:"oursToPeerIOPS,omitempty"`
	CPURatio  float64  `json:"oursToPeerCPU,omitempty"`
	Runs      []sample `json:"runs"`
}

// standing is how we did against one peer, in number of cells.
type standing struct {
	Peer    string `json:"peer"`
	Cells   int    `json:"cells"`
	Ahead   int    `json:"ahead"`   // more IOPS
	Twice   int    `json:"twice"`   // at least twice the IOPS
	LessCPU int    `json:"lessCPU"` // less CPU a request
}

func newReport(o *options, peers []*peer) *report {
	r := &report{Started: time.Now(), CPUs: runtime.NumCPU(), Options: o, Peers: map[string]string{}, order: peers}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		r.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	for _, p := range peers {
		r.Peers[p.name] = p.title
	}
	return r
}

// addSample notes one run.
func (r *report) addSample(cell, peer string, s sample) {
	var c *cellReport
	if n := len(r.Cells); n > 0 && r.Cells[n-1].Name == cell {
		c = r.Cells[n-1]
	} else {
		c = &cellReport{Name: cell}
		r.Cells = append(r.Cells, c)
	}
	for _, p := range c.Peers {
		if p.Peer == peer {
			p.Runs = append(p.Runs, s)
			return
		}
	}
	c.Peers = append(c.Peers, &peerReport{Peer: peer, Runs: []sample{s}})
}

// finish computes medians, ratios and the summary.
func (r *report) finish() {
	stand := map[string]*standing{}
	for _, c := range r.Cells {
		var ours *peerReport
		for _, p := range c.Peers {
			p.Median = medians(p.Runs)
			iops := make([]float64, len(p.Runs))
			for i, s := range p.Runs {
				iops[i] = s.IOPS
			}
			p.Spread = spread(iops)
			if p.Peer == oursName {
				ours = p
			}
		}
		for _, p := range c.Peers {
			if ours == nil || p == ours {
				continue
			}
			p.IOPSRatio = ratio(ours.Median.IOPS, p.Median.IOPS)
			p.CPURatio = ratio(ours.Median.CPU, p.Median.CPU)
			s := stand[p.Peer]
			if s == nil {
				s = &standing{Peer: p.Peer}
				stand[p.Peer] = s
			}
			s.count(p)
		}
	}
	r.Standing = nil
	for _, p := range r.order {
		if s := stand[p.name]; s != nil {
			r.Standing = append(r.Standing, *s)
		}
	}
	r.Rows = nil
	for _, row := range r.rows {
		if len(row.Runs) > 0 {
			row.Median = row.median()
			r.Rows = append(r.Rows, row)
		}
	}
}

func (s *standing) count(p *peerReport) {
	s.Cells++
	if p.IOPSRatio > 1 {
		s.Ahead++
	}
	if p.IOPSRatio >= 2 {
		s.Twice++
	}
	if p.CPURatio < 1 {
		s.LessCPU++
	}
}

// write stores the whole report as JSON.
func (r *report) write(path string) error {
	r.finish()
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	return nil
}
