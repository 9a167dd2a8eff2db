package main

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"
)

// Two things are compared while the load goes on: a short while the one, a short while the other, and again. A machine
// that does something else meanwhile does it to both, and what is rare falls out of the median of the pairs' ratios.
const (
	window    = 20 * time.Millisecond // at least
	enough    = 200                   // requests in one, unless they take longer than patience
	patience  = 2 * time.Second
	settleFor = 2 * time.Millisecond // from a switch to the next window
)

// load1 is a fio that runs until it is ended.
type load1 struct {
	cancel  context.CancelFunc
	process *os.Process
	done    chan struct{}
	err     error // once done is closed
}

// startFio starts a load, and returns once fio runs.
func startFio(ctx context.Context, socket string, l load) *load1 {
	f := &load1{done: make(chan struct{})}
	ctx, f.cancel = context.WithCancel(ctx)
	started := make(chan *os.Process, 1)
	l.started = func(p *os.Process) { started <- p }
	l.runtime = time.Hour
	go func() {
		_, f.err = runFio(ctx, socket, l)
		close(f.done)
	}()
	select {
	case f.process = <-started:
	case <-f.done:
	}
	return f
}

func (f *load1) over() bool {
	select {
	case <-f.done:
		return true
	default:
		return false
	}
}

func (f *load1) signal(s syscall.Signal) error {
	if f.over() {
		return f.err
	}
	return f.process.Signal(s)
}

// end ends the load; it is an error if it failed before.
func (f *load1) end() error {
	over := f.over()
	f.cancel()
	<-f.done
	if over {
		return f.err
	}
	return nil
}

// reading is what an engine has done so far.
type reading struct {
	cpu time.Duration
	ops float64
	io  deviceIO
	at  time.Time
}

func (d *device) reading(ctx context.Context) (r reading, err error) {
	s, err := engineStatus(ctx, d.socket)
	if err != nil {
		return r, err
	}
	r.ops, r.at = float64(s.IO.Reads+s.IO.Writes), time.Now()
	if r.cpu, err = cpuTime(d.pid()); err != nil {
		return r, err
	}
	r.io, err = d.io()
	return r, err
}

// measured is one window.
type measured struct {
	cpu, rate float64 // microseconds of CPU a request, requests a second
	io        deviceIO
}

func (d *device) window(ctx context.Context) (m measured, err error) {
	from, err := d.reading(ctx)
	if err != nil {
		return m, err
	}
	to := from
	for to.ops-from.ops < enough && to.at.Sub(from.at) < patience {
		select {
		case <-ctx.Done():
			return m, ctx.Err()
		case <-time.After(window):
		}
		if to, err = d.reading(ctx); err != nil {
			return m, err
		}
	}
	n := to.ops - from.ops
	if n == 0 {
		return m, nil
	}
	return measured{
		cpu: float64((to.cpu - from.cpu).Nanoseconds()) / 1e3 / n, rate: n / to.at.Sub(from.at).Seconds(),
		io: to.io.since(from.io, n),
	}, nil
}

// alternate measures pairs until a load is over or there are enough. Which of a pair comes first changes.
func (b *bench) alternate(ctx context.Context, p *pair, on [2]*device, loads [2]*load1, switchTo func(side int) error) error {
	// The first requests are fio's own, and the guest's that warm up.
	for begun := false; !begun; time.Sleep(settleFor) {
		if begun = true; ctx.Err() != nil {
			return ctx.Err()
		}
		for side, d := range on {
			m, err := d.window(ctx)
			if err != nil {
				return err
			}
			begun = begun && (m.rate > 0 || loads[side].over())
		}
	}
	now := -1
	for i := range b.o.Pairs {
		var pair [2]measured
		for turn := range 2 {
			side := (i + turn) % 2
			if side != now {
				if err := switchTo(side); err != nil {
					return errors.Join(err, loads[side].err)
				}
				time.Sleep(settleFor)
				now = side
			}
			var err error
			if pair[side], err = on[side].window(ctx); err != nil {
				return err
			}
		}
		if loads[0].over() || loads[1].over() {
			break
		}
		if pair[0].rate == 0 || pair[1].rate == 0 {
			continue
		}
		for side, m := range pair {
			p.add(side, m)
		}
	}
	return nil
}

// pair is the figures of two things that are measured by turns.
type pair struct {
	cpu, rate, reads, writes, flushes [2]*row
}

func newPair(rep *report, part, group, one, other string) *pair {
	p := &pair{}
	for _, k := range []struct {
		rows  *[2]*row
		title string
		unit  string
	}{
		{&p.cpu, "CPU a request", "µs"}, {&p.rate, "requests", "/s"}, {&p.reads, "device reads a request", ""},
		{&p.writes, "device writes a request", ""}, {&p.flushes, "device flushes a request", ""},
	} {
		for side, name := range []string{one, other} {
			r := &row{Part: part, Group: group, Name: k.title + ", " + name, Unit: k.unit, Higher: k.unit == "/s"}
			k.rows[side] = r
			rep.rows = append(rep.rows, r)
		}
	}
	return p
}

func (p *pair) add(side int, m measured) {
	p.cpu[side].add(m.cpu)
	p.rate[side].add(m.rate)
	p.reads[side].add(m.io.reads)
	p.writes[side].add(m.io.writes)
	p.flushes[side].add(m.io.flushes)
}

// finish computes the ratios. What is nothing on both sides is dropped, what is next to nothing on one has no ratio.
func (p *pair) finish(of string) {
	for _, rows := range []*[2]*row{&p.cpu, &p.rate, &p.reads, &p.writes, &p.flushes} {
		one, other := rows[0].median(), rows[1].median()
		switch {
		case max(one, other) < 0.005:
			rows[0].Runs, rows[1].Runs = nil, nil
		case one >= 0.005:
			rows[1].pairedWith(rows[0], of)
		}
	}
}
