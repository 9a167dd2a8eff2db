//go:build !virtcow_lean

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/virt-cow/virt-cow/internal/backup"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/restore"
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

// restoreFile makes a file.
func restoreFile(env *Env, d *backupDisk, path string) error {
	part := path + restore.PartSuffix
	f, err := restore.CreatePart(part)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Close(), fillFile(env, d, part)); err != nil {
		return errors.Join(err, os.Remove(part))
	}
	return restore.Whole(part, path)
}

// fillFile writes the disk into a new, empty file.
func fillFile(env *Env, d *backupDisk, path string) error {
	if err := os.Truncate(path, d.Info().Size); err != nil {
		return err
	}
	to, err := blockdev.OpenFile(env.Context, path, blockdev.FileOptions{Lock: blockdev.LockExclusive})
	if err != nil {
		return err
	}
	return errors.Join(restoreTo(env, d, to, true), to.Close())
}

// lockPatience is how long a device may be held by somebody who is about to let go of it.
const lockPatience = 2 * time.Second

// restoreOver writes over what is there, if nobody has it open: no engine, no mount, no RAID, no QEMU.
func restoreOver(env *Env, d *backupDisk, path string) error {
	to, old, err := openOver(env, path)
	if err != nil {
		return err
	}
	if old != nil {
		err = eraseStore(env, old, "")
	}
	if err == nil {
		err = restoreTo(env, d, to, false)
	}
	return errors.Join(err, to.Close())
}

// mayRestoreOver says why restoreOver would refuse, and changes nothing.
func mayRestoreOver(env *Env, path string) error {
	to, old, err := openOver(env, path)
	if err != nil {
		return err
	}
	if old != nil {
		var me cowfmt.Owner
		if me, err = eraser(env, old, ""); err == nil {
			err = old.MayErase(me)
		}
	}
	return errors.Join(err, to.Close())
}

// openOver opens what is to be written over. A store that it holds is to be ended, as `store create --force` does: not while a
// host has it open, or others need it.
func openOver(env *Env, path string) (*blockdev.File, *store.Store, error) {
	ctx, cancel := context.WithTimeout(env.Context, lockPatience)
	defer cancel()
	to, err := blockdev.OpenFile(ctx, path, blockdev.FileOptions{Direct: true, Lock: blockdev.LockExclusive, Exclusive: true})
	if err != nil {
		return nil, nil, err
	}
	if err := restore.NoQEMU(to); err != nil {
		return nil, nil, errors.Join(err, to.Close())
	}
	old, err := store.Open(to)
	if err != nil {
		return to, nil, nil // none, or none that could be opened by anybody
	}
	if h := old.Header(); h.Role == cowfmt.RoleSnapshot {
		if err := unlisted(env.Context, h, ""); err != nil {
			return nil, nil, errors.Join(fmt.Errorf("%s: %w", path, err), to.Close())
		}
	}
	return to, old, nil
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
