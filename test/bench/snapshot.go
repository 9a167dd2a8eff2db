package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
)

// What a guest's writes cost with a snapshot of its disk: none, one that has just been made, one that has all there is to save.
var snapshotStates = []string{"none", "fresh", "steady"}

// snapshotUnit is how much QEMU's backup job copies at least: one write in each of them is as many first writes for it as for us.
const snapshotUnit = 64 << 10

// runSnapshot measures 4k random writes beside snapshots, ours and QEMU's backup job's, on LUNs of their own of the same size: on devices
// in memory, where what a request costs counts, and on the disk of the work folder, where flushes do.
func runSnapshot(ctx context.Context, b *bench, rep *report) error {
	for _, on := range []struct{ name, folder string }{{"in memory", b.shm}, {"on a disk", b.dir}} {
		if err := checkRoom(on.folder, 5*int64(b.o.SnapshotSize)); err != nil {
			return err
		}
		if err := b.besideSnapshots(ctx, rep, on.name, on.folder); err != nil {
			return fmt.Errorf("devices %s: %w", on.name, err)
		}
	}
	return nil
}

// originSide is a peer with its rows.
type originSide struct {
	name string
	originPeer
	rows map[string]*row
}

func (b *bench) besideSnapshots(ctx context.Context, rep *report, where, folder string) (err error) {
	ours, err := newOurOrigin(ctx, b, folder, int64(b.o.SnapshotSize))
	if err != nil {
		return err
	}
	sides := []*originSide{{name: oursName, originPeer: ours}}
	defer func() {
		for _, s := range sides {
			err = errors.Join(err, s.close())
		}
	}()
	if _, err := exec.LookPath("qemu-storage-daemon"); err != nil {
		b.log.Warn().Msg("SKIPPED: QEMU's backup job: no qemu-storage-daemon")
	} else {
		q, err := newQEMUOrigin(ctx, b, folder, int64(b.o.SnapshotSize))
		if err != nil {
			return err
		}
		sides = append(sides, &originSide{name: "qemu", originPeer: q})
	}
	for _, l := range []struct {
		name string
		offs []int64
	}{
		{"one in each 64K", spreads(int64(b.o.SnapshotSize), snapshotUnit)},
		{"all of a part", spreads(min(int64(b.o.SnapshotSize), 64<<20), blockSize)},
	} {
		log := filepath.Join(b.dir, "snapshot.iolog")
		if err := writeLogFile(log, l.offs, 0); err != nil {
			return err
		}
		for _, depth := range []int{1, 16} {
			group := fmt.Sprintf("4k random writes beside a snapshot, %s, depth %d, devices %s", l.name, depth, where)
			for _, s := range sides {
				s.rows = newSnapshotRows(rep, group, s.name)
			}
			for round := range b.o.Rounds {
				for i := range sides { // who comes first changes
					s := sides[(i+round)%len(sides)]
					if err := b.snapshotRound(ctx, s, load{replay: log, depth: depth, runtime: b.o.Runtime}); err != nil {
						return fmt.Errorf("%s: %s: %w", group, s.name, err)
					}
				}
			}
			finishSnapshotRows(sides)
		}
	}
	return nil
}

// snapshotFigures are the rows of one peer in one state.
var snapshotFigures = []struct{ name, unit string }{
	{"IOPS", "IOPS"}, {"p99", "µs"}, {"CPU", "µs/req"}, {"written", "bytes/byte"}, {"flushes", "/req"},
}

func newSnapshotRows(rep *report, group, peer string) map[string]*row {
	rows := map[string]*row{}
	for _, f := range snapshotFigures {
		for _, state := range snapshotStates {
			r := &row{Part: "snapshot", Group: group, Name: peer + " " + state + " " + f.name, Unit: f.unit, Higher: f.name == "IOPS"}
			rows[state+f.name] = r
			rep.rows = append(rep.rows, r)
		}
	}
	return rows
}

// finishSnapshotRows compares with the peer, and our own states with none.
func finishSnapshotRows(sides []*originSide) {
	ours := sides[0].rows
	for _, f := range snapshotFigures {
		for _, state := range snapshotStates {
			if state != "none" {
				ours[state+f.name].pairedWith(ours["none"+f.name], state+"/none")
			}
			for _, s := range sides[1:] {
				s.rows[state+f.name].over(ours[state+f.name])
			}
		}
	}
}

// snapshotRound measures all states once.
func (b *bench) snapshotRound(ctx context.Context, s *originSide, l load) error {
	for _, state := range snapshotStates {
		switch state {
		case "fresh":
			if err := s.snapshot(ctx); err != nil {
				return err
			}
		case "steady":
			if _, err := runFio(ctx, s.at().socket, load{rw: "write", bs: 1 << 20, depth: 4, once: true, flush: true}); err != nil {
				return fmt.Errorf("writing everything: %w", err)
			}
		}
		if err := syncDir(b.dir); err != nil {
			return err
		}
		before, err := s.io()
		if err != nil {
			return err
		}
		m, err := s.at().measure(ctx, l)
		if err != nil {
			return fmt.Errorf("%s: %w", state, err)
		}
		after, err := s.io()
		if err != nil {
			return err
		}
		io := after.since(before, float64(m.Requests))
		for i, v := range []float64{m.IOPS, m.P99, m.CPU, io.written / blockSize, io.flushes} {
			s.rows[state+snapshotFigures[i].name].add(v)
		}
		b.log.Info().Msgf("%s, %s: %.0f IOPS, p99 %.0f µs, %.1f µs of CPU, %.1f bytes a byte, %.2f flushes", s.name, state, m.IOPS, m.P99, m.CPU,
			io.written/blockSize, io.flushes)
	}
	return s.drop(ctx)
}
