package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
)

const (
	pollEvery    = 5 * time.Millisecond // how often a hydrating engine is asked: the error of the time measured
	stallTimeout = 60 * time.Second
)

// copier is a way to copy the whole master to a new file, durably.
type copier struct {
	name string
	argv []string // nil: hydration
	sync bool     // the program does not flush, so the copy is flushed after it
}

func (b *bench) copiers(dst string) []copier {
	all := []copier{
		{name: "virt-cow serve --hydrate"},
		{name: "nbdcopy --flush", argv: []string{"nbdcopy", "--flush", b.master, dst}},
		{name: "cp --sparse=never, fsync", argv: []string{"cp", "--sparse=never", b.master, dst}, sync: true},
		{name: "qemu-img convert, fsync", argv: []string{"qemu-img", "convert", "-f", "raw", "-O", "raw", b.master, dst}, sync: true},
	}
	out := all[:1]
	for _, c := range all[1:] {
		if _, err := exec.LookPath(c.argv[0]); err != nil {
			b.log.Warn().Msgf("SKIPPED: hydration beside %s: no such program", c.argv[0])
			continue
		}
		out = append(out, c)
	}
	return out
}

// runHydration compares hydrating a clone nobody uses, from the start of the server until it is cut loose,
// with copying the master to a new file: with the master in the page cache and out of it.
func runHydration(ctx context.Context, b *bench, rep *report) error {
	if err := b.makeMaster(ctx); err != nil {
		return err
	}
	dst := filepath.Join(b.dir, "target.raw")
	copiers := b.copiers(dst)
	for _, state := range []struct {
		name    string
		prepare func(string) error
	}{{"cold", chill}, {"warm", warm}} {
		rows := make([]*row, len(copiers))
		for i, c := range copiers {
			rows[i] = &row{Part: "hydration", Group: fmt.Sprintf("copy %v, master's page cache %s at the start", b.o.Size, state.name),
				Name: c.name, Unit: "MB/s", Higher: true}
		}
		rep.rows = append(rep.rows, rows...)
		for range b.o.Rounds {
			for i, c := range copiers {
				prepare := func() error { return errors.Join(syncDir(b.dir), state.prepare(b.master)) }
				var took time.Duration
				var err error
				if c.argv == nil {
					took, err = b.hydrate(ctx, prepare)
				} else if err = prepare(); err == nil {
					took, err = copyOnce(ctx, c, dst)
				}
				if ctx.Err() != nil {
					return nil
				}
				if err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
				rows[i].add(float64(b.o.Size) / 1e6 / took.Seconds())
				b.log.Info().Msgf("%s, %s: %.2f s", c.name, state.name, took.Seconds())
			}
		}
		for _, r := range rows[1:] {
			r.over(rows[0])
		}
	}
	return nil
}

// copyOnce runs a copy to its end and removes what it made.
func copyOnce(ctx context.Context, c copier, dst string) (time.Duration, error) {
	defer os.Remove(dst)
	start := time.Now()
	if err := command(ctx, c.argv); err != nil {
		return 0, err
	}
	if c.sync {
		f, err := os.OpenFile(dst, os.O_RDWR, 0)
		if err != nil {
			return 0, err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return 0, err
		}
	}
	return time.Since(start), nil
}

// hydrate is the time from starting a server until its clone needs the master no more.
func (b *bench) hydrate(ctx context.Context, prepare func() error) (took time.Duration, err error) {
	flags := []string{"--hydrate"}
	if b.o.HydrateRate != "" {
		flags = append(flags, "--rate", b.o.HydrateRate)
	}
	var start time.Time
	i, err := b.startOurs(ctx, b.master, func() error {
		err := prepare()
		start = time.Now()
		return err
	}, flags...)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, i.close()) }()
	return i.untilHydrated(ctx, start)
}

// untilHydrated waits for the end of a hydration that began at start.
func (s *server) untilHydrated(ctx context.Context, start time.Time) (time.Duration, error) {
	var done int64
	moved := time.Now()
	for {
		st, err := engineStatus(ctx, s.socket)
		switch {
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case err != nil: // the control socket may come after the NBD socket
		case st.Hydration == nil:
			err = errors.New("the engine knows of no hydration")
		case st.Hydration.State == api.HydrationDone:
			return time.Since(start), nil
		case st.Hydration.State == api.HydrationFailed:
			return 0, fmt.Errorf("hydration failed: %s", st.Hydration.Error)
		case st.Hydration.Done != done:
			done, moved = st.Hydration.Done, time.Now()
		default:
			err = fmt.Errorf("hydration is %s at %d of %d bytes", st.Hydration.State, done, st.Hydration.Total)
		}
		if time.Since(moved) > stallTimeout {
			return 0, fmt.Errorf("no progress for %v: %w", stallTimeout, err)
		}
		select {
		case <-s.done:
			return 0, errors.New("the engine ended")
		case <-time.After(pollEvery):
		}
	}
}

// startOurs makes an untouched clone of master, calls before, and serves the clone with flags.
func (b *bench) startOurs(ctx context.Context, master string, before func() error, flags ...string) (*instance, error) {
	p := *b.ours()
	p.serve = func(b *bench, _, dir, socket string) []string { return b.storeServe(dir, socket, flags...) }
	p.ready = before
	return b.start(ctx, &p, master)
}
