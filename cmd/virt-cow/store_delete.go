package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/serve"
	"github.com/virt-cow/virt-cow/internal/store"
)

// StoreDeleteCmd removes a store for good.
type StoreDeleteCmd struct {
	Store    string `arg:"" help:"Store: a file, which is removed, or a block device, of which the first MiB is zeroed." type:"path"`
	Name     string `help:"The volume's name, to show that this store is meant." placeholder:"VOLUME"`
	UUID     string `help:"Or its UUID." name:"uuid" placeholder:"UUID"`
	Yes      bool   `help:"Or neither: whatever volume it is."`
	Volume   string `help:"Where the store of a snapshot's volume is, if not where the snapshot says." type:"path" placeholder:"STORE"`
	Force    bool   `help:"A snapshot, although its volume needs it, or can't be asked."`
	HostGone string `help:"Your word that this host, the store's owner, is gone for good." placeholder:"HOST-UUID"`
}

// Run deletes the store. What it left of one when it was interrupted it deletes when it is called again.
func (c *StoreDeleteCmd) Run(env *Env) error {
	if c.Name == "" && c.UUID == "" && !c.Yes {
		return exitError{errors.New("say which volume's store is meant: --name VOLUME or --uuid UUID; or --yes"), exitUsage}
	}
	if st, err := os.Lstat(c.Store); err != nil {
		return err
	} else if to, lerr := os.Stat(c.Store); st.Mode()&os.ModeSymlink != 0 && lerr == nil && to.Mode().IsRegular() {
		return exitError{fmt.Errorf("%s: is a symbolic link: give the file itself", c.Store), exitUsage}
	}
	dev, err := openAlone(env.Context, c.Store)
	if err != nil {
		return err
	}
	defer dev.Close()
	st, err := store.Open(dev)
	if err != nil {
		return fmt.Errorf("%w; what is no store, or can't be read as one, is not deleted here", err)
	}
	h := st.Header()
	if err := c.isMeant(h); err != nil {
		return err
	}
	if h.Role == cowfmt.RoleSnapshot && !c.Force {
		if err := unlisted(env.Context, h, c.Volume); err != nil {
			return fmt.Errorf("%s: %w", c.Store, err)
		}
	}
	if err := eraseStore(env, st, c.HostGone); err != nil {
		return err
	}
	_ = os.Remove(api.CachePath(env.RunDir, h.UUID.String())) // of an engine that died
	if !dev.IsBlockDevice() {
		if err := unlink(dev, c.Store); err != nil {
			return err
		}
	}
	if env.JSON {
		return printJSON(env, struct {
			Store   string `json:"store"`
			Deleted string `json:"deleted"`
		}{c.Store, h.Name})
	}
	what := "volume"
	if h.Role == cowfmt.RoleSnapshot {
		what = "snapshot of volume"
	}
	fmt.Fprintf(env.Stdout, "%s: %s %s deleted\n", c.Store, what, h.Name)
	return nil
}

func (c *StoreDeleteCmd) isMeant(h *cowfmt.Header) error {
	if c.Name != "" && h.Name != c.Name {
		return fmt.Errorf("%s: holds volume %s, not %s", c.Store, h.Name, c.Name)
	}
	if c.UUID != "" {
		id, err := uuid.Parse(c.UUID)
		if err != nil {
			return exitError{fmt.Errorf("--uuid %q: %w", c.UUID, err), exitUsage}
		}
		if id != h.UUID {
			return fmt.Errorf("%s: holds the store %s of volume %s, not %s", c.Store, h.UUID, h.Name, id)
		}
	}
	return nil
}

// openAlone is openNow, and of a block device also not while it is mounted or part of another one.
func openAlone(ctx context.Context, path string) (*blockdev.File, error) {
	once, cancel := context.WithCancel(ctx)
	cancel()
	return blockdev.OpenFile(once, path, blockdev.FileOptions{Direct: true, Lock: blockdev.LockExclusive, Exclusive: true})
}

// eraseStore ends a store that nobody has open, on this host or another one.
func eraseStore(env *Env, st *store.Store, hostGone string) error {
	me, err := eraser(env, st, hostGone)
	if err != nil {
		return err
	}
	f, _, ok := blockdev.FileOf(st.Device())
	return st.Erase(env.Context, me, store.Claiming{Shared: !ok || f.Shared()})
}

// eraser is as whom a store is ended that no engine of this host has open.
func eraser(env *Env, st *store.Store, hostGone string) (cowfmt.Owner, error) {
	h := st.Header()
	if err := serve.NotServed(env.RunDir, h); err != nil {
		return cowfmt.Owner{}, err
	}
	me, err := serve.Host(env.Config.Engine.HostUUID)
	if err != nil {
		return cowfmt.Owner{}, err
	}
	me.Instance = uuid.New()
	if hostGone != "" {
		id, err := uuid.Parse(hostGone)
		if err != nil {
			return cowfmt.Owner{}, exitError{fmt.Errorf("--host-gone %q: %w", hostGone, err), exitUsage}
		}
		if h.Owner == nil || h.Owner.Host != id {
			return cowfmt.Owner{}, fmt.Errorf("%s: host %s is not the owner of volume %s", st.Name(), id, h.Name)
		}
		me.Host = id // in its stead
	}
	return me, nil
}

// unlink removes the file that is open, durably, unless another one has its name by now.
func unlink(dev *blockdev.File, path string) error {
	now, err := os.Stat(path)
	if err != nil {
		return err
	}
	was, err := os.Stat(fmt.Sprintf("/proc/self/fd/%d", dev.Fd()))
	if err != nil {
		return err
	}
	if !os.SameFile(now, was) {
		return fmt.Errorf("%s: the store is erased, but another file has its name by now, which is left", path)
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
