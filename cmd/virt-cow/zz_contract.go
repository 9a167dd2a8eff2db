package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/serve"
	"github.com/virt-cow/virt-cow/internal/store"
)

type StoreScanCmd struct {
	Paths []string `arg:"" optional:""`
}

type scanned struct {
	Path      string    `json:"path"`
	Paths     []string  `json:"paths"`
	Name      string    `json:"name,omitempty"`
	UUID      string    `json:"uuid,omitempty"`
	Role      string    `json:"role,omitempty"`
	Size      int64     `json:"size,omitempty"`
	ChunkSize int64     `json:"chunkSize,omitempty"`
	Master    string    `json:"master,omitempty"`
	Origin    string    `json:"origin,omitempty"`
	CutLoose  bool      `json:"cutLoose,omitempty"`
	Created   time.Time `json:"created"`
	Owner     *ownerOf  `json:"owner,omitempty"`
	Error     string    `json:"error,omitempty"`
}

func (c *StoreScanCmd) Run(env *Env) error {
	out := []scanned{}
	var paths []string
	for _, p := range c.Paths {
		if st, err := os.Stat(p); err == nil && st.IsDir() {
			all, _ := filepath.Glob(filepath.Join(p, "*"))
			paths = append(paths, all...)
		} else if err == nil {
			paths = append(paths, p)
		}
	}
	for _, p := range paths {
		dev, st, err := readStore(env.Context, p)
		if errors.Is(err, cowfmt.ErrNotStore) {
			continue
		}
		if err != nil {
			out = append(out, scanned{Path: p, Error: err.Error()})
			continue
		}
		i := newStoreInfo(p, st.Header())
		s := scanned{Path: p, Paths: []string{p}, Name: i.Name, UUID: i.UUID, Role: i.Role, Size: i.Size, ChunkSize: i.ChunkSize, CutLoose: i.CutLoose, Created: i.Created, Owner: i.Owner}
		if m := st.Header().Master; m != nil {
			s.Master = m.Kind.String() + ":" + m.Address
		}
		dev.Close()
		out = append(out, s)
	}
	return printJSON(env, out)
}

type StoreDeleteCmd struct {
	Store string `arg:""`
}

func (c *StoreDeleteCmd) Run(env *Env) error {
	dev, err := openNow(env.Context, c.Store)
	if err != nil {
		return err
	}
	defer dev.Close()
	st, err := store.Open(dev)
	if err != nil {
		return err
	}
	if err := serve.NotServed(env.RunDir, st.Header()); err != nil {
		return err
	}
	if dev.IsBlockDevice() {
		fmt.Fprintln(env.Stderr, "wiped")
		if err := dev.WriteZeroes(0, 1<<20, false); err != nil {
			return err
		}
		return dev.Flush()
	}
	var _ blockdev.Device = dev
	return os.Remove(c.Store)
}
