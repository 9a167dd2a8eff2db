package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"
)

// createRuns is how often a clone is made; idleFor is how long a server idles before its memory is read.
const (
	createRuns = 10
	idleFor    = 5 * time.Second
)

// sparse makes the large empty master of the parts create and idle.
func (b *bench) sparse() (string, error) {
	path := filepath.Join(b.dir, "sparse.raw")
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	return path, errors.Join(f.Truncate(int64(b.o.SparseSize)), f.Close())
}

// runCreate times making a clone of a sparse master, as a whole process; the time of a process that does
// nothing tells how much of it is starting one.
func runCreate(ctx context.Context, b *bench, rep *report) error {
	master, err := b.sparse()
	if err != nil {
		return err
	}
	size := b.o.SparseSize.String()
	group := "create a clone of a sparse " + size + " master"
	start := &row{Part: "create", Group: group, Name: "virt-cow --version (process start alone)", Unit: "ms"}
	rep.rows = append(rep.rows, start)
	rows := map[*peer]*row{}
	for _, p := range b.peers {
		if p.create != nil {
			rows[p] = &row{Part: "create", Group: group, Name: p.name, Unit: "ms"}
			rep.rows = append(rep.rows, rows[p])
		}
	}
	for range createRuns {
		if err := timed(ctx, b, start, []string{b.o.Bin, "--version"}); err != nil {
			return err
		}
		for _, p := range b.peers {
			if rows[p] == nil {
				continue
			}
			dir, err := b.newDir()
			if err == nil {
				err = timed(ctx, b, rows[p], p.create(b, master, dir))
			}
			if err := errors.Join(err, os.RemoveAll(dir)); err != nil {
				return err
			}
		}
	}
	ours := rows[b.ours()]
	rep.rows = append(rep.rows, &row{Part: "create", Group: group, Name: "virt-cow less its process start", Unit: "ms",
		Runs: []float64{ours.median() - start.median()}, Note: "difference of medians"})
	for p, r := range rows {
		if p != b.ours() {
			r.over(ours)
		}
	}
	return nil
}

// timed runs a command and adds its milliseconds to a row.
func timed(ctx context.Context, b *bench, r *row, argv []string) error {
	start := time.Now()
	if err := command(ctx, argv, b.env()...); err != nil {
		return err
	}
	r.add(float64(time.Since(start).Microseconds()) / 1e3)
	return nil
}

// runIdle reads how much memory a server of an untouched clone of a large master holds.
func runIdle(ctx context.Context, b *bench, rep *report) error {
	master, err := b.sparse()
	if err != nil {
		return err
	}
	var ours map[string]*row
	for _, p := range b.peers {
		if p.copied {
			continue
		}
		rows, err := b.idle(ctx, p, master, rep)
		if err != nil {
			return err
		}
		if p == b.ours() {
			ours = rows
			continue
		}
		for name, r := range rows {
			r.over(ours[name])
		}
	}
	return nil
}

func (b *bench) idle(ctx context.Context, p *peer, master string, rep *report) (rows map[string]*row, err error) {
	i, err := b.start(ctx, p, master)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, i.close()) }()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(idleFor):
	}
	m, err := processMemory(i.pid())
	if err != nil {
		return nil, err
	}
	group := "memory of an idle server of a " + b.o.SparseSize.String() + " clone"
	rows = map[string]*row{}
	for _, v := range []struct {
		name string
		kib  int64
	}{{"VmRSS", m["VmRSS"]}, {"Pss", m["Pss"]}, {"private", m.private()}} {
		r := &row{Part: "idle", Group: group, Name: p.name + " " + v.name, Unit: "MiB", Runs: []float64{float64(v.kib) / 1024}}
		rows[v.name] = r
		rep.rows = append(rep.rows, r)
	}
	return rows, nil
}
