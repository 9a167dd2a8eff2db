package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Random writes while the cache is switched: at most so many a second, of chunks that are all first written.
const (
	switchFor  = 3 * time.Second
	switchWait = 1500 * time.Millisecond // from fio's start to the switch
)

var switchLoads = []struct {
	chunk string
	rate  int
}{{"4K", 10000}, {"64K", 2000}}

// runSwitch measures switching the cache off and on again under a guest's writes, all over a large sparse volume: how long
// it takes, and the longest that a write took beside that of the same load without a switch.
func runSwitch(ctx context.Context, b *bench, rep *report) error {
	master, err := b.sparse()
	if err != nil {
		return err
	}
	for _, l := range switchLoads {
		if err := b.switches(ctx, rep, master, l.chunk, l.rate); err != nil {
			return fmt.Errorf("chunk %s: %w", l.chunk, err)
		}
	}
	return nil
}

func (b *bench) switches(ctx context.Context, rep *report, master, chunk string, rate int) (err error) {
	d, err := b.startDevice(ctx, b.dir, b.o.Bin, master, "--chunk", chunk)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	group := fmt.Sprintf("switching the cache of a %v volume, chunk %s, under 4k random writes, depth 16, at most %d/s", b.o.SparseSize, chunk, rate)
	add := func(name, unit string) *row {
		r := &row{Part: "switch", Group: group, Name: name, Unit: unit}
		rep.rows = append(rep.rows, r)
		return r
	}
	type side struct{ took, calm, longest, rate *row }
	var sides [2]side
	for i, to := range []string{"off", "on"} {
		was := []string{"on", "off"}[i]
		sides[i] = side{
			took: add("switching it "+to, "ms"), calm: add("longest write, "+was+" all the time", "ms"),
			longest: add("longest write, switched "+to, "ms"), rate: add("writes, "+was+" all the time", "/s"),
		}
	}
	seed := 0
	for range b.o.Rounds {
		for i, s := range sides {
			for _, change := range []bool{false, true} {
				seed++
				took, m, err := d.switched(ctx, load{rw: "randwrite", bs: blockSize, depth: 16, runtime: switchFor, rate: rate, seed: seed}, change, i == 1)
				if err != nil {
					return err
				}
				if !change {
					s.calm.add(m.Max / 1e3)
					s.rate.add(m.IOPS)
					continue
				}
				s.took.add(milliseconds(took))
				s.longest.add(m.Max / 1e3)
				b.log.Info().Msgf("chunk %s, switched %s in %.1f ms, longest write %.1f ms", chunk, []string{"off", "on"}[i], milliseconds(took), m.Max/1e3)
			}
		}
	}
	for _, s := range sides {
		s.longest.pairedWith(s.calm, "with/without")
	}
	return nil
}

// switched runs a load, and in the middle of it switches the cache if that is wanted.
func (d *device) switched(ctx context.Context, l load, change, on bool) (took time.Duration, m sample, err error) {
	running := make(chan error, 1)
	go func() {
		var err error
		m, err = runFio(ctx, d.socket, l)
		running <- err
	}()
	if change {
		select {
		case err := <-running:
			return 0, m, errors.Join(err, errors.New("the load ended before the switch"))
		case <-time.After(switchWait):
		}
		start := time.Now()
		err = d.switchCache(ctx, on)
		took = time.Since(start)
	}
	return took, m, errors.Join(err, <-running)
}
