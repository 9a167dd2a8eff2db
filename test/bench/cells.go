package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
)

// A clone's state before a cell.
const (
	untouched = "untouched" // nothing was written yet, and the cell writes nothing
	written   = "written"   // every chunk was written
	first     = "first"     // fresh for each run: the cell writes each chunk for the first time
)

// syncEvery is the number of writes between flushes in the cells that flush.
const syncEvery = 32

// cell is one kind of load on a clone in one state.
type cell struct {
	rw    string
	bs    int
	state string
	sync  bool // flush after every syncEvery writes
	depth int
}

func (c cell) name() string {
	state := c.state
	if c.state == written && (c.rw == "randwrite" || c.rw == "write") {
		state = "rewrite"
	}
	if c.sync {
		state = fmt.Sprintf("fsync%d-%s", syncEvery, state)
	}
	return fmt.Sprintf("%s-%dk-%s-qd%d", c.rw, c.bs>>10, state, c.depth)
}

func selectCells(match *regexp.Regexp) []cell {
	const big = 256 << 10
	var out []cell
	for _, c := range []cell{
		{rw: "randread", bs: blockSize, state: untouched},
		{rw: "randread", bs: blockSize, state: written},
		{rw: "randwrite", bs: blockSize, state: first},
		{rw: "randwrite", bs: blockSize, state: written},
		{rw: "read", bs: big, state: untouched},
		{rw: "read", bs: big, state: written},
		{rw: "write", bs: big, state: first},
		{rw: "randwrite", bs: blockSize, state: first, sync: true},
		{rw: "randwrite", bs: blockSize, state: written, sync: true},
	} {
		for _, c.depth = range []int{1, 16} {
			if match == nil || match.MatchString(c.name()) {
				out = append(out, c)
			}
		}
	}
	return out
}

// load is what fio does in the cell.
func (c cell) load(b *bench) load {
	l := load{rw: c.rw, bs: c.bs, depth: c.depth, runtime: b.o.Runtime, once: c.state == first}
	switch {
	case c.sync:
		l.replay = filepath.Join(b.dir, c.state+"-sync.iolog")
	case c.rw == "randwrite" && c.state == first:
		l.replay = filepath.Join(b.dir, first+".iolog")
	}
	return l
}

// makeLogs writes the I/O logs the cells replay: one block of each chunk, or each block of the disk.
func makeLogs(b *bench) error {
	chunks := spreads(int64(b.o.Size), int64(b.o.Chunk))
	return errors.Join(
		writeLogFile(filepath.Join(b.dir, first+".iolog"), chunks, 0),
		writeLogFile(filepath.Join(b.dir, first+"-sync.iolog"), chunks, syncEvery),
		writeLogFile(filepath.Join(b.dir, written+"-sync.iolog"), spreads(int64(b.o.Size), blockSize), syncEvery),
	)
}

// fleet keeps the servers which outlive a cell: for each peer one of an untouched and one of a written clone.
type fleet struct {
	b    *bench
	live map[string]*instance
}

func (f *fleet) get(ctx context.Context, p *peer, state string) (*instance, error) {
	key := p.name + " " + state
	if i := f.live[key]; i != nil {
		return i, nil
	}
	i, err := f.b.start(ctx, p, f.b.master)
	if err != nil {
		return nil, err
	}
	if state == written {
		_, err := runFio(ctx, i.socket, load{rw: "write", bs: 1 << 20, depth: 4, once: true, flush: true})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("filling a clone: %w", err), i.close())
		}
	}
	if state != first {
		f.live[key] = i
	}
	return i, nil
}

func (f *fleet) close() error {
	var errs []error
	for _, i := range f.live {
		errs = append(errs, i.close())
	}
	return errors.Join(errs...)
}

// runCells measures all peers in all cells: within a cell the peers take turns, round by round.
func runCells(ctx context.Context, b *bench, rep *report) (err error) {
	if err := b.makeMaster(ctx); err != nil {
		return err
	}
	if err := makeLogs(b); err != nil {
		return err
	}
	f := &fleet{b: b, live: map[string]*instance{}}
	defer func() { err = errors.Join(err, f.close()) }()
	var errs []error
	for _, c := range selectCells(b.o.Cells) {
		for round := range b.o.Rounds {
			for _, p := range b.peers {
				s, err := f.measure(ctx, p, c)
				if ctx.Err() != nil {
					return errors.Join(errs...)
				}
				if err != nil {
					err = fmt.Errorf("%s, %s: %w", c.name(), p.name, err)
					b.log.Error().Err(err).Msg("no figure")
					errs = append(errs, err)
					continue
				}
				b.log.Info().Msgf("%s round %d/%d %s: %.0f IOPS", c.name(), round+1, b.o.Rounds, p.name, s.IOPS)
				rep.addSample(c.name(), p.name, s)
			}
		}
	}
	return errors.Join(errs...)
}

// measure runs one cell against one peer once.
func (f *fleet) measure(ctx context.Context, p *peer, c cell) (s sample, err error) {
	i, err := f.get(ctx, p, c.state)
	if err != nil {
		return sample{}, err
	}
	defer func() {
		if c.state == first || err != nil { // a server that failed once is not asked again
			delete(f.live, p.name+" "+c.state)
			err = errors.Join(err, i.close())
		}
	}()
	if err := f.b.settle(p); err != nil {
		return sample{}, err
	}
	return i.measure(ctx, c.load(f.b))
}

// measure runs a load and adds what the server's CPU did meanwhile.
func (s *server) measure(ctx context.Context, l load) (sample, error) {
	before, err := cpuTime(s.pid())
	if err != nil {
		return sample{}, err
	}
	m, err := runFio(ctx, s.socket, l)
	if err != nil {
		return sample{}, err
	}
	after, err := cpuTime(s.pid())
	if err != nil {
		return sample{}, err
	}
	m.CPU = float64((after - before).Nanoseconds()) / 1e3 / float64(m.Requests)
	return m, nil
}
