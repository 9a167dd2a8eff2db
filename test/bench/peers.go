package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// peer is a way to have a writable clone of a master.
type peer struct {
	name     string
	title    string
	programs []string // besides fio; "" stands for the virt-cow under test
	// create makes an untouched clone in dir; nil where serving it is enough.
	create func(b *bench, master, dir string) []string
	// serve is the command that serves the clone in dir on socket, in the foreground.
	serve func(b *bench, master, dir, socket string) []string
	// ready, if not nil, is called between create and serve.
	ready func() error
	// copied: the peer works on a full copy of b.master, one for all its servers.
	copied bool
}

const oursName = "virt-cow"

func allPeers() []*peer {
	return []*peer{
		{
			name: oursName, title: "virt-cow clone", programs: []string{""},
			create: func(b *bench, master, dir string) []string { return b.storeCreate(master, dir) },
			serve:  func(b *bench, master, dir, socket string) []string { return b.storeServe(dir, socket) },
		},
		qemuNBD("qemu-none", "none"),
		qemuNBD("qemu-writeback", "writeback"),
		{
			name: "nbdkit-cow", title: "nbdkit --filter=cow file (its FLUSH does nothing)", programs: []string{"nbdkit"},
			serve: func(b *bench, master, dir, socket string) []string {
				return []string{"nbdkit", "-f", "-U", socket, "--filter=cow", "file", master,
					"cow-block-size=" + strconv.FormatInt(int64(b.o.Chunk), 10)}
			},
		},
		{
			name: "nbdkit-file", title: "nbdkit file on a full copy, the floor", programs: []string{"nbdkit"}, copied: true,
			serve: func(b *bench, master, dir, socket string) []string {
				return []string{"nbdkit", "-f", "-U", socket, "file", b.copy}
			},
		},
	}
}

func qemuNBD(name, cache string) *peer {
	return &peer{
		name: name, title: "qemu-nbd, qcow2 overlay, io_uring, cache=" + cache, programs: []string{"qemu-nbd", "qemu-img"},
		create: func(b *bench, master, dir string) []string {
			return []string{"qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", master,
				"-o", fmt.Sprintf("cluster_size=%d", b.o.Chunk), filepath.Join(dir, "overlay.qcow2")}
		},
		serve: func(b *bench, master, dir, socket string) []string {
			return []string{"qemu-nbd", "--persistent", "--socket=" + socket, "--format=qcow2",
				"--cache=" + cache, "--aio=io_uring", filepath.Join(dir, "overlay.qcow2")}
		},
	}
}

// storePath is the store in dir. Volumes are named after it, so that no two have the same.
func storePath(dir string) string {
	return filepath.Join(dir, fmt.Sprintf("bench-%d-%s.store", os.Getpid(), filepath.Base(dir)))
}

func (b *bench) storeCreate(master, dir string) []string {
	argv := []string{b.o.Bin, "store", "create", "--master", master}
	if b.o.OurChunk > 0 {
		argv = append(argv, "--chunk", b.o.OurChunk.String())
	}
	return append(argv, storePath(dir))
}

func (b *bench) storeServe(dir, socket string, flags ...string) []string {
	argv := append([]string{b.o.Bin, "serve", "--socket", socket}, flags...)
	return append(argv, storePath(dir))
}

// missing names the first program the peer lacks on this machine.
func (p *peer) missing(b *bench) string {
	for _, prog := range p.programs {
		if prog == "" {
			prog = b.o.Bin
		}
		if _, err := exec.LookPath(prog); err != nil {
			return prog
		}
	}
	return ""
}

// instance is one clone and its server.
type instance struct {
	peer *peer
	dir  string
	*server
}

// start makes an untouched clone of master and serves it.
func (b *bench) start(ctx context.Context, p *peer, master string) (*instance, error) {
	dir, err := b.newDir()
	if err != nil {
		return nil, err
	}
	if p.create != nil {
		if err := command(ctx, p.create(b, master, dir), b.env()...); err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
	}
	if p.ready != nil {
		if err := p.ready(); err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
	}
	socket := filepath.Join(dir, "n.sock")
	// nbdkit's cow filter keeps its overlay in $TMPDIR: on the same file system as everybody's.
	srv, err := startServer(ctx, p.serve(b, master, dir, socket), append(b.env(), "TMPDIR="+dir), socket)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &instance{peer: p, dir: dir, server: srv}, nil
}

// close stops the server and removes the clone.
func (i *instance) close() error {
	return errors.Join(i.stop(), os.RemoveAll(i.dir))
}

// command runs argv to its end, with env added to ours; what it said is part of the error.
func command(ctx context.Context, argv []string, env ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return nil
}
