//go:build !virtcow_lean

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/virt-cow/virt-cow/internal/backup"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/durable"
	"github.com/virt-cow/virt-cow/internal/store"
)

// Run writes a new file under another name, and gives it its own once it is whole. Of a device that did not become whole the first
// MiB is zeros.
func (c *RestoreDiskCmd) Run(env *Env) error {
	_, err := os.Lstat(c.To)
	there := !errors.Is(err, os.ErrNotExist)
	if there && !c.Force {
		return fmt.Errorf("%s is there already: with --force it is written over, and what it holds is lost", c.To)
	}
	d, err := c.open(env)
	if err != nil {
		return err
	}
	defer d.Close()
	if there {
		err = restoreOver(env, d, c.To)
	} else {
		err = restoreFile(env, d, c.To)
	}
	return errors.Join(err, d.degraded())
}

// partSuffix is what the name of a file ends with that is not whole yet.
const partSuffix = ".part"

// restoreFile makes a file.
func restoreFile(env *Env, d *backupDisk, path string) error {
	part := path + partSuffix
	f, err := createPart(part)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(d.Info().Size), f.Close()); err != nil {
		return errors.Join(err, os.Remove(part))
	}
	to, err := blockdev.OpenFile(env.Context, part, blockdev.FileOptions{Lock: blockdev.LockExclusive})
	if err == nil {
		err = errors.Join(restoreTo(env, d, to, true), to.Close())
	}
	if err != nil {
		return errors.Join(err, os.Remove(part))
	}
	return whole(part, path)
}

// createPart makes a file that only this user may read: a guest's disk is to be in it.
func createPart(part string) (*os.File, error) {
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("%s is there, of a restore that goes on or was cut off: remove it", part)
	}
	return f, err
}

// whole gives a file that is whole its name, unless there is something by now.
func whole(part, path string) error {
	f, err := os.Open(part)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(part, path); err != nil {
		return err
	}
	if err := os.Remove(part); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

// lockPatience is how long a device may be held by somebody who is about to let go of it.
const lockPatience = 2 * time.Second

// restoreOver writes over what is there, if nobody has it open: no engine, no mount, no RAID.
func restoreOver(env *Env, d *backupDisk, path string) error {
	ctx, cancel := context.WithTimeout(env.Context, lockPatience)
	defer cancel()
	to, err := blockdev.OpenFile(ctx, path, blockdev.FileOptions{Direct: true, Lock: blockdev.LockExclusive, Exclusive: true})
	if err != nil {
		return err
	}
	if err := noStore(env, to); err != nil {
		return errors.Join(err, to.Close())
	}
	return errors.Join(restoreTo(env, d, to, false), to.Close())
}

// noStore ends a store that is to be written over, as `store create --force` does: not while a host has it open, or others need it.
func noStore(env *Env, to *blockdev.File) error {
	old, err := store.Open(to)
	if err != nil {
		return nil // none, or none that could be opened by anybody
	}
	if h := old.Header(); h.Role == cowfmt.RoleSnapshot {
		if err := unlisted(env.Context, h, ""); err != nil {
			return fmt.Errorf("%s: %w", to.Info().Name, err)
		}
	}
	return eraseStore(env, old, "")
}

func restoreTo(env *Env, d *backupDisk, to blockdev.Device, empty bool) error {
	size := d.Info().Size
	p := newProgress(env.Stderr, "restore "+to.Info().Name, 0)
	looks := make(chan int64, 1) // the workers tell, one shows
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		for done := range looks {
			if !env.JSON {
				p.step(done, size)
			}
		}
	}()
	err := backup.Restore(env.Context, d, to, empty, func(done int64) {
		select {
		case looks <- done:
		default:
		}
	})
	close(looks)
	<-shown
	if err == nil && !env.JSON {
		p.end(size, size, "done")
	}
	return err
}
