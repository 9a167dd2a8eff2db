package main

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/serve"
	"github.com/virt-cow/virt-cow/internal/store"
)

// StoreBreakSnapshotCmd gives a snapshot up that its volume is not opened without.
type StoreBreakSnapshotCmd struct {
	Store    string `arg:"" help:"Store of the volume: a file or block device. Nobody may have it open." type:"path"`
	Snapshot string `arg:"" help:"UUID of the snapshot; store info lists them."`
	Yes      bool   `help:"Do not ask." short:"y"`
	Drop     bool   `help:"Take it off the volume's list: its job has ended." hidden:""`
}

// Run asks first, on a terminal, unless told not to.
func (c *StoreBreakSnapshotCmd) Run(env *Env) error {
	id, err := uuid.Parse(c.Snapshot)
	if err != nil {
		return exitError{fmt.Errorf("snapshot %q: %w: `virt-cow store info %s` lists them", c.Snapshot, err, c.Store), exitUsage}
	}
	if !c.Yes && !(isTerminal(os.Stdin) && isTerminal(env.Stderr)) {
		return exitError{errors.New("there is no terminal to ask on: --yes gives the snapshot up"), exitUsage}
	}
	dev, st, err := openUnserved(env, c.Store)
	if err != nil {
		return err
	}
	defer dev.Close()
	h := st.Header()
	i := slices.IndexFunc(h.Stack, func(e cowfmt.StackEntry) bool { return e.UUID == id })
	if i < 0 {
		return fmt.Errorf("%s: %w: %v: `virt-cow store info %s` lists them", c.Store, store.ErrNoSnapshot, id, c.Store)
	}
	if e := h.Stack[i]; !c.Yes {
		fmt.Fprintf(env.Stderr, `Give snapshot %v of volume %s up? It is %s, its store is, or was, at %s.
  - The backup that reads it (job %v) FAILS, whether or not that store is found again.
  - The volume loses nothing, and can be opened and written without it.
If its store is only away, bring it back instead.
`, id, h.Name, cowfmt.StackStateName(e.State), e.Locator.Address, e.CutID)
		if err := confirm(env, fmt.Sprintf("Type %s to do so: ", h.Name), h.Name); err != nil {
			return fmt.Errorf("%w: the snapshot stays", err)
		}
	}
	if err := c.stepIn(env, st, dev, id); err != nil {
		return err
	}
	if env.JSON {
		return printJSON(env, struct {
			Store    string `json:"store"`
			Volume   string `json:"volume"`
			Snapshot string `json:"snapshot"`
		}{c.Store, h.Name, id.String()})
	}
	fmt.Fprintf(env.Stdout, "%s: the volume %s can be opened without snapshot %v\n", c.Store, h.Name, id)
	return nil
}

func (c *StoreBreakSnapshotCmd) stepIn(env *Env, st *store.Store, dev *blockdev.File, id uuid.UUID) error {
	me, err := serve.Host(env.Config.Engine.HostUUID)
	if err != nil {
		return err
	}
	me.Instance = uuid.New()
	how := store.Claiming{Shared: dev.Shared()}
	if c.Drop {
		return st.DropSnapshot(env.Context, me, id, how)
	}
	return st.BreakSnapshot(env.Context, me, id, how)
}
