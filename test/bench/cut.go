package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cut"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

const (
	cutRuns   = 10
	cutDisk   = 64 << 20 // bytes
	cutWrites = 100      // a second and disk, beside the cut
)

// runCut measures how long a cut holds a guest's I/O, by the number of its disks: real engines, the daemon's own way to make a cut,
// without a freeze.
func runCut(ctx context.Context, b *bench, rep *report) error {
	for _, disks := range []int{1, 3, 8} {
		if err := b.cuts(ctx, rep, disks); err != nil {
			return fmt.Errorf("%d disks: %w", disks, err)
		}
	}
	return nil
}

// cutSite is the volumes of a domain, as a cut finds them.
type cutSite struct {
	b     *bench
	disks map[string]*ourOrigin // by the volume's UUID
}

func (b *bench) cuts(ctx context.Context, rep *report, disks int) (err error) {
	s := &cutSite{b, map[string]*ourOrigin{}}
	defer func() {
		for _, o := range s.disks {
			err = errors.Join(err, o.close())
		}
	}()
	for range disks {
		o, err := newOurOrigin(ctx, b, b.dir, cutDisk)
		if err != nil {
			return err
		}
		st, err := o.engine.Status(ctx)
		if err != nil {
			return errors.Join(err, o.close())
		}
		s.disks[st.UUID] = o
	}
	dir, err := b.newDir()
	if err != nil {
		return err
	}
	cutter, err := cut.Open(cut.Config{Dir: dir, Engines: s, Stores: s, Guests: s, Log: zerolog.Nop()})
	if err != nil {
		return err
	}
	for _, load := range []string{"idle", "under writes"} {
		r := &row{Part: "cut", Group: "how long a cut holds the guest's I/O", Name: fmt.Sprintf("%d disks, %s", disks, load), Unit: "ms"}
		rep.rows = append(rep.rows, r)
		end := func() error { return nil }
		if load != "idle" {
			end = s.write(ctx)
		}
		for range cutRuns {
			held, err := s.once(ctx, cutter)
			if err != nil {
				return errors.Join(err, end())
			}
			r.add(float64(held.Microseconds()) / 1e3)
		}
		if err := end(); err != nil {
			return err
		}
		b.log.Info().Msgf("cut of %s: %.2f ms", r.Name, r.median())
	}
	return nil
}

// write begins random writes on all disks, and returns what ends them.
func (s *cutSite) write(ctx context.Context) (end func() error) {
	var loads []*load1
	for _, o := range s.disks {
		loads = append(loads, startFio(ctx, o.socket, load{rw: "randwrite", bs: blockSize, depth: 4, rate: cutWrites, seed: 1}))
	}
	time.Sleep(time.Second) // fio opens its connection
	return func() (err error) {
		for _, l := range loads {
			err = errors.Join(err, l.end())
		}
		return err
	}
}

// once makes a cut, and takes its snapshots away again.
func (s *cutSite) once(ctx context.Context, cutter *cut.Cutter) (time.Duration, error) {
	r := cut.Request{Cut: uuid.NewString(), Domain: libvirtx.Domain{Name: "bench", UUID: uuid.New()}, Quiesce: api.QuiesceOff, Hold: cutDeadline, Waits: func(string) {}}
	for id := range s.disks {
		r.Volumes = append(r.Volumes, cut.Snapshot{Volume: id, Name: "disk-" + id[:8]})
	}
	made, err := cutter.Make(ctx, r)
	if err != nil {
		return 0, err
	}
	for _, v := range made.Snapshots {
		if _, err := s.disks[v.Volume].engine.RemoveSnapshot(ctx, api.SnapshotRequest{UUID: v.Snapshot}); err != nil {
			return 0, err
		}
	}
	return made.Held, cutter.Done(r.Cut)
}

// Hold implements cut.Engines.
func (s *cutSite) Hold(_ context.Context, volume string) (cut.Engine, func(), error) {
	return s.disks[volume].engine, func() {}, nil
}

// Listed implements cut.Engines.
func (s *cutSite) Listed(ctx context.Context, volume, snapshot string) (bool, error) {
	st, err := s.disks[volume].engine.Status(ctx)
	if err != nil {
		return false, err
	}
	return cut.Entry(st, snapshot) != nil, nil
}

// Unlist implements cut.Engines: all volumes are open.
func (s *cutSite) Unlist(_ context.Context, volume, _ string) error {
	return fmt.Errorf("volume %s is open", volume)
}

// Make implements cut.Stores: on the disk's own LUN for it.
func (s *cutSite) Make(ctx context.Context, m cut.Snapshot) (string, error) {
	o := s.disks[m.Volume]
	path := o.kept.Name()
	return path, command(ctx, []string{s.b.o.Bin, "store", "create", "--force", "--snapshot-of", o.state, "--cut", m.Cut, "--uuid", m.Snapshot, path}, s.b.env()...)
}

// Delete implements cut.Stores.
func (s *cutSite) Delete(context.Context, string) error { return nil }

// Running implements cut.Guests: there is none to freeze.
func (s *cutSite) Running(context.Context, libvirtx.Domain) (bool, error) { return false, nil }

// Freeze implements cut.Guests.
func (s *cutSite) Freeze(context.Context, libvirtx.Domain) (int, error) { return 0, cut.ErrNotFrozen }

// Thaw implements cut.Guests.
func (s *cutSite) Thaw(context.Context, libvirtx.Domain) (int, error) { return 0, cut.ErrNotFrozen }
