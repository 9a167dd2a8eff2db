package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/virt-cow/virt-cow/test/lab"
)

// device is a store on a block device of its own, as a LUN, and its engine. What the store costs is counted there.
type device struct {
	*server
	dir  string
	back string // the file under the device
	loop *os.File
}

// deviceIO is what a block device has done.
type deviceIO struct{ reads, writes, flushes float64 }

// startDevice makes a clone as makeDevice does, and serves it.
func (b *bench) startDevice(ctx context.Context, folder, program, master string, flags ...string) (*device, error) {
	d, err := b.makeDevice(ctx, folder, program, master, flags...)
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(d.dir, "n.sock")
	if d.server, err = startServer(ctx, []string{program, "serve", "--socket", socket, d.loop.Name()}, b.env(), socket); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// makeDevice makes a clone of master on a block device over a file in folder; flags are for `store create`.
func (b *bench) makeDevice(ctx context.Context, folder, program, master string, flags ...string) (d *device, err error) {
	d = &device{}
	if d.dir, err = b.newDir(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
			d = nil
		}
	}()
	st, err := os.Stat(master)
	if err != nil {
		return d, err
	}
	d.back = filepath.Join(folder, "lun-"+filepath.Base(d.dir))
	f, err := os.Create(d.back)
	if err != nil {
		return d, err
	}
	// Room for the header, two tables of a flag a chunk of 4 KiB, and what they are rounded up to.
	if err := errors.Join(f.Truncate(st.Size()+st.Size()/4096/2+64<<20), f.Close()); err != nil {
		return d, err
	}
	if d.loop, err = lab.Loop(d.back); err != nil {
		return d, err
	}
	name := fmt.Sprintf("bench-%d-%s", os.Getpid(), filepath.Base(d.dir))
	argv := append([]string{program, "store", "create", "--master", master, "--name", name}, flags...)
	return d, command(ctx, append(argv, d.loop.Name()), b.env()...)
}

func (d *device) close() error {
	var err error
	if d.server != nil {
		err = d.stop()
	}
	if d.loop != nil {
		err = errors.Join(err, d.loop.Close())
	}
	if d.back != "" {
		err = errors.Join(err, os.Remove(d.back))
	}
	return errors.Join(err, os.RemoveAll(d.dir))
}

// since is what was done from before on, a request.
func (io deviceIO) since(before deviceIO, requests float64) deviceIO {
	return deviceIO{(io.reads - before.reads) / requests, (io.writes - before.writes) / requests, (io.flushes - before.flushes) / requests}
}

// io is what the device has done so far.
func (d *device) io() (deviceIO, error) {
	path := filepath.Join("/sys/block", filepath.Base(d.loop.Name()), "stat")
	text, err := os.ReadFile(path)
	if err != nil {
		return deviceIO{}, err
	}
	return parseStat(path, string(text))
}

// parseStat reads a block device's counters, which Documentation/block/stat.rst of Linux lists.
func parseStat(path, text string) (io deviceIO, err error) {
	f := strings.Fields(text)
	for _, c := range []struct {
		at   int
		into *float64
	}{{0, &io.reads}, {4, &io.writes}, {15, &io.flushes}} {
		if c.at >= len(f) {
			return io, fmt.Errorf("%s: %d figures, no number %d", path, len(f), c.at)
		}
		if *c.into, err = strconv.ParseFloat(f[c.at], 64); err != nil {
			return io, fmt.Errorf("%s: %w", path, err)
		}
	}
	return io, nil
}
