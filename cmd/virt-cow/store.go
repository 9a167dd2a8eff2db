package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/master"
	"github.com/virt-cow/virt-cow/internal/store"
)

// StoreCmd makes and examines stores.
type StoreCmd struct {
	Create StoreCreateCmd `cmd:"" help:"Make a store: a clone of a master, an empty disk, or a snapshot's."`
	Size   StoreSizeCmd   `cmd:"" help:"Tell how large a file or device a store needs."`
	Info   StoreInfoCmd   `cmd:"" help:"Show what a store is and how to use it without virt-cow."`
	Verify StoreVerifyCmd `cmd:"" help:"Check header, table and master of a store."`
	Dump   StoreDumpCmd   `cmd:"" help:"Print header and table of a store, damaged ones too."`
	Scan   StoreScanCmd   `cmd:"" help:"Look for stores in files, devices and folders."`
	Delete StoreDeleteCmd `cmd:"" help:"Remove a store for good."`
	Claims StoreClaimsCmd `cmd:"" help:"Show which hosts are opening a store, and clear the claim of a dead one."`

	BreakSnapshot StoreBreakSnapshotCmd `cmd:"" help:"Give a snapshot up whose store is lost, so that its volume can be opened without it."`
}

// StoreCreateCmd makes a store.
type StoreCreateCmd struct {
	Store  string `arg:"" help:"A new file, or a block device." type:"path"`
	Master string `help:"What to clone: a raw file or block device, store:PATH, nbd+unix:///EXPORT?socket=PATH or nbd://HOST/EXPORT." placeholder:"MASTER"`
	Size   Size   `help:"Size of the volume, 10G or 512M; the master's by default. Behind the master's end it reads as zeros." placeholder:"SIZE"`
	Chunk  Size   `help:"Size of a chunk, a power of two from 4K to 1M; 4K by default, a snapshot's as its volume's." placeholder:"SIZE"`
	Name   string `help:"Name of the volume; the store's file name by default." placeholder:"VOLUME"`
	Raw    string `help:"Make a state store instead, 1 MiB beside a guest's raw disk, which stays as it is: a file or block device." type:"path" placeholder:"DISK"`
	Force  bool   `help:"Use a block device although something is on it."`
	Onto   bool   `help:"Use a file that exists, as a storage pool makes it, just as a block device would be used."`
	UUID   string `help:"UUID of the volume instead of a new one." name:"uuid" hidden:""`

	SnapshotOf string `help:"Make the store of a snapshot of the volume with this store. A volume's engine makes the snapshot; by itself this does nothing." type:"path" placeholder:"STORE"`
	Cut        string `help:"UUID of the cut that a snapshot is for." hidden:""`

	ForceRaw bool   `help:"Take the raw disk for one although it looks like an image or a store."`
	HostGone string `help:"With --force over a store: your word that this host, its owner, is gone for good." placeholder:"HOST-UUID"`
}

// defaultChunk is the size of a chunk that nobody chose.
const defaultChunk Size = cowfmt.MinChunk

// Run makes the store. Nothing is left behind when it fails.
func (c *StoreCreateCmd) Run(env *Env) error {
	if c.SnapshotOf != "" {
		return c.createSnapshot(env)
	}
	c.Chunk = cmp.Or(c.Chunk, defaultChunk)
	p := store.Params{Name: c.Name, Role: cowfmt.RoleClone, Size: int64(c.Size), ChunkSize: int64(c.Chunk), Now: time.Now()}
	if p.Name == "" {
		base := filepath.Base(c.Store)
		p.Name = base[:len(base)-len(filepath.Ext(base))]
	}
	if err := cowfmt.ValidName(p.Name); err != nil {
		return exitError{fmt.Errorf("%w; give one with --name", err), exitUsage}
	}
	if c.UUID != "" {
		id, err := uuid.Parse(c.UUID)
		if err != nil {
			return exitError{fmt.Errorf("--uuid %s: %w", c.UUID, err), exitUsage}
		}
		p.UUID = id
	}
	if c.Raw != "" {
		return c.createState(env, p)
	}
	if c.Master == "" && c.Size == 0 {
		return exitError{errors.New("say what to make: --master, --size, or both; or --raw"), exitUsage}
	}
	if err := c.checkSizes(); err != nil {
		return exitError{err, exitUsage}
	}
	if c.Master != "" {
		if err := c.identify(env, &p); err != nil {
			return err
		}
	}
	h, err := store.NewHeader(p)
	if err != nil {
		return exitError{err, exitUsage}
	}
	return c.made(env, h)
}

// made makes the store and tells of it.
func (c *StoreCreateCmd) made(env *Env, h *cowfmt.Header) error {
	if err := c.create(env, h); err != nil {
		return err
	}
	if env.JSON {
		return printJSON(env, newStoreInfo(c.Store, h))
	}
	fmt.Fprintf(env.Stdout, "%s: volume %s, %s%s\n", c.Store, h.Name, formatSize(h.Size), ofBase(h))
	return nil
}

func (c *StoreCreateCmd) checkSizes() error {
	switch {
	case c.Size%blockdev.SectorSize != 0:
		return fmt.Errorf("--size %d: not a multiple of %d bytes", c.Size, blockdev.SectorSize)
	case c.Size > cowfmt.MaxSize:
		return fmt.Errorf("--size %s: the largest volume has %s", formatSize(int64(c.Size)), formatSize(cowfmt.MaxSize))
	case c.Chunk < cowfmt.MinChunk, c.Chunk > cowfmt.MaxChunk, c.Chunk&(c.Chunk-1) != 0:
		return fmt.Errorf("--chunk %s: want a power of two from %s to %s", formatSize(int64(c.Chunk)), formatSize(cowfmt.MinChunk), formatSize(cowfmt.MaxChunk))
	}
	return nil
}

func ofBase(h *cowfmt.Header) string {
	switch {
	case h.Role == cowfmt.RoleSnapshot:
		return fmt.Sprintf(" in chunks of %s, a snapshot", formatSize(h.ChunkSize))
	case h.Origin != nil:
		return fmt.Sprintf(", the raw disk %s", h.Origin.Address)
	case h.Master != nil:
		return fmt.Sprintf(" in chunks of %s, a clone of %s", formatSize(h.ChunkSize), h.Master.Address)
	}
	return " in chunks of " + formatSize(h.ChunkSize)
}

// identify fills in the master, and the size where none was asked for.
func (c *StoreCreateCmd) identify(env *Env, p *store.Params) error {
	locator, err := master.ParseLocator(c.Master)
	if err != nil {
		return err
	}
	dev, err := master.Open(env.Context, locator, nil, env.Log)
	if err != nil {
		return err
	}
	defer dev.Close()
	if p.MasterIdentity, err = master.Identify(dev); err != nil {
		return err
	}
	p.Master = &locator
	switch size := dev.Info().Size; {
	case size == 0:
		return fmt.Errorf("master %s: is empty", dev.Info().Name)
	case p.Size == 0:
		p.Size = size
	case p.Size < size:
		return exitError{fmt.Errorf("--size %s is less than the master's %s: a clone may be larger, not smaller", formatSize(p.Size), formatSize(size)), exitUsage}
	}
	return nil
}

func printJSON(env *Env, v any) error {
	e := json.NewEncoder(env.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
