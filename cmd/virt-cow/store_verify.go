package main

import (
	"errors"
	"fmt"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/master"
	"github.com/virt-cow/virt-cow/internal/store"
)

// StoreVerifyCmd checks a store.
type StoreVerifyCmd struct {
	Store    string `arg:"" help:"Store: a file or block device." type:"path"`
	NoMaster bool   `help:"Leave the master, the raw disk, and the volume of a snapshot alone."`
}

type verdict struct {
	Store    string   `json:"store"`
	Volume   string   `json:"volume,omitempty"`
	OK       bool     `json:"ok"`
	Set      int64    `json:"chunksHere"`
	Chunks   int64    `json:"chunks"`
	Problems []string `json:"problems,omitempty"`
}

// Run checks; exit code 5 says that something is wrong.
func (c *StoreVerifyCmd) Run(env *Env) error {
	v := &verdict{Store: c.Store}
	if err := c.verify(env, v); err != nil {
		return err
	}
	v.OK = len(v.Problems) == 0
	if env.JSON {
		if err := printJSON(env, v); err != nil {
			return err
		}
	} else {
		for _, p := range v.Problems {
			fmt.Fprintln(env.Stdout, p)
		}
		if v.OK && v.Chunks > 0 {
			fmt.Fprintf(env.Stdout, "%s: ok, %d of %d chunks are in the store\n", c.Store, v.Set, v.Chunks)
		} else if v.OK {
			fmt.Fprintf(env.Stdout, "%s: ok\n", c.Store)
		}
	}
	if !v.OK {
		return exitError{fmt.Errorf("%s: %s found", c.Store, count(len(v.Problems), "problem")), exitVerify}
	}
	return nil
}

// verify fills the verdict; its error says that the store could not be looked at.
func (c *StoreVerifyCmd) verify(env *Env, v *verdict) error {
	dev, st, err := readStore(env.Context, c.Store)
	switch {
	case errors.Is(err, cowfmt.ErrCorrupt), errors.Is(err, cowfmt.ErrInvalid), errors.Is(err, store.ErrTruncated):
		v.Problems = append(v.Problems, err.Error())
		return nil
	case err != nil:
		return err
	}
	defer dev.Close()
	h := st.Header()
	v.Volume = h.Name
	if h.Role != cowfmt.RoleState {
		v.Chunks = h.Chunks()
	}
	for n, problem := range st.Problems() {
		if problem != nil {
			v.Problems = append(v.Problems, fmt.Sprintf("header copy %d: %v", n, problem))
		}
	}
	var progress *progress
	if !env.JSON {
		progress = newProgress(env.Stderr, "verify "+h.Name, 0)
	}
	v.Set, err = st.ScanTable(env.Context, func(err error) { v.Problems = append(v.Problems, err.Error()) }, func(done, total int64) {
		if progress != nil {
			progress.step(done, total)
		}
	}, nil)
	if err != nil {
		return err
	}
	if h.Role == cowfmt.RoleSnapshot {
		problems, err := verifySnapshot(env, dev, !c.NoMaster)
		if err != nil {
			return err
		}
		v.Problems = append(v.Problems, problems...)
	}
	v.Problems = append(v.Problems, verifyStack(env.Context, h)...)
	if h.Role == cowfmt.RoleState && !c.NoMaster {
		if err := verifyOrigin(env, h); err != nil {
			v.Problems = append(v.Problems, err.Error())
		}
	}
	if h.Master != nil && !h.CutLoose && !c.NoMaster {
		base, err := master.Open(env.Context, *h.Master, h.MasterIdentity, env.Log)
		if err != nil {
			v.Problems = append(v.Problems, err.Error())
			return nil
		}
		return base.Close()
	}
	return nil
}

// verifyOrigin looks whether the raw disk of a state store is there: the right one, and large enough.
func verifyOrigin(env *Env, h *cowfmt.Header) error {
	disk, err := blockdev.OpenFile(env.Context, h.Origin.Address, blockdev.FileOptions{ReadOnly: true})
	if err != nil {
		return fmt.Errorf("raw disk: %w", err)
	}
	defer disk.Close()
	if err := master.CheckOrigin(disk, h.OriginIdentity); err != nil {
		return err
	}
	if size := disk.Info().Size; size < h.Size {
		return fmt.Errorf("raw disk %s: has %d bytes, the volume %d: the disk has shrunk", h.Origin.Address, size, h.Size)
	}
	return nil
}
