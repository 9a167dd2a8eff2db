package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// device is a store on a block device of its own, as a LUN, and its engine. What the store costs is counted there.
type device struct {
	*server
	*lun
	dir string
}

// startDevice makes a clone as makeDevice does, and serves it.
func (b *bench) startDevice(ctx context.Context, folder, program, master string, flags ...string) (*device, error) {
	d, err := b.makeDevice(ctx, folder, program, master, flags...)
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(d.dir, "n.sock")
	if d.server, err = startServer(ctx, []string{program, "serve", "--socket", socket, d.Name()}, b.env(), socket); err != nil {
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
	// Room for the header, two tables of a flag a chunk of 4 KiB, and what they are rounded up to.
	if d.lun, err = newLUN(folder, "lun-"+filepath.Base(d.dir), st.Size()+st.Size()/4096/2+64<<20); err != nil {
		return d, err
	}
	name := fmt.Sprintf("bench-%d-%s", os.Getpid(), filepath.Base(d.dir))
	argv := append([]string{program, "store", "create", "--master", master, "--name", name}, flags...)
	return d, command(ctx, append(argv, d.Name()), b.env()...)
}

func (d *device) close() error {
	var err error
	if d.server != nil {
		err = d.stop()
	}
	if d.lun != nil {
		err = errors.Join(err, d.lun.close())
	}
	return errors.Join(err, os.RemoveAll(d.dir))
}
