package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/master"
	"github.com/virt-cow/virt-cow/internal/serve"
	"github.com/virt-cow/virt-cow/internal/store"
)

// create puts the store in place: a new file appears under its name only when it is whole.
func (c *StoreCreateCmd) create(env *Env, h *cowfmt.Header) error {
	switch st, err := os.Stat(c.Store); {
	case err == nil && (st.Mode()&os.ModeDevice != 0 || c.Onto && st.Mode().IsRegular()):
		return c.createOnDevice(env, h)
	case err == nil:
		return fmt.Errorf("%s: exists; a store is made in a new file or on a block device", c.Store)
	}
	if err := c.createFile(env.Context, h); err != nil {
		return fmt.Errorf("create %s: %w", c.Store, err)
	}
	return nil
}

func (c *StoreCreateCmd) createFile(ctx context.Context, h *cowfmt.Header) error {
	// Whoever has to clear up after a crash knows by the UUID whose it is.
	tmp := filepath.Join(filepath.Dir(c.Store), "."+filepath.Base(c.Store)+"."+h.UUID.String())
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return withoutPath(err) // the name of a file that is gone again helps nobody
	}
	defer os.Remove(tmp)
	err = f.Truncate(h.DataEnd())
	if err = errors.Join(err, f.Close()); err != nil {
		return withoutPath(err)
	}
	dev, err := openNow(ctx, tmp)
	if err != nil {
		return err
	}
	err = putStore(dev, h)
	if err == nil {
		err = reserveTable(dev, h)
	}
	if err = errors.Join(err, dev.Close()); err != nil {
		return err
	}
	// Link, not rename: it does not replace what somebody else made meanwhile.
	if err := os.Link(tmp, c.Store); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(c.Store))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

func putStore(dev blockdev.Device, h *cowfmt.Header) error {
	if h.Role == cowfmt.RoleSnapshot {
		return store.CreateSnapshot(dev, h)
	}
	return store.Create(dev, h)
}

// reserveTable takes the exception table's room in the file system now. When that is full later, guest
// writes fail, but what was acknowledged can still be committed.
func reserveTable(dev *blockdev.File, h *cowfmt.Header) error {
	if h.TableSectors() == 0 {
		return nil
	}
	const group = cowfmt.SectorsPerGroup * cowfmt.SectorSize
	used := (h.TableSectors()*cowfmt.SectorSize + group - 1) / group * group
	err := unix.Fallocate(dev.Fd(), unix.FALLOC_FL_KEEP_SIZE, h.Layout.Table[h.ActiveTable], used)
	if errors.Is(err, unix.EOPNOTSUPP) { // NFS before 4.2, for one
		return nil
	}
	if err != nil {
		return fmt.Errorf("room for the exception table, %s: %w", formatSize(used), err)
	}
	return nil
}

func withoutPath(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// openNow opens what a store is made on, unless somebody holds it.
func openNow(ctx context.Context, path string) (*blockdev.File, error) {
	once, cancel := context.WithCancel(ctx)
	cancel()
	return blockdev.OpenFile(once, path, blockdev.FileOptions{Direct: true, Lock: blockdev.LockExclusive})
}

// openUnserved is openNow of a store that no engine of this host serves.
func openUnserved(env *Env, path string) (*blockdev.File, *store.Store, error) {
	dev, err := openNow(env.Context, path)
	if err != nil {
		return nil, nil, err
	}
	st, err := store.Open(dev)
	if err == nil {
		err = serve.NotServed(env.RunDir, st.Header())
	}
	if err != nil {
		return nil, nil, errors.Join(err, dev.Close())
	}
	return dev, st, nil
}

func (c *StoreCreateCmd) createOnDevice(env *Env, h *cowfmt.Header) error {
	dev, err := openNow(env.Context, c.Store)
	if err != nil {
		return err
	}
	defer dev.Close()
	if err := store.HasRoom(dev.Info(), h); err != nil {
		return err
	}
	if err := c.makeRoom(env, dev); err != nil {
		return err
	}
	if err := putStore(dev, h); err != nil || dev.IsBlockDevice() {
		return err
	}
	if err := reserveTable(dev, h); err != nil {
		return err
	}
	return unix.Fsync(dev.Fd())
}

// makeRoom refuses a device that is in use, and without --force one that has something on it.
func (c *StoreCreateCmd) makeRoom(env *Env, dev *blockdev.File) error {
	// The kernel gives a block device exclusively to nobody while it is mounted or part of another one.
	fd, err := unix.Open(c.Store, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s: %w: it is mounted, or part of a RAID, LVM or multipath device", c.Store, blockdev.ErrLocked)
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: c.Store, Err: err}
	}
	unix.Close(fd)
	if old, err := store.Open(dev); err == nil {
		return c.overwriteStore(env, old)
	} else if !errors.Is(err, cowfmt.ErrNotStore) && !c.Force {
		return fmt.Errorf("%s: there is a virt-cow store on it that can't be used (%w); --force overwrites it", c.Store, err)
	}
	if c.Force {
		return nil
	}
	name, _, err := master.Signature(dev)
	if err == nil && name != "" {
		err = fmt.Errorf("%s: there is a %s on it; --force overwrites it", c.Store, name)
	}
	return err
}

// overwriteStore ends a store that is to be overwritten. One that is open, on this host under whatever path or on
// another one, is never overwritten: no force says that its host is dead.
func (c *StoreCreateCmd) overwriteStore(env *Env, old *store.Store) error {
	h := old.Header()
	if err := serve.NotServed(env.RunDir, h); err != nil {
		return err
	}
	if c.Force {
		if h.Role == cowfmt.RoleSnapshot {
			if err := unlisted(env.Context, h, ""); errors.Is(err, blockdev.ErrLocked) {
				return fmt.Errorf("%s: %w", c.Store, err)
			}
		}
		err := eraseStore(env, old, c.HostGone)
		if errors.Is(err, store.ErrOwned) {
			err = fmt.Errorf("%w; if that host is gone for good: --host-gone %s", err, h.Owner.Host)
		}
		return err
	}
	open := ""
	if o := h.Owner; o != nil {
		open = fmt.Sprintf(", open on %s since %s", o.HostName, time.Unix(o.Since, 0).Format(time.RFC3339))
	}
	return fmt.Errorf("%s: there is a virt-cow store on it, of volume %s%s; --force overwrites it", c.Store, h.Name, open)
}
