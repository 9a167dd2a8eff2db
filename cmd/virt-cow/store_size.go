package main

import (
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
	Chunk  Size   `help:"Size of a chunk, a power of two from 4K to 1M." default:"4K" placeholder:"SIZE"`
}

// storeSize is what is told. All are bytes.
type storeSize struct {
	Size      int64 `json:"size"`
	ChunkSize int64 `json:"chunkSize"`
	Room      int64 `json:"room"` // what the store needs of its device
}

// Run opens the master, if there is one, and checks all that can be checked before a store is made.
func (c *StoreSizeCmd) Run(env *Env) error {
	create := StoreCreateCmd{Master: c.Master, Size: c.Size, Chunk: c.Chunk}
	if c.Master == "" && c.Size == 0 {
		return exitError{errors.New("say what to make: --master, --size, or both"), exitUsage}
	}
	if err := create.checkSizes(); err != nil {
		return exitError{err, exitUsage}
	}
	p := store.Params{Name: "size", Role: cowfmt.RoleClone, Size: int64(c.Size), ChunkSize: int64(c.Chunk), Now: time.Now()}
	if c.Master != "" {
		if err := create.identify(env, &p); err != nil {
			return err
		}
	}
	h, err := store.NewHeader(p)
	if err != nil {
		return exitError{err, exitUsage}
	}
	if env.JSON {
		return printJSON(env, storeSize{h.Size, h.ChunkSize, h.DataEnd()})
	}
	fmt.Fprintf(env.Stdout, "%d bytes (%s) for a volume of %s in chunks of %s\n", h.DataEnd(), formatSize(h.DataEnd()), formatSize(h.Size), formatSize(h.ChunkSize))
	return nil
}
