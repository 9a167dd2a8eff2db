package inventory

import (
	"context"
	"fmt"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// Header is what a store's header says of who has the volume.
type Header struct {
	Name   string
	UUID   string
	Epoch  uint32
	Owner  *api.Owner // nil: nobody
	Grants []api.Grant
	Stack  []api.SnapshotStatus // oldest first; what is saved it does not say

	OriginWWID    string // of the raw disk of a state store
	Master        string // path or URI, as the host that made the store has it
	MasterIsStore bool
}

// headerTimeout bounds the reading of one header: a guest's start, or its migration, waits for it.
const headerTimeout = 20 * time.Second

// Header reads the header of the store at a path, whoever has it open.
func (inv *Inventory) Header(ctx context.Context, path string) (*Header, error) {
	ctx, cancel := context.WithTimeout(ctx, headerTimeout)
	defer cancel()
	var info struct {
		Name  string `json:"name"`
		UUID  string `json:"uuid"`
		Epoch uint32 `json:"epoch"`
		Owner *struct {
			api.Owner
			Since time.Time `json:"since"`
		} `json:"owner"`
		Granted []struct {
			api.Grant
			Since time.Time `json:"since"`
		} `json:"grantedTo"`
		Snapshots []api.SnapshotStatus `json:"snapshots"`

		OriginWWID string `json:"originWWID"`
		Master     string `json:"master"`
		MasterKind string `json:"masterKind"`
	}
	if err := inv.program.run(ctx, &info, nil, "store", "info", "--", path); err != nil {
		return nil, fmt.Errorf("store %s: %w", path, err)
	}
	h := &Header{Name: info.Name, UUID: info.UUID, Epoch: info.Epoch, Stack: info.Snapshots}
	h.OriginWWID, h.Master, h.MasterIsStore = info.OriginWWID, info.Master, info.MasterKind == cowfmt.LocatorStore.String()
	if o := info.Owner; o != nil {
		h.Owner = &o.Owner
		h.Owner.Since = o.Since.Unix()
	}
	for _, g := range info.Granted {
		g.Grant.Since = g.Since.Unix()
		h.Grants = append(h.Grants, g.Grant)
	}
	return h, nil
}
