package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/engine"
	"github.com/virt-cow/virt-cow/internal/serve"
	"github.com/virt-cow/virt-cow/internal/store"
)

// StoreDeleteCmd deletes a store for good.
type StoreDeleteCmd struct {
	Store    string `arg:"" help:"Store: a file or block device." type:"path"`
	Name     string `help:"Name of the volume that it must hold." placeholder:"VOLUME"`
	UUID     string `help:"UUID of the volume that it must hold." name:"uuid" placeholder:"UUID"`
	HostUUID string `help:"This host's UUID instead of its machine id." env:"VIRT_COW_HOST_UUID" placeholder:"UUID"`
}

// Run deletes the file, or makes the device hold no store any more; a raw disk beside a state store stays. Nothing is
// deleted that is open, here or on another host, or that is not the volume that was named.
func (c *StoreDeleteCmd) Run(env *Env) error {
	if c.Name == "" && c.UUID == "" {
		return exitError{errors.New("say whose store it is: --name VOLUME, as `virt-cow store info` prints it"), exitUsage}
	}
	if st, err := os.Lstat(c.Store); err != nil {
		return err
	} else if to, lerr := os.Stat(c.Store); st.Mode()&os.ModeSymlink != 0 && lerr == nil && to.Mode().IsRegular() {
		return exitError{fmt.Errorf("%s: is a symbolic link: give the file itself", c.Store), exitUsage}
	}
	dev, err := openNow(env.Context, c.Store)
	if err != nil {
		return err
	}
	defer dev.Close()
	name, err := c.erase(env, dev)
	if err != nil {
		return err
	}
	if !dev.IsBlockDevice() {
		if err := removeFile(c.Store); err != nil {
			return err
		}
	}
	if env.JSON {
		return printJSON(env, struct {
			Store   string `json:"store"`
			Deleted string `json:"deleted"`
		}{c.Store, name})
	}
	fmt.Fprintf(env.Stdout, "%s: volume %s deleted\n", c.Store, name)
	return nil
}

// erase invalidates the header, so that what is left of the store after a crash is none.
func (c *StoreDeleteCmd) erase(env *Env, dev *blockdev.File) (name string, err error) {
	st, err := store.Open(dev)
	if err != nil {
		return "", err
	}
	h := st.Header()
	switch {
	case c.Name != "" && h.Name != c.Name:
		return "", fmt.Errorf("%s: holds volume %s, not %s", c.Store, h.Name, c.Name)
	case c.UUID != "" && h.UUID.String() != c.UUID:
		return "", fmt.Errorf("%s: holds the store %s of volume %s, not %s", c.Store, h.UUID, h.Name, c.UUID)
	case len(h.Grants) > 0 || len(h.Stack) > 0:
		return "", fmt.Errorf("%s: volume %s has snapshots, or another host may have it open: %w", c.Store, h.Name, blockdev.ErrLocked)
	}
	me, err := serve.Host(c.HostUUID)
	if err != nil {
		return "", err
	}
	if err := st.Elsewhere(me.Host); err != nil {
		return "", err
	}
	claims, err := st.Claims()
	if err != nil {
		return "", err
	}
	for _, o := range claims {
		if o.Err != nil || o.Nonce != 0 && o.Host != me.Host {
			return "", fmt.Errorf("%s: %w: see `virt-cow store claims %s`", c.Store, store.ErrClaimed, c.Store)
		}
	}
	if err := serve.NotServed(env.RunDir, h); err != nil {
		return "", err
	}
	if err := store.Erase(dev); err != nil {
		return "", err
	}
	err = os.Remove(engine.CachePath(filepath.Join(env.RunDir, "cache"), h.UUID))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return h.Name, err
}

func removeFile(path string) error {
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
