package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

const (
	commitPairs  = 100
	commitsAtOne = 5 // of one kind
)

// runEpoch measures what it costs a FLUSH that writes a flag to look first whether the store is still this host's: on a device
// that other hosts may see, as it is done, and without. A FLUSH that writes none does not look.
func runEpoch(ctx context.Context, b *bench, rep *report) (err error) {
	master, err := b.sparse()
	if err != nil {
		return err
	}
	for _, on := range []struct{ name, folder string }{{"in memory", b.shm}, {"on a disk", b.dir}} {
		d, err := b.makeDevice(ctx, on.folder, b.o.Bin, master)
		if err == nil {
			err = b.commits(ctx, rep, d, on.name)
		}
		if d != nil {
			err = errors.Join(err, d.close())
		}
		if err != nil {
			return fmt.Errorf("commits %s: %w", on.name, err)
		}
	}
	return nil
}

func (b *bench) commits(ctx context.Context, rep *report, d *device, where string) (err error) {
	dev, err := blockdev.OpenFile(ctx, d.Name(), blockdev.FileOptions{Direct: true, Lock: blockdev.LockExclusive})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	s, err := store.Open(dev)
	if err != nil {
		return err
	}
	me := cowfmt.Owner{Host: uuid.New(), Boot: uuid.New(), Instance: uuid.New(), HostName: "bench"}
	if _, err := s.Acquire(ctx, me, store.Claiming{Shared: true}); err != nil {
		return err
	}
	group := fmt.Sprintf("a FLUSH that writes one flag, store on a shared block device %s", where)
	p := newPair(rep, "epoch", group, "without the epoch check", "with")
	flags := make([]byte, store.LeafFlags)
	for n := range commitPairs + 1 {
		for turn := range 2 {
			side := (n + turn) % 2
			s.SetClaiming(store.Claiming{Shared: side == 1})
			m, err := d.commit(s, dev, flags)
			if err != nil {
				return err
			}
			if n > 0 { // the first makes the table
				p.add(side, m)
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	p.finish("with/without")
	return nil
}

// commit measures some commits of a flag each, with their data.
func (d *device) commit(s *store.Store, dev blockdev.Device, flags []byte) (m measured, err error) {
	before, err := d.io()
	if err != nil {
		return m, err
	}
	cpu, err := cpuTime(os.Getpid())
	if err != nil {
		return m, err
	}
	start := time.Now()
	for range commitsAtOne {
		flags[0]++
		if err := errors.Join(dev.Flush(), s.WriteLeaves([]store.Leaf{{Index: 0, Flags: flags}})); err != nil {
			return m, err
		}
	}
	took := time.Since(start)
	now, err := cpuTime(os.Getpid())
	if err != nil {
		return m, err
	}
	after, err := d.io()
	return measured{
		cpu: float64((now - cpu).Nanoseconds()) / 1e3 / commitsAtOne, rate: commitsAtOne / took.Seconds(),
		io: after.since(before, commitsAtOne),
	}, err
}
