package main

import (
	"context"
	"fmt"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// snapshotInfo is what only a snapshot's store has.
type snapshotInfo struct {
	VolumeStore string `json:"volumeStore"` // where its volume's store was when it was made
	VolumeUUID  string `json:"volumeUUID"`
	Cut         string `json:"cut"`
	Frozen      bool   `json:"frozen"` // it has a clone's table as of the cut
	Saved       int64  `json:"saved"`  // chunks it holds
	Chunks      int64  `json:"chunks"`
}

// count finds out how much is saved.
func (i *snapshotInfo) count(env *Env, st *store.Store) (err error) {
	i.Chunks = st.Header().Chunks()
	var bad error
	i.Saved, err = st.ScanTable(env.Context, func(err error) { bad = err }, nil, nil)
	if err == nil {
		err = bad
	}
	return err
}

func (i *snapshotInfo) print(line func(name, format string, args ...any), of *storeInfo) {
	line("snapshot of", "%s (%s)", i.VolumeStore, i.VolumeUUID)
	line("cut", "%s", i.Cut)
	line("saved", "%d of %d chunks, %s", i.Saved, i.Chunks, formatSize(i.Saved*of.ChunkSize))
	switch {
	case !i.Frozen:
	case of.Master == "":
		line("master", "none: empty where the clone had nothing")
	default:
		line("master", "%s (%s)", of.Master, of.MasterKind)
	}
}

// stackInfo is an entry of a volume's stack.
type stackInfo struct {
	Kind          string `json:"kind"`
	UUID          string `json:"uuid"` // of its store
	Cut           string `json:"cut"`
	State         string `json:"state"`
	Cursor        int64  `json:"cursor"` // bytes below it are released
	Store         string `json:"store"`
	OnError       string `json:"onError"`
	TimeoutMillis uint32 `json:"timeoutMillis,omitempty"`
}

func newStackInfo(e cowfmt.StackEntry) stackInfo {
	return stackInfo{
		Kind: e.Kind.String(), UUID: e.UUID.String(), Cut: e.CutID.String(), State: cowfmt.StackStateName(e.State), Cursor: e.Cursor,
		Store: e.Locator.Address, OnError: cowfmt.OnErrorName(e.OnError), TimeoutMillis: e.Timeout,
	}
}

func (i *stackInfo) text() string {
	text := fmt.Sprintf("%s at %s, %s, cut %s, %s", i.UUID, i.Store, i.State, i.Cut, i.OnError)
	if i.Cursor > 0 {
		text += ", released up to " + formatSize(i.Cursor)
	}
	return text
}

// verifySnapshot checks what only a snapshot's store has: the frozen table, and that its volume is there.
func verifySnapshot(env *Env, dev blockdev.Device, volume bool) (problems []string, err error) {
	s, err := store.OpenSnapshot(dev)
	if err != nil {
		return nil, err
	}
	bad := func(err error) { problems = append(problems, fmt.Sprintf("frozen table: %v", err)) }
	if s.HasFrozen() {
		if _, err := s.ScanFrozen(env.Context, bad, nil, nil); err != nil {
			return nil, err
		}
	}
	if !volume {
		return problems, nil
	}
	at := s.Header().Origin.Address
	h, err := readHeader(env.Context, at)
	if err != nil {
		return append(problems, fmt.Sprintf("its volume's store: %v", err)), nil
	}
	if h.UUID != s.Header().OriginIdentity.UUID {
		return append(problems, fmt.Sprintf("%s: is the store of volume %s with UUID %v, not of %v", at, h.Name, h.UUID, s.Header().OriginIdentity.UUID)), nil
	}
	for _, e := range h.Stack {
		if e.UUID != s.Header().UUID {
			continue
		}
		if err := s.Belongs(h, e); err != nil {
			problems = append(problems, err.Error())
		}
	}
	return problems, nil
}

// verifyStack says which snapshots of a volume are not where its stack has them. A broken one need not be there.
func verifyStack(ctx context.Context, h *cowfmt.Header) (problems []string) {
	for _, e := range h.Stack {
		if e.Kind != cowfmt.StackSnapshot || e.State == cowfmt.StackBroken {
			continue
		}
		if err := verifyEntry(ctx, h, e); err != nil {
			problems = append(problems, fmt.Sprintf("snapshot %v: %v", e.UUID, err))
		}
	}
	return problems
}

func verifyEntry(ctx context.Context, h *cowfmt.Header, e cowfmt.StackEntry) error {
	dev, err := blockdev.OpenFile(ctx, e.Locator.Address, blockdev.FileOptions{ReadOnly: true, Direct: true})
	if err != nil {
		return err
	}
	defer dev.Close()
	s, err := store.OpenSnapshot(dev)
	if err != nil {
		return err
	}
	return s.Belongs(h, e)
}
