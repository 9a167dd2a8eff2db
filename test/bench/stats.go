package main

import (
	"fmt"
	"math"
	"slices"
)

// median is the middle value, or the mean of the two middle ones; 0 of none.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

// spread is half the distance from the least to the greatest value, in percent of the median.
func spread(v []float64) float64 {
	m := median(v)
	if m == 0 {
		return 0
	}
	return (slices.Max(v) - slices.Min(v)) / 2 / m * 100
}

// medians takes the median of each figure by itself.
func medians(runs []sample) sample {
	of := func(get func(sample) float64) float64 {
		v := make([]float64, len(runs))
		for i, r := range runs {
			v[i] = get(r)
		}
		return median(v)
	}
	return sample{
		Requests: int64(of(func(s sample) float64 { return float64(s.Requests) })),
		Syncs:    int64(of(func(s sample) float64 { return float64(s.Syncs) })),
		Seconds:  of(func(s sample) float64 { return s.Seconds }),
		IOPS:     of(func(s sample) float64 { return s.IOPS }),
		MBps:     of(func(s sample) float64 { return s.MBps }),
		P50:      of(func(s sample) float64 { return s.P50 }),
		P99:      of(func(s sample) float64 { return s.P99 }),
		Max:      of(func(s sample) float64 { return s.Max }),
		SyncP99:  of(func(s sample) float64 { return s.SyncP99 }),
		CPU:      of(func(s sample) float64 { return s.CPU }),
	}
}

// ratio is a/b, 0 where there is none.
func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// row is one figure outside the cells.
type row struct {
	Part   string    `json:"part"`
	Group  string    `json:"group"`
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Higher bool      `json:"higherIsBetter,omitempty"`
	Runs   []float64 `json:"runs"`
	Median float64   `json:"median"`
	Ratio  float64   `json:"ratio,omitempty"` // of the two medians that ratioOf names
	Of     string    `json:"ratioOf,omitempty"`
	Note   string    `json:"note,omitempty"`
}

func (r *row) add(v float64)   { r.Runs = append(r.Runs, v) }
func (r *row) median() float64 { return median(r.Runs) }

// over notes beside a peer's figure the ratio of ours to it.
func (r *row) over(ours *row) {
	r.Ratio, r.Of = ratio(ours.median(), r.median()), "ours/peer"
}

// pairedWith notes beside a figure the median of its ratios to the one it was measured beside, pair by pair, and how far
// they lie apart.
func (r *row) pairedWith(base *row, of string) {
	n := min(len(r.Runs), len(base.Runs))
	ratios := make([]float64, 0, n)
	for i := range n {
		ratios = append(ratios, ratio(r.Runs[i], base.Runs[i]))
	}
	if n == 0 || base.median() == 0 {
		return
	}
	slices.Sort(ratios)
	r.Ratio, r.Of = median(ratios), of
	// Order statistics: the true median is between these two in 95 of 100 cases.
	off := 0.98 * math.Sqrt(float64(n))
	lo, hi := max(0, int(float64(n)/2-off)), min(n-1, int(float64(n)/2+off))
	r.Note = fmt.Sprintf("95%%: %.3f to %.3f; half of %d pairs: %.3f to %.3f", ratios[lo], ratios[hi], n, ratios[n/4], ratios[(3*n-1)/4])
}

// under notes beside a figure with something the ratio to the one without.
func (r *row) under(with *row) {
	with.Ratio, with.Of = ratio(with.median(), r.median()), "with/without"
}
