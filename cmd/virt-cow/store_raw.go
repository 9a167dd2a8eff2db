package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/master"
	"github.com/virt-cow/virt-cow/internal/store"
)

// createState makes the state store of a raw disk. The disk is only looked at.
func (c *StoreCreateCmd) createState(env *Env, p store.Params) error {
	if c.Master != "" || c.Size != 0 {
		return exitError{errors.New("--raw: the volume is that disk: it has no --master, and its own size"), exitUsage}
	}
	if err := c.checkSizes(); err != nil {
		return exitError{err, exitUsage}
	}
	if err := apart(c.Store, c.Raw); err != nil {
		return exitError{err, exitUsage}
	}
	if !c.ForceRaw {
		if err := master.CheckRaw(c.Raw); err != nil {
			return err
		}
	}
	once, cancel := context.WithCancel(env.Context)
	cancel()
	// For reading, but as if for writing: a disk that is mounted or served is in use.
	disk, err := blockdev.OpenFile(once, c.Raw, blockdev.FileOptions{ReadOnly: true, Direct: true, Lock: blockdev.LockExclusive, Exclusive: true})
	if err != nil {
		return fmt.Errorf("raw disk: %w", err)
	}
	defer disk.Close()
	p.Role, p.Size = cowfmt.RoleState, disk.Info().Size
	p.Origin, p.OriginIdentity = &cowfmt.Locator{Kind: cowfmt.LocatorRaw, Address: c.Raw}, master.IdentifyOrigin(disk)
	h, err := store.NewHeader(p)
	if err != nil {
		return fmt.Errorf("raw disk %s: %w", c.Raw, err)
	}
	return c.made(env, h)
}

// apart refuses the disk itself as the place of its state store: it never gets a header.
func apart(state, disk string) error {
	same, err := sameThing(state, disk)
	if err == nil && same {
		err = fmt.Errorf("%s: is the raw disk itself: a state store is another file, or a small LUN", state)
	}
	return err
}

// sameThing says whether two paths lead to one file or block device.
func sameThing(path, other string) (bool, error) {
	a, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	b, err := os.Stat(other)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	same := os.SameFile(a, b)
	if a.Mode()&b.Mode()&os.ModeDevice != 0 {
		same = same || a.Sys().(*syscall.Stat_t).Rdev == b.Sys().(*syscall.Stat_t).Rdev
	}
	return same, nil
}
