package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// createSnapshot makes the snapshot store of a volume, which may be served meanwhile. The volume is only looked at: its
// engine puts the snapshot into its stack.
func (c *StoreCreateCmd) createSnapshot(env *Env) error {
	if c.Master != "" || c.Size != 0 || c.Raw != "" || c.Name != "" {
		return exitError{errors.New("--snapshot-of: name, size and master are that volume's: leave out --name, --size, --master and --raw"), exitUsage}
	}
	volume, err := readHeader(env.Context, c.SnapshotOf)
	if err != nil {
		return err
	}
	h, err := c.newSnapshot(volume)
	if err != nil {
		return err
	}
	if err := c.apartFrom(volume); err != nil {
		return err
	}
	return c.made(env, h)
}

// newSnapshot is the header of a snapshot of a volume.
func (c *StoreCreateCmd) newSnapshot(volume *cowfmt.Header) (*cowfmt.Header, error) {
	p := store.SnapshotParams{
		Volume: volume, VolumeAddress: c.SnapshotOf, ChunkSize: int64(c.Chunk), UUID: uuid.New(), Cut: uuid.New(), Now: time.Now(),
	}
	for _, u := range []struct {
		flag, given string
		to          *uuid.UUID
	}{{"--uuid", c.UUID, &p.UUID}, {"--cut", c.Cut, &p.Cut}} {
		if u.given == "" {
			continue
		}
		var err error
		if *u.to, err = uuid.Parse(u.given); err != nil {
			return nil, exitError{fmt.Errorf("%s %s: %w", u.flag, u.given, err), exitUsage}
		}
	}
	h, err := store.NewSnapshotHeader(p)
	if err != nil {
		return nil, exitError{err, exitUsage}
	}
	return h, nil
}

// readHeader reads the header of a store, which may be open elsewhere.
func readHeader(ctx context.Context, path string) (*cowfmt.Header, error) {
	dev, st, err := readStore(ctx, path)
	if err != nil {
		return nil, err
	}
	return st.Header(), dev.Close()
}

// apartFrom refuses what the volume is made of as the place of its snapshot: no force is for that.
func (c *StoreCreateCmd) apartFrom(v *cowfmt.Header) error {
	parts := map[string]string{"store": c.SnapshotOf}
	if v.Origin != nil {
		parts["raw disk"] = v.Origin.Address
	}
	if v.Master != nil && v.Master.Kind != cowfmt.LocatorNBD {
		parts["master"] = v.Master.Address
	}
	for what, path := range parts {
		switch same, err := sameThing(c.Store, path); {
		case err != nil:
			return err
		case same:
			return exitError{fmt.Errorf("%s: is the %s of volume %s: a snapshot's store is another file, or another LUN", c.Store, what, v.Name), exitUsage}
		}
	}
	return nil
}

// unlisted refuses a snapshot that its volume lists and that is not broken: an engine needs it to write, or a reader to
// read. Where the volume's store can't be looked at, that can't be known. At is where that store is, "" for where the
// snapshot says.
func unlisted(ctx context.Context, snapshot *cowfmt.Header, at string) error {
	if at == "" {
		at = snapshot.Origin.Address
	}
	h, err := readHeader(ctx, at)
	if err == nil && h.UUID != snapshot.OriginIdentity.UUID {
		err = fmt.Errorf("%s: is the store of volume %s with UUID %s, not %s", at, h.Name, h.UUID, snapshot.OriginIdentity.UUID)
	}
	if err != nil {
		return fmt.Errorf("whether volume %s needs its snapshot can't be known: %w; --volume says where the volume's store is, `virt-cow store delete --force` deletes the snapshot all the same",
			snapshot.Name, err)
	}
	for _, e := range h.Stack {
		if e.UUID == snapshot.UUID && e.State != cowfmt.StackBroken {
			return fmt.Errorf("volume %s lists this snapshot as %s: %w: its engine is to remove it first, or a backup is to be cancelled; `virt-cow store delete --force` deletes it all the same",
				snapshot.Name, cowfmt.StackStateName(e.State), blockdev.ErrLocked)
		}
	}
	return nil
}
