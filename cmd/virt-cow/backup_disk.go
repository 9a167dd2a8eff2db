//go:build !virtcow_lean

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"

	"github.com/virt-cow/virt-cow/internal/archive"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/local"
	"github.com/virt-cow/virt-cow/internal/nbd"
	"github.com/virt-cow/virt-cow/internal/restore"
)

// open opens the disk for reading.
func (f *DiskFlags) open(env *Env) (*backupDisk, error) {
	a, err := openArchive(env)
	if err != nil {
		return nil, err
	}
	d, err := openDisk(env, a, f.Backup, f.Disk, f.SkipBad)
	if err != nil {
		return nil, errors.Join(err, a.Close(env.Context))
	}
	d.archive = a
	return d, nil
}

// ReadAt says what to do about damage.
func (d *backupDisk) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.Device.ReadAt(p, off)
	if errors.Is(err, archive.ErrDamaged) {
		err = fmt.Errorf("%w; --skip-bad takes zeros for what is damaged", err)
	}
	if err != nil {
		d.failed.CompareAndSwap(nil, &err)
	}
	return n, err
}

// openDisk opens a disk in an archive that stays open.
func openDisk(env *Env, a *archive.Archive, id, disk string, skipBad bool) (*backupDisk, error) {
	d := &backupDisk{}
	var o archive.DiskOptions
	if skipBad {
		o.SkipBad = func(bad archive.Damage) {
			d.bad++
			fmt.Fprintf(env.Stderr, "%s: zeros instead\n", bad)
		}
	}
	var err error
	d.Device, err = a.OpenDisk(env.Context, id, disk, o)
	return d, err
}

// backupDisk is a disk of a backup.
type backupDisk struct {
	blockdev.Device
	archive *archive.Archive      // closed with it; nil for one that is somebody else's
	bad     int                   // times that zeros were taken for what is damaged
	failed  atomic.Pointer[error] // the first read that did
}

func (d *backupDisk) Close() error {
	if d.archive == nil {
		return d.Device.Close()
	}
	return errors.Join(d.Device.Close(), d.archive.Close(context.Background()))
}

// degraded is the error for a disk that has zeros for what is damaged.
func (d *backupDisk) degraded() error {
	if d.bad == 0 {
		return nil
	}
	return exitError{errors.New("parts of the disk are damaged in the archive: they are zeros now"), exitDegraded}
}

// serve serves the disk on a new unix socket that only this user may use, until the context ends.
func (d *backupDisk) serve(ctx context.Context, env *Env, path string) error {
	b, err := nbd.ReadOnly(d)
	if err != nil {
		return err
	}
	l, err := local.Listen(ctx, path, 0o600, -1)
	if err != nil {
		return err
	}
	s := &nbd.Server{Backend: b, Log: env.Log}
	err = s.Serve(ctx, l)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Run serves until SIGTERM or SIGINT.
func (c *BackupServeCmd) Run(env *Env) error {
	d, err := c.open(env)
	if err != nil {
		return err
	}
	defer d.Close()
	fmt.Fprintf(env.Stderr, "read-only at nbd+unix:///?socket=%s, until Ctrl-C\n", c.Socket)
	if err := d.serve(env.Context, env, c.Socket); err != nil {
		return err
	}
	return d.degraded()
}

// Run writes the image under another name, and gives it its own once it is whole.
func (c *BackupExportCmd) Run(env *Env) error {
	if c.Compress && c.Format != "qcow2" {
		return exitError{errors.New("--compress is for --format qcow2"), exitUsage}
	}
	if _, err := os.Lstat(c.File); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s is there already: give another name, or remove it", c.File)
	}
	d, err := c.open(env)
	if err != nil {
		return err
	}
	defer d.Close()
	if c.Format == "qcow2" {
		err = c.qcow2(env, d)
	} else {
		err = restoreFile(env, d, c.File)
	}
	return errors.Join(err, d.degraded())
}

// qcow2 has qemu-img write the image.
func (c *BackupExportCmd) qcow2(env *Env, d *backupDisk) error {
	dir, err := os.MkdirTemp("", "virt-cow-export-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithCancel(env.Context)
	defer cancel()
	socket := filepath.Join(dir, "nbd")
	served := make(chan error, 1)
	go func() { served <- d.serve(ctx, env, socket) }()
	part := c.File + restore.PartSuffix
	f, err := restore.CreatePart(part) // qemu-img keeps its permissions
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return errors.Join(err, os.Remove(part))
	}
	args := []string{"convert", "--target-is-zero", "-n"}
	create := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", part, fmt.Sprint(d.Info().Size))
	create.Stderr = env.Stderr
	if err := create.Run(); err != nil {
		return errors.Join(fmt.Errorf("qemu-img create: %w", err), os.Remove(part))
	}
	if c.Compress {
		args = append(args, "-c")
	}
	if !env.JSON && isTerminal(env.Stderr) {
		args = append(args, "-p")
	}
	convert := exec.CommandContext(ctx, "qemu-img", append(args, "-f", "raw", "-O", "qcow2", "nbd+unix:///?socket="+socket, part)...)
	convert.Stdout, convert.Stderr = env.Stderr, env.Stderr
	if err := convert.Run(); err != nil {
		if failed := d.failed.Load(); failed != nil { // qemu-img knows only that it failed
			err = *failed
		}
		return errors.Join(fmt.Errorf("qemu-img convert: %w", err), os.Remove(part))
	}
	cancel()
	if err := <-served; err != nil {
		return errors.Join(err, os.Remove(part))
	}
	return restore.Whole(part, c.File)
}
