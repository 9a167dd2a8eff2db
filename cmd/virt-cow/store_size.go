package main

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// StoreSizeCmd tells how much room a store needs, before there is one.
type StoreSizeCmd struct {
	Master string `help:"What would be cloned, as for store create." placeholder:"MASTER"`
	Size   Size   `help:"Size of the volume; the master's by default." placeholder:"SIZE"`
	Chunk  Size   `help:"Size of a chunk, a power of two from 4K to 1M; 4K by default, a snapshot's as its volume's." placeholder:"SIZE"`

	SnapshotOf string `help:"The volume, by its store, of which a snapshot would be made." type:"path" placeholder:"STORE"`
}

// storeSize is what is told. All are bytes.
type storeSize struct {
	Size      int64 `json:"size"`
	ChunkSize int64 `json:"chunkSize"`
	Room      int64 `json:"room"` // what the store needs of its device
}

// Run opens the master, if there is one, and checks all that can be checked before a store is made.
func (c *StoreSizeCmd) Run(env *Env) error {
	h, err := c.header(env)
	if err != nil {
		return err
	}
	if env.JSON {
		return printJSON(env, storeSize{h.Size, h.ChunkSize, h.DataEnd()})
	}
	fmt.Fprintf(env.Stdout, "%d bytes (%s) for a volume of %s in chunks of %s\n", h.DataEnd(), formatSize(h.DataEnd()), formatSize(h.Size), formatSize(h.ChunkSize))
	return nil
}

func (c *StoreSizeCmd) header(env *Env) (*cowfmt.Header, error) {
	if c.SnapshotOf != "" {
		if c.Master != "" || c.Size != 0 {
			return nil, exitError{errors.New("--snapshot-of: size and master are that volume's"), exitUsage}
		}
		volume, err := readHeader(env.Context, c.SnapshotOf)
		if err != nil {
			return nil, err
		}
		return (&StoreCreateCmd{SnapshotOf: c.SnapshotOf, Chunk: c.Chunk}).newSnapshot(volume)
	}
	c.Chunk = cmp.Or(c.Chunk, defaultChunk)
	create := StoreCreateCmd{Master: c.Master, Size: c.Size, Chunk: c.Chunk}
	if c.Master == "" && c.Size == 0 {
		return nil, exitError{errors.New("say what to make: --master, --size, or both"), exitUsage}
	}
	if err := create.checkSizes(); err != nil {
		return nil, exitError{err, exitUsage}
	}
	p := store.Params{Name: "size", Role: cowfmt.RoleClone, Size: int64(c.Size), ChunkSize: int64(c.Chunk), Now: time.Now()}
	if c.Master != "" {
		if err := create.identify(env, &p); err != nil {
			return nil, err
		}
	}
	h, err := store.NewHeader(p)
	if err != nil {
		return nil, exitError{err, exitUsage}
	}
	return h, nil
}
