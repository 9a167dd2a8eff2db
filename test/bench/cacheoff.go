package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"

	"github.com/virt-cow/virt-cow/internal/api"
)

// hotSet is how much of the volume a load stays in, where it does not go over all of it.
const hotSet = 64 << 20

// offCell is one kind of load with the cache on and off by turns, on one engine.
type offCell struct {
	what  string // of a clone in this state
	state string
	rw    string
	span  int64 // bytes
	depth int
}

// runCacheOff measures what the exception cache costs while it is off: the same engine is switched between the two runs
// of a pair. The store is on a block device, so that its I/O is counted where it arrives. That device is in memory: what
// matters is the engine's CPU and how often it goes to the device, and a disk has whims.
func runCacheOff(ctx context.Context, b *bench, rep *report) error {
	if err := errors.Join(b.makeMaster(ctx), checkRoom(b.shm, int64(b.o.Size)*5/4)); err != nil {
		return err
	}
	for _, state := range []string{written, untouched, first} {
		if err := b.cacheOff(ctx, rep, state); err != nil {
			return fmt.Errorf("%s: %w", state, err)
		}
	}
	return nil
}

func offCells(state string, size int64) (out []offCell) {
	loads := map[string][][2]string{
		written:   {{"excepted read", "randread"}, {"rewrite", "randwrite"}},
		untouched: {{"unset read", "randread"}},
		first:     {{"first write", "randwrite"}},
	}
	for _, l := range loads[state] {
		for _, span := range []int64{hotSet, size} {
			for _, depth := range []int{1, 16} {
				out = append(out, offCell{l[0], state, l[1], span, depth})
			}
		}
	}
	return out
}

// cacheOff measures the cells of a clone in one state.
func (b *bench) cacheOff(ctx context.Context, rep *report, state string) (err error) {
	var d *device
	defer func() {
		if d != nil {
			err = errors.Join(err, d.close())
		}
	}()
	for _, c := range offCells(state, int64(b.o.Size)) {
		if d == nil {
			if d, err = b.startDevice(ctx, b.shm, b.o.Bin, b.master, b.chunkFlags()...); err != nil {
				return err
			}
			if state == written {
				if _, err := runFio(ctx, d.socket, load{rw: "write", bs: 1 << 20, depth: 4, once: true, flush: true}); err != nil {
					return fmt.Errorf("filling a clone: %w", err)
				}
			} else if _, err := runFio(ctx, d.socket, load{rw: "write", bs: blockSize, depth: 1, span: blockSize, once: true, flush: true}); err != nil {
				return fmt.Errorf("making the table: %w", err) // a group that was never written is known to be clear
			}
			if err := errors.Join(syncDir(b.dir), warm(b.master)); err != nil {
				return err
			}
		}
		if err := b.offPairs(ctx, rep, d, c); err != nil {
			return err
		}
		if state == first { // each needs a clone of its own
			if err := d.close(); err != nil {
				return err
			}
			d = nil
		}
	}
	return nil
}

func (b *bench) chunkFlags() []string {
	if b.o.OurChunk > 0 {
		return []string{"--chunk", b.o.OurChunk.String()}
	}
	return nil
}

// offPairs measures one cell: fio goes on while the cache is switched.
func (b *bench) offPairs(ctx context.Context, rep *report, d *device, c offCell) error {
	l := load{rw: c.rw, bs: blockSize, depth: c.depth, span: c.span, seed: 1}
	if c.state == first {
		l = load{depth: c.depth, replay: filepath.Join(b.dir, "off.iolog")}
		if err := writeLogFile(l.replay, spreads(c.span, max(int64(b.o.OurChunk), blockSize)), 0); err != nil {
			return err
		}
	}
	group := fmt.Sprintf("cache off: 4k %s of %v, depth %d", c.what, size(c.span), c.depth)
	p := newPair(rep, "cacheoff", group, "on", "off")
	fio := startFio(ctx, d.socket, l)
	err := b.alternate(ctx, p, [2]*device{d, d}, [2]*load1{fio, fio}, func(side int) error { return d.switchCache(ctx, side == 0) })
	if err := errors.Join(err, fio.end()); err != nil {
		return fmt.Errorf("%s: %w", group, err)
	}
	if len(p.cpu[0].Runs) == 0 {
		return fmt.Errorf("%s: the load was over before anything was measured", group)
	}
	p.finish("off/on")
	b.log.Info().Msgf("%s: CPU off/on %.3f, of %d pairs", group, p.cpu[1].Ratio, len(p.cpu[0].Runs))
	return nil
}

func (s *server) switchCache(ctx context.Context, on bool) error {
	mode := api.CacheOff
	if on {
		mode = api.CacheOn
	}
	st, err := api.NewEngine(api.ControlPath(s.socket)).Cache(ctx, api.CacheRequest{Mode: mode})
	if err == nil && st.Cache != mode {
		err = fmt.Errorf("the cache is %s, not %s", st.Cache, mode)
	}
	return err
}

// runBefore compares this virt-cow with another one, on clones that are written: cache on, nobody else
// there, the stores on block devices that other hosts may see.
func runBefore(ctx context.Context, b *bench, rep *report) error {
	if b.o.Before == "" {
		b.log.Warn().Msg("SKIPPED: part before needs --before, another virt-cow to compare with")
		return nil
	}
	old, err := filepath.Abs(b.o.Before)
	if err != nil {
		return err
	}
	if err := errors.Join(b.makeMaster(ctx), checkRoom(b.shm, int64(b.o.Size)*5/2)); err != nil {
		return err
	}
	return b.beforeOn(ctx, rep, old)
}

func (b *bench) beforeOn(ctx context.Context, rep *report, old string) (err error) {
	var sides [2]*device
	defer func() {
		for _, d := range sides {
			if d != nil {
				err = errors.Join(err, d.close())
			}
		}
	}()
	for i, program := range []string{old, b.o.Bin} {
		if sides[i], err = b.startDevice(ctx, b.shm, program, b.master, b.chunkFlags()...); err != nil {
			return err
		}
		if _, err := runFio(ctx, sides[i].socket, load{rw: "write", bs: 1 << 20, depth: 4, once: true, flush: true}); err != nil {
			return fmt.Errorf("filling a clone: %w", err)
		}
	}
	if err := errors.Join(syncDir(b.dir), warm(b.master)); err != nil {
		return err
	}
	for _, rw := range []string{"randread", "randwrite"} {
		for _, depth := range []int{1, 16} {
			if err := b.besideBefore(ctx, rep, sides, load{rw: rw, bs: blockSize, depth: depth, seed: 1}, filepath.Base(old)); err != nil {
				return err
			}
		}
	}
	return nil
}

// besideBefore measures one load: two fios, of which one at a time is let run.
func (b *bench) besideBefore(ctx context.Context, rep *report, sides [2]*device, l load, old string) error {
	group := fmt.Sprintf("beside %s: 4k %s of what is written, depth %d", old, l.rw, l.depth)
	p := newPair(rep, "before", group, "before", "now")
	var fios [2]*load1
	for i, d := range sides {
		fios[i] = startFio(ctx, d.socket, l)
	}
	err := b.alternate(ctx, p, sides, fios, func(side int) error {
		return errors.Join(fios[1-side].signal(syscall.SIGSTOP), fios[side].signal(syscall.SIGCONT))
	})
	for _, f := range fios {
		err = errors.Join(err, f.end())
	}
	if err != nil {
		return fmt.Errorf("%s: %w", group, err)
	}
	p.finish("now/before")
	b.log.Info().Msgf("%s: CPU now/before %.3f", group, p.cpu[1].Ratio)
	return nil
}
