package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
)

// runContention measures what a guest feels of hydration at its default settings: 4k random reads and
// writes of a fresh clone, with and without it.
func runContention(ctx context.Context, b *bench, rep *report) error {
	master := filepath.Join(b.dir, "contention.raw")
	if err := checkRoom(b.dir, 2*int64(b.o.ContentionSize)); err != nil {
		return err
	}
	b.log.Info().Msgf("making a master of %v", b.o.ContentionSize)
	if err := fill(ctx, master, int64(b.o.ContentionSize)); err != nil {
		return err
	}
	defer os.Remove(master)
	for _, rw := range []string{"randread", "randwrite"} {
		for _, depth := range []int{1, 16} {
			if err := b.contend(ctx, rep, master, load{rw: rw, bs: blockSize, depth: depth, runtime: b.o.Runtime}); err != nil {
				return err
			}
		}
	}
	return nil
}

// contend measures one load, by turns without and with hydration.
func (b *bench) contend(ctx context.Context, rep *report, master string, l load) error {
	group := fmt.Sprintf("guest beside hydration: %s 4k qd%d of a %v clone", l.rw, l.depth, b.o.ContentionSize)
	names := []string{"p99 without", "p99 with", "IOPS without", "IOPS with", "hydrated meanwhile"}
	rows := make([]*row, len(names))
	for i, name := range names {
		rows[i] = &row{Part: "hydration", Group: group, Name: name, Unit: "µs"}
		rep.rows = append(rep.rows, rows[i])
	}
	rows[2].Unit, rows[3].Unit, rows[4].Unit = "IOPS", "IOPS", "MB/s"
	rows[2].Higher, rows[3].Higher, rows[4].Higher = true, true, true
	for range b.o.Rounds {
		for with := range 2 {
			s, h, err := b.beside(ctx, master, l, with == 1)
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return fmt.Errorf("%s: %w", group, err)
			}
			b.log.Info().Msgf("%s, hydration %v: p99 %.0f µs", group, with == 1, s.P99)
			rows[with].add(s.P99)
			rows[2+with].add(s.IOPS)
			if with == 0 {
				continue
			}
			if h == nil {
				return fmt.Errorf("%s: the engine knows of no hydration", group)
			}
			rows[4].add(float64(h.Done) / 1e6 / s.Seconds)
			if h.State != api.HydrationRunning {
				rows[1].Note = "hydration " + h.State + " before the load ended: use a larger --contention-size"
			}
		}
	}
	rows[0].under(rows[1])
	rows[2].under(rows[3])
	return nil
}

// beside runs a load on a fresh clone and says how far hydration was at its end. Hydration begins once the
// guest is at work: before that it would copy at full speed.
func (b *bench) beside(ctx context.Context, master string, l load, hydrate bool) (s sample, h *api.Hydration, err error) {
	i, err := b.startOurs(ctx, master, func() error { return errors.Join(syncDir(b.dir), warm(master)) })
	if err != nil {
		return sample{}, nil, err
	}
	defer func() { err = errors.Join(err, i.close()) }()
	started := make(chan error, 1)
	if hydrate {
		go func() { started <- hydrateUnderLoad(ctx, i.socket) }()
	} else {
		started <- nil
	}
	if s, err = i.measure(ctx, l); err != nil {
		return sample{}, nil, err
	}
	st, err := engineStatus(ctx, i.socket)
	if err = errors.Join(err, <-started); err != nil {
		return sample{}, nil, err
	}
	return s, st.Hydration, nil
}

// hydrateUnderLoad waits for the guest's first requests and then starts the background copy.
func hydrateUnderLoad(ctx context.Context, socket string) error {
	for ctx.Err() == nil {
		st, err := engineStatus(ctx, socket)
		if err != nil {
			return err
		}
		if st.IO.Reads+st.IO.Writes > 1000 {
			run := true
			_, err := api.NewEngine(api.ControlPath(socket)).Hydration(ctx, api.HydrationRequest{Run: &run})
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return ctx.Err()
}
