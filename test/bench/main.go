// Command bench compares a virt-cow clone with other ways to have one, side by side in one run: the same
// master, the same file system, the same load (fio over a unix socket), one server after the other within
// each cell. "go run ./test/bench --help" lists what can be chosen; bench.json keeps every single run.
//
// Each copies in its own default unit unless --chunk and --our-chunk say otherwise: with a unit of 4 KiB a 4 KiB
// first write copies nothing. What is equal for all: the master's page cache is filled before every cell, the file system is synced
// before every cell, and each peer's clones live on the file system of the master. What is not, because
// users would not have it so: qemu-nbd with cache=none reads the master past the page cache, and nbdkit's
// cow filter answers FLUSH without flushing.
//
// Parts cacheoff, epoch, before, switch and migrate compare virt-cow with itself, or with a plain disk, by turns; their ratios are
// medians of pairs, with the range in which the true one lies.
//
// Parts about backups: snapshot is a guest's 4k random writes beside no, a fresh and a steady snapshot, against QEMU's backup job, with
// the bytes and flushes that reach the devices; dmsnapshot the same against the kernel's, both in one emulated machine; backup is
// the image node against nbdcopy, qemu-img and kopia, with its memory and the engine's CPU; cut is how long a cut holds a guest's I/O.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/test/lab"
)

type options struct {
	Bin            string         `default:"bin/virt-cow" help:"The virt-cow under test."`
	Dir            string         `help:"Where the work folder is made (default: $TMPDIR). A real file system with O_DIRECT." placeholder:"DIR"`
	JSON           string         `name:"json" default:"bench/out/bench.json" help:"Where every run is written."`
	Part           []string       `default:"cells,create,idle,hydration,hook,cacheoff,epoch,switch,migrate,snapshot,dmsnapshot,backup,cut" enum:"cells,create,idle,hydration,hook,cacheoff,epoch,switch,migrate,snapshot,dmsnapshot,backup,cut,before" help:"What to measure: ${enum}."`
	Cells          *regexp.Regexp `help:"Only cells whose name matches." placeholder:"REGEXP"`
	Peers          *regexp.Regexp `help:"Only peers whose name matches." placeholder:"REGEXP"`
	Size           size           `default:"1G" help:"Size of the master."`
	Chunk          size           `default:"64K" help:"Cluster or block of the peers' copy-on-write; the default is theirs too."`
	OurChunk       size           `help:"Chunk of virt-cow's clones (default: virt-cow's own default)." placeholder:"SIZE"`
	Runtime        time.Duration  `default:"5s" help:"Length of a cell; first writes also end with the disk."`
	Rounds         int            `default:"3" help:"Runs of each peer in each cell; medians are reported."`
	BackupSize     size           `default:"1G" help:"Size of the disk of part backup."`
	SnapshotSize   size           `default:"256M" help:"Size of the disk of part snapshot."`
	ContentionSize size           `default:"4G" help:"Size of the master which is hydrated while a guest works."`
	SparseSize     size           `default:"1T" help:"Size of the sparse master of the parts create and idle."`
	HydrateRate    string         `help:"Passed to serve as --rate where hydration's throughput is measured." placeholder:"RATE"`
	Before         string         `help:"Another virt-cow, which part before compares this one with." placeholder:"FILE"`
	Pairs          int            `default:"60" help:"Pairs of short whiles in parts cacheoff and before."`
	Moves          int            `default:"12" help:"Migrations there and back in part migrate."`
	List           bool           `help:"List cells and peers, measure nothing."`
	Quick          bool           `help:"A look, not a measurement: 1 round, 1 s, 256M (512M hydrated while a guest works)."`
}

func (o *options) AfterApply() error {
	if o.Quick {
		o.Size, o.ContentionSize, o.SnapshotSize, o.BackupSize = 256<<20, 512<<20, 64<<20, 256<<20
		o.Runtime, o.Rounds = time.Second, 1
	}
	switch {
	case o.Rounds < 1 || o.Runtime < time.Second:
		return errors.New("--rounds must be at least 1 and --runtime at least 1s")
	case o.Chunk < 4096 || o.Chunk&(o.Chunk-1) != 0:
		return fmt.Errorf("--chunk %v: must be a power of two of at least 4K", o.Chunk)
	case o.OurChunk > o.Chunk:
		return fmt.Errorf("--our-chunk %v is more than --chunk %v: a first write would not hit each chunk once", o.OurChunk, o.Chunk)
	case o.BackupSize%(1<<20) != 0 || o.BackupSize < 16<<20:
		return fmt.Errorf("--backup-size %v: must be whole megabytes, 16M or more", o.BackupSize)
	case o.Size%(1<<20) != 0 || o.Size < 16<<20:
		return fmt.Errorf("--size %v: must be whole megabytes, 16M or more", o.Size)
	}
	return nil
}

func main() {
	lab.Main()
	if os.Getenv(insideRun) != "" {
		if err := inside(os.Args[1:]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	if folder := os.Getenv(kopiaOf); folder != "" {
		if err := kopiaBackup(context.Background(), folder, os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	var o options
	kong.Parse(&o, kong.Name("bench"), kong.Description("Measure virt-cow beside its peers."))
	st, err := os.Stderr.Stat()
	plain := err != nil || st.Mode()&os.ModeCharDevice == 0
	log := zerolog.New(zerolog.ConsoleWriter{Out: os.Stderr, TimeFormat: time.TimeOnly, NoColor: plain}).With().Timestamp().Logger()
	if o.List {
		list(&o)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err = run(ctx, &o, log)
	stop()
	if err != nil {
		log.Error().Err(err).Msg("bench")
		os.Exit(1)
	}
}

func list(o *options) {
	for _, c := range selectCells(o.Cells) {
		fmt.Println("cell", c.name())
	}
	for _, p := range allPeers() {
		fmt.Printf("peer %-14s %s\n", p.name, p.title)
	}
}

// run measures what was asked for and reports it, also when it was interrupted halfway.
func run(ctx context.Context, o *options, log zerolog.Logger) error {
	b, err := newBench(o, log)
	if err != nil {
		return err
	}
	defer b.close()
	rep := newReport(o, b.peers)
	parts := []struct {
		name string
		run  func(context.Context, *bench, *report) error
	}{{"cells", runCells}, {"create", runCreate}, {"idle", runIdle}, {"hydration", runHydration}, {"hydration", runContention}, {"hook", runHook},
		{"cacheoff", runCacheOff}, {"epoch", runEpoch}, {"before", runBefore}, {"switch", runSwitch}, {"migrate", runMigrate}, {"snapshot", runSnapshot},
		{"dmsnapshot", runDMSnapshot}, {"backup", runBackup}, {"cut", runCut}}
	var errs []error
	for _, p := range parts {
		if !slices.Contains(o.Part, p.name) || ctx.Err() != nil {
			continue
		}
		if p.name != "cells" && b.ours() == nil {
			log.Warn().Msgf("SKIPPED: part %s needs %s (and --peers that matches virt-cow)", p.name, o.Bin)
			continue
		}
		if err := p.run(ctx, b, rep); err != nil {
			errs = append(errs, fmt.Errorf("part %s: %w", p.name, err))
		}
	}
	if ctx.Err() != nil {
		errs = append(errs, errors.New("interrupted: what follows is incomplete"))
	}
	rep.print(os.Stdout)
	errs = append(errs, rep.write(o.JSON))
	return errors.Join(errs...)
}
