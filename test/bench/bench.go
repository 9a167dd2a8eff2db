package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// bench is the work folder and what is in it.
type bench struct {
	o      *options
	log    zerolog.Logger
	dir    string
	shm    string  // on tmpfs, for virt-cow's exception caches
	dirs   int     // made so far
	peers  []*peer // those chosen and present
	master string  // random bytes, o.Size of them
	copy   string  // of the master, for peers that need one
}

func newBench(o *options, log zerolog.Logger) (*bench, error) {
	if _, err := exec.LookPath("fio"); err != nil {
		return nil, fmt.Errorf("nothing can be measured without fio: %w", err)
	}
	abs, err := filepath.Abs(o.Bin)
	if err != nil {
		return nil, err
	}
	o.Bin = abs
	b := &bench{o: o, log: log}
	for _, p := range allPeers() {
		if o.Peers != nil && !o.Peers.MatchString(p.name) {
			continue
		}
		if prog := p.missing(b); prog != "" {
			log.Warn().Msgf("SKIPPED: peer %s: no %s", p.name, prog)
			continue
		}
		b.peers = append(b.peers, p)
	}
	if len(b.peers) == 0 {
		return nil, errors.New("no peer is left to measure")
	}
	if b.dir, err = newWorkDir(o.Dir); err != nil {
		return nil, err
	}
	b.master, b.copy = filepath.Join(b.dir, "master.raw"), filepath.Join(b.dir, "copy.raw")
	if b.ours() != nil {
		if b.shm, err = os.MkdirTemp("/dev/shm", "vcbench-"); err != nil {
			b.close()
			return nil, fmt.Errorf("virt-cow keeps its exception cache on tmpfs: %w", err)
		}
	}
	// The master, its copy, two clones of each peer and a fresh one.
	if err := checkRoom(b.dir, int64(o.Size)*int64(4+2*len(b.peers))); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func (b *bench) close() {
	for _, dir := range []string{b.dir, b.shm} {
		if dir == "" {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			b.log.Error().Err(err).Msgf("left behind: %s", dir)
		}
	}
}

// env is what is added to the environment of servers and commands: virt-cow's run folder, so that nothing is
// left in the machine's own.
func (b *bench) env() []string {
	if b.shm == "" {
		return nil
	}
	return []string{"VIRT_COW_RUN_DIR=" + b.shm}
}

// ours is the peer under test, nil if it does not take part.
func (b *bench) ours() *peer {
	if p := b.peers[0]; p.name == oursName {
		return p
	}
	return nil
}

func (b *bench) newDir() (string, error) {
	b.dirs++
	dir := filepath.Join(b.dir, strconv.Itoa(b.dirs))
	return dir, os.Mkdir(dir, 0o700)
}

// makeMaster makes the master, and its copy if a peer wants one, unless they are there.
func (b *bench) makeMaster(ctx context.Context) error {
	if _, err := os.Stat(b.master); err != nil {
		b.log.Info().Msgf("making a master of %v in %s", b.o.Size, b.dir)
		if err := fill(ctx, b.master, int64(b.o.Size)); err != nil {
			return err
		}
	}
	for _, p := range b.peers {
		if _, err := os.Stat(b.copy); p.copied && err != nil {
			return command(ctx, []string{"cp", "--sparse=never", b.master, b.copy})
		}
	}
	return nil
}

// settle gives every run the same start: nothing left to write out, the master in the page cache. Servers
// have been started before: virt-cow may drop a master from the page cache when it opens it.
func (b *bench) settle(p *peer) error {
	if err := syncDir(b.dir); err != nil {
		return err
	}
	path := b.master
	if p.copied {
		path = b.copy
	}
	if err := warm(path); err != nil {
		return err
	}
	share, err := cached(path)
	if errors.Is(err, unix.ENOSYS) {
		return nil
	}
	if err == nil && share < 0.99 {
		b.log.Warn().Msgf("only %.0f%% of %s fits in the page cache: use a smaller --size", share*100, path)
	}
	return err
}
