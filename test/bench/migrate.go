package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/test/lab"
)

const (
	movedVolume    = "v1"
	movedMasterMiB = 48
)

// runMigrate measures live migrations between two hosts with real libvirtds: a guest with a volume of ours, and the same
// guest with a plain disk that both hosts see. They move by turns; who does not is paused.
func runMigrate(ctx context.Context, b *bench, rep *report) (err error) {
	if err := lab.Check(); errors.Is(err, lab.ErrMissing) {
		b.log.Warn().Msgf("SKIPPED: part migrate: %v", err)
		return nil
	}
	log := &said{}
	s, err := newMoveSite(ctx, b, log)
	if err == nil {
		err = s.measure(ctx, b, rep, log)
	}
	if s != nil && s.Site != nil {
		for _, h := range s.Hosts {
			paths, _ := filepath.Glob(filepath.Join(h.Dir, "log", "virt-cow", "*.log"))
			for _, p := range paths {
				text, _ := os.ReadFile(p)
				fmt.Fprintf(log, "== %s %s\n%s", h.Name, filepath.Base(p), text)
			}
		}
		err = errors.Join(err, s.Close())
	}
	path := filepath.Join(filepath.Dir(b.o.JSON), "migrate.log")
	return errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, log.buf.Bytes(), 0o644))
}

// said keeps what the hosts' programs say. Several write at once.
type said struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *said) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// moveSite is two hosts and two guests: one with a plain disk, one with a volume.
type moveSite struct {
	*lab.Site
	vc     [2]*lab.VirtCow
	guests [2]*lab.Guest
	disks  [2]string // as their guests have them
}

var movers = [2]string{"plain disk", "virt-cow"}

func newMoveSite(ctx context.Context, b *bench, log *said) (s *moveSite, err error) {
	s = &moveSite{}
	if s.Site, err = lab.NewSite(ctx, lab.SiteConfig{Host: lab.Config{Log: log, Hook: b.o.Bin}}); err != nil {
		return s, err
	}
	raw := filepath.Join(s.Dir, "master.raw")
	if err := lab.MakeMaster(ctx, raw, movedMasterMiB, map[string][]byte{"data": bytes.Repeat([]byte("master data\n"), 1<<20)}); err != nil {
		return s, err
	}
	master, err := s.NewDisk(lab.DiskConfig{Name: "master", File: raw, ReadOnly: true})
	if err != nil {
		return s, err
	}
	plain, err := s.NewDisk(lab.DiskConfig{Name: "plain", Size: movedMasterMiB << 20})
	if err != nil {
		return s, err
	}
	store, err := s.NewDisk(lab.DiskConfig{Name: movedVolume, Size: (movedMasterMiB + 16) << 20})
	if err != nil {
		return s, err
	}
	for i, h := range s.Hosts {
		if err := os.MkdirAll(h.Path("/etc/virt-cow"), 0o755); err != nil {
			return s, err
		}
		text := fmt.Sprintf("[migration]\naddress = \"%s-ctl\"\nhosts = [\"ha-ctl\", \"hb-ctl\"]\n", h.Name)
		if err := os.WriteFile(h.Path("/etc/virt-cow/config.toml"), []byte(text), 0o644); err != nil {
			return s, err
		}
		s.vc[i] = h.VirtCow(b.o.Bin)
	}
	a := s.Hosts[0]
	if _, err := s.vc[0].Run(ctx, "store", "create", "--master", master.Path, "--name", movedVolume, store.Path); err != nil {
		return s, err
	}
	for i, c := range []lab.GuestConfig{
		{Name: "plain", Devices: `<disk type='block' device='disk'><driver name='qemu' type='raw' cache='none' io='native' discard='unmap'/>` +
			`<source dev='` + plain.Path + `'/><target dev='vdb' bus='virtio'/><serial>plain</serial></disk>`},
		{Name: "ours", Metadata: `<virtcow:disks xmlns:virtcow="http://virt-cow.org/xmlns/libvirt/domain/1.0">` +
			`<virtcow:disk volume="` + movedVolume + `" store="` + store.Path + `" target="vdb" bus="virtio" hydrate="no"/></virtcow:disks>`},
	} {
		if s.guests[i], err = a.Define(ctx, c); err != nil {
			return s, err
		}
	}
	for _, vc := range s.vc {
		if _, err := vc.StartDaemon(ctx); err != nil {
			return s, err
		}
	}
	return s, s.boot(ctx, store)
}

// boot starts the guests and what beats in them.
func (s *moveSite) boot(ctx context.Context, store *lab.Disk) error {
	for i, g := range s.guests {
		if err := g.Boot(ctx); err != nil {
			return err
		}
		var disk string
		var err error
		if i == 0 {
			disk, err = g.Disk(ctx, "plain")
		} else if _, err = s.vc[0].Await(ctx, movedVolume, "attached", lab.Attached); err == nil {
			disk, err = s.vc[0].DiskIn(ctx, g, store.Path)
		}
		if err != nil {
			return err
		}
		s.disks[i] = disk
		if err := s.beat(ctx, i); err != nil {
			return err
		}
		if _, err := g.Host().Virsh(ctx, "suspend", g.Name); err != nil {
			return err
		}
	}
	return nil
}

// beat starts what beats in a guest.
func (s *moveSite) beat(ctx context.Context, side int) error {
	// A kernel that meets a lost page must not go on without the thread that met it.
	if _, err := s.guests[side].Run(ctx, "echo 1 >/proc/sys/kernel/panic_on_oops; guest beat "+s.disks[side]+" >/tmp/beat.out 2>&1 &"); err != nil {
		return err
	}
	return s.await(ctx, s.guests[side])
}

// errCrashed says that a guest's kernel crashed, or that its processor does nothing any more. Emulated guests do that now and then
// when they move, also those with plain disks only: perhaps QEMU loses a page of their memory.
var errCrashed = errors.New("the guest crashed")

// await waits for some beats.
func (s *moveSite) await(ctx context.Context, g *lab.Guest) error {
	p, err := feel(g.ConsolePath())
	if err != nil {
		return err
	}
	defer p.stop()
	for deadline := time.Now().Add(startTimeout); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		if p.beats('d') > 20 {
			return nil
		}
		if strings.Contains(g.ConsoleLog(), "Kernel panic") { // it starts again by itself
			return fmt.Errorf("guest %s: its kernel says so: %w", g.Name, errCrashed)
		}
	}
	if p.beats('c') == 0 && ctx.Err() == nil { // what it does without a disk, too
		_, err := g.Host().Virsh(ctx, "reset", g.Name)
		return errors.Join(fmt.Errorf("guest %s: its processor stands still: %w", g.Name, errCrashed), err)
	}
	return errors.Join(fmt.Errorf("guest %s: no heartbeat:\n%s", g.Name, g.ConsoleLog()), ctx.Err())
}

// move is what one migration took, milliseconds: the whole of it, the downtime as libvirt has it, the longest gaps between two of the
// guest's writes, and of its processor.
type move [4]float64

func (s *moveSite) measure(ctx context.Context, b *bench, rep *report, log *said) error {
	group := fmt.Sprintf("live migration of a guest that writes and flushes all the time, %d moves there and back", b.o.Moves)
	var rows [4][2]*row
	for k, title := range []string{"whole migration", "downtime, as libvirt has it", "longest gap between two of the guest's writes", "longest gap of the guest's CPU"} {
		for i, name := range movers {
			rows[k][i] = &row{Part: "migrate", Group: group, Name: title + ", " + name, Unit: "ms"}
			rep.rows = append(rep.rows, rows[k][i])
		}
	}
	crashed := 0
	for n := range b.o.Moves {
		sum, good := [2]move{}, true
		for way := range 2 {
			for turn := range 2 {
				side := (way + turn) % 2 // who begins takes longer, whoever it is: so each does once, and what counts is the mean
				m, err := s.move(ctx, side, s.Hosts[1-way])
				if errors.Is(err, errCrashed) {
					b.log.Warn().Err(err).Msgf("move %d/%d, %s: not counted", n+1, b.o.Moves, movers[side])
					crashed, good = crashed+1, false
					fmt.Fprintf(log, "%s\n", s.guests[side].ConsoleLog())
					if err = s.again(ctx, side); err == nil {
						continue
					}
				}
				if err != nil {
					return fmt.Errorf("move %d, %s: %w", n+1, movers[side], err)
				}
				for k, v := range m {
					sum[side][k] += v
				}
				fmt.Fprintf(log, "%s move %d, %s: %.0f\n", time.Now().UTC().Format("15:04:05.000"), n+1, movers[side], m)
				b.log.Info().Msgf("move %d/%d, %s: whole %.0f ms, downtime %.0f, gap of writes %.0f, of CPU %.0f", n+1, b.o.Moves, movers[side],
					m[0], m[1], m[2], m[3])
			}
		}
		for side, m := range sum {
			if !good {
				break // the other of the pair is alone now
			}
			for k, v := range m {
				rows[k][side].add(v / 2)
			}
		}
	}
	if crashed > 0 {
		b.log.Warn().Msgf("%d moves are not counted: the emulated guest crashed", crashed)
	}
	for k := range rows {
		rows[k][1].pairedWith(rows[k][0], "ours/plain")
	}
	return nil
}

// move moves one guest and pauses it again.
func (s *moveSite) move(ctx context.Context, side int, to *lab.Host) (m move, err error) {
	g := s.guests[side]
	if _, err := g.Host().Virsh(ctx, "resume", g.Name); err != nil {
		return m, err
	}
	if err := s.await(ctx, g); err != nil {
		return m, err
	}
	p, err := feel(g.ConsolePath())
	if err != nil {
		return m, err
	}
	defer p.stop()
	start := time.Now()
	if out, err := g.Migrate(ctx, to); err != nil {
		return m, fmt.Errorf("%w: %s", err, out)
	}
	m[0] = milliseconds(time.Since(start))
	if err := s.await(ctx, g); err != nil {
		return m, err
	}
	p.stop()
	m[2], m[3] = p.gap('d'), p.gap('c')
	info, err := g.JobInfo(ctx, "--completed")
	if err != nil {
		return m, err
	}
	if m[1], err = strconv.ParseFloat(strings.Fields(info["Total downtime"] + " none")[0], 64); err != nil {
		return m, fmt.Errorf("libvirt tells of no downtime: %v", info)
	}
	return m, s.rest(ctx, side)
}

// again has a guest that crashed beat again.
func (s *moveSite) again(ctx context.Context, side int) error {
	if err := s.guests[side].WaitUp(ctx); err != nil {
		return err
	}
	// What the console said of the crash must not be taken for another one.
	if err := os.Truncate(s.guests[side].ConsolePath(), 0); err != nil {
		return err
	}
	if err := s.beat(ctx, side); err != nil {
		return err
	}
	return s.rest(ctx, side)
}

// rest waits until nothing is left of a migration, and pauses the guest.
func (s *moveSite) rest(ctx context.Context, side int) error {
	g := s.guests[side]
	if side == 1 {
		for i, h := range s.Hosts {
			ok, what := settledHere, "owned, with the cache on"
			if h != g.Host() {
				ok, what = func(v *api.VolumeStatus) bool { return v == nil || v.PID == 0 }, "closed"
			}
			if _, err := s.vc[i].Await(ctx, movedVolume, what, ok); err != nil {
				return err
			}
		}
	}
	_, err := g.Host().Virsh(ctx, "suspend", g.Name)
	return err
}

// settledHere accepts a volume that this host owns alone, with the exception cache on.
func settledHere(s *api.VolumeStatus) bool {
	return lab.Attached(s) && s.Engine.Cache == api.CacheOn && len(s.Engine.Grants) == 0 && s.Migration == nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
