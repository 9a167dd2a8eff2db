package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// print writes the report for people: a table for each cell, one for each group of other figures, and how
// we stand against each peer.
func (r *report) print(w io.Writer) {
	r.finish()
	ours := "its default"
	if r.Options.OurChunk > 0 {
		ours = r.Options.OurChunk.String()
	}
	fmt.Fprintf(w, "%d CPUs, Linux %s, master %v, chunk of virt-cow %s, of the peers %v, %v a cell, median of %d\n", r.CPUs,
		r.Kernel, r.Options.Size, ours, r.Options.Chunk, r.Options.Runtime, r.Options.Rounds)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	for _, c := range r.Cells {
		fmt.Fprintf(w, "\n%s\n", c.Name)
		fmt.Fprintln(t, "peer\tIOPS\t±%\tMB/s\tp50 µs\tp99 µs\tflush p99 µs\tCPU µs/req\tIOPS ours/peer\tCPU ours/peer\t")
		for _, p := range c.Peers {
			m := p.Median
			fmt.Fprintf(t, "%s\t%.0f\t%.0f\t%.1f\t%.0f\t%.0f\t%s\t%.1f\t%s\t%s\t\n", p.Peer, m.IOPS, p.Spread, m.MBps,
				m.P50, m.P99, some(m.SyncP99, "%.0f"), m.CPU, some(p.IOPSRatio, "%.2f"), some(p.CPURatio, "%.2f"))
		}
		t.Flush()
	}
	group := ""
	for _, row := range r.Rows {
		if row.Group != group {
			t.Flush()
			group = row.Group
			fmt.Fprintf(w, "\n%s\n", group)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t±%.0f%%\t%s\t  %s\n", row.Name, figure(row.Median), row.Unit, spread(row.Runs),
			some(row.Ratio, row.Of+" %.3f"), row.Note)
	}
	t.Flush()
	if len(r.Standing) > 0 {
		fmt.Fprintln(w)
	}
	for _, s := range r.Standing {
		fmt.Fprintf(w, "ahead of %s in %d of %d cells; twice in %d; less CPU a request in %d\n",
			s.Peer, s.Ahead, s.Cells, s.Twice, s.LessCPU)
	}
}

// some formats a figure that may be missing.
func some(v float64, format string) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf(format, v)
}

// figure shows about three digits.
func figure(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
