package inventory

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/catalogue"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// SnapshotRequest makes the store of a snapshot. At most one of Store, Folder, Pool and Provider is given: without any it
// is a file in the folder for stores.
type SnapshotRequest struct {
	Volume    string // name
	UUID      string // of the new store: whoever wants it has noted that first
	Cut       string // UUID
	Job       string // what it is for, kept with it
	ChunkSize int64  // bytes; 0: the volume's
	Store     string // path of a new file, or of a block device
	Folder    string // where a new file is made
	Pool      string
	LUN       string // of a pool that can't make volumes: the one to use
	Provider  string
	Force     bool // use a device although something is on it
}

// Snapshot is a snapshot's store as the catalogue has it. Whether it is active its volume's header says. Sizes are bytes.
type Snapshot struct {
	UUID       string
	Volume     string // name
	VolumeUUID string
	Cut        string
	Job        string // "" of one that a scan has found
	State      catalogue.State
	Store      string // path
	Size       int64
	ChunkSize  int64
	Created    int64  // Unix seconds
	Error      string // why it can't be brought to an end, or why its record can't be read
}

// MakeSnapshot makes a snapshot's store for a volume, which may be served. When it fails nothing of it is left, or a
// record with the reason, which Recover gets rid of, or DeleteSnapshot.
func (inv *Inventory) MakeSnapshot(ctx context.Context, r SnapshotRequest) (Snapshot, error) {
	if err := checkSnapshot(r); err != nil {
		return Snapshot{}, err
	}
	leave, err := inv.enter(ctx, r.UUID, r.Volume)
	if err != nil {
		return Snapshot{}, err
	}
	defer leave()
	v, err := inv.ready(r.Volume)
	if err != nil {
		return Snapshot{}, err
	}
	if old, ok := inv.byUUID(r.UUID); ok {
		return Snapshot{}, fmt.Errorf("UUID %s %w, by %s (%s)", r.UUID, ErrExists, old.Title(), old.State)
	}
	e := catalogue.Entry{
		Name: r.UUID, UUID: r.UUID, State: catalogue.Creating, Volume: v.Name, VolumeUUID: v.UUID, Cut: r.Cut, Job: r.Job,
	}
	place := api.CreateRequest{Store: r.Store, Pool: r.Pool, LUN: r.LUN, Provider: r.Provider}
	if place == (api.CreateRequest{}) {
		place.Store = filepath.Join(cmp.Or(r.Folder, inv.config.StoreDir), ownName(e))
	}
	if err := inv.intend(ctx, place, &e); err != nil {
		return Snapshot{}, fmt.Errorf("%s: %w", e.Title(), err)
	}
	what := []string{"--snapshot-of", v.Store}
	if r.ChunkSize != 0 {
		what = append(what, "--chunk", strconv.FormatInt(r.ChunkSize, 10))
	}
	var need sized
	if err := inv.call(ctx, &need, nil, append([]string{"store", "size"}, what...)...); err != nil {
		return Snapshot{}, fmt.Errorf("%s: %w", e.Title(), err)
	}
	what = append(what, "--cut", e.Cut)
	if r.Force {
		what = append(what, "--force")
	}
	if e, err = inv.create(ctx, e, need.Room, what); err != nil {
		return Snapshot{}, err
	}
	return snapshot(e), nil
}

func checkSnapshot(r SnapshotRequest) error {
	if err := cowfmt.ValidName(r.Volume); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	for _, id := range []string{r.UUID, r.Cut} {
		if !api.IsUUID(id) {
			return fmt.Errorf("%w: snapshot of volume %s: %q is no UUID", ErrInvalid, r.Volume, id)
		}
	}
	places := slices.DeleteFunc([]string{r.Store, r.Folder, r.Pool, r.Provider}, func(s string) bool { return s == "" })
	switch {
	case len(places) > 1:
		return fmt.Errorf("%w: snapshot of volume %s: a store is at a path, in a folder, in a pool, or a provider's: choose one", ErrInvalid, r.Volume)
	case r.LUN != "" && r.Pool == "":
		return fmt.Errorf("%w: snapshot of volume %s: a LUN without the pool it is in", ErrInvalid, r.Volume)
	case r.ChunkSize < 0:
		return fmt.Errorf("%w: snapshot of volume %s: a negative size", ErrInvalid, r.Volume)
	}
	return nil
}

// Unlist takes a snapshot out of the stack of the volume with this store, which nobody on any host has open. Once begun it goes
// to its end: a claim that is left up keeps other hosts out.
func (inv *Inventory) Unlist(ctx context.Context, volumeStore, snapshot string) error {
	return inv.call(context.WithoutCancel(ctx), nil, nil, "store", "break-snapshot", "--yes", "--drop", "--", volumeStore, snapshot)
}

// DeleteSnapshot removes a snapshot's store, or what was begun of one; where it is gone already, its record. ErrInUse
// while its volume lists it, unless it is broken there: an engine takes it out of the stack first. ErrNotFound.
func (inv *Inventory) DeleteSnapshot(ctx context.Context, id string) error {
	leave, err := inv.enter(ctx, id)
	if err != nil {
		return err
	}
	defer leave()
	e, err := inv.cat.Snapshots().ByName(id)
	if err != nil {
		return err
	}
	if e.State == catalogue.Missing { // a scan files it again, should it come back
		return inv.cat.Snapshots().Remove(id)
	}
	return inv.delete(ctx, e)
}

// Snapshots returns the snapshots of all volumes in the order of their UUIDs, damaged records with an Error among them.
func (inv *Inventory) Snapshots() []Snapshot {
	var all []Snapshot
	for _, e := range inv.cat.Snapshots().All() {
		all = append(all, snapshot(e))
	}
	for _, d := range inv.cat.Snapshots().Damaged() {
		all = append(all, Snapshot{UUID: d.Name, Error: d.Err.Error()})
	}
	slices.SortFunc(all, func(a, b Snapshot) int { return cmp.Compare(a.UUID, b.UUID) })
	return all
}

func snapshot(e catalogue.Entry) Snapshot {
	return Snapshot{
		UUID: e.UUID, Volume: e.Volume, VolumeUUID: e.VolumeUUID, Cut: e.Cut, Job: e.Job, State: e.State, Store: e.Store,
		Size: e.Size, ChunkSize: e.ChunkSize, Created: e.Created, Error: e.Error,
	}
}

// snapshotsOf are the snapshots of a volume, whatever is being done to them.
func (inv *Inventory) snapshotsOf(volume catalogue.Entry) []catalogue.Entry {
	return slices.DeleteFunc(inv.cat.Snapshots().All(), func(s catalogue.Entry) bool { return s.VolumeUUID != volume.UUID })
}

// noSnapshots refuses a volume that has snapshots.
func (inv *Inventory) noSnapshots(e catalogue.Entry) error {
	all := inv.snapshotsOf(e)
	if len(all) == 0 {
		return nil
	}
	var names []string
	for _, s := range all {
		name := s.UUID
		if s.Job != "" {
			name += " of job " + s.Job
		}
		names = append(names, name)
	}
	return fmt.Errorf("volume %s: %w: it has snapshots (%s): let their backups end, or cancel them", e.Name, ErrInUse, strings.Join(names, ", "))
}

// needsMaster says whether a volume has a snapshot with the volume's own master: what was clear at the cut is read there,
// also once the volume itself is cut loose.
func (inv *Inventory) needsMaster(volume catalogue.Entry) bool {
	return slices.ContainsFunc(inv.snapshotsOf(volume), func(s catalogue.Entry) bool { return s.Master != "" || s.State == catalogue.Creating })
}

// notListed refuses a snapshot that its volume lists and that is not broken. Nothing may be done to its file then, not
// even for a moment.
func (inv *Inventory) notListed(ctx context.Context, e catalogue.Entry) error {
	v, ok := inv.cat.ByUUID(e.VolumeUUID)
	if !ok {
		return fmt.Errorf("%s: its volume is not in the catalogue, so whether it is needed can't be known: `virt-cow volume scan` "+
			"looks for the volume, `virt-cow store delete --force` deletes %s", e.Title(), e.Store)
	}
	h, err := inv.Header(ctx, v.Store)
	if err == nil && h.UUID != v.UUID {
		err = fmt.Errorf("%s holds another volume's store, %s with UUID %s", v.Store, h.Name, h.UUID)
	}
	if err != nil {
		return fmt.Errorf("%s: whether its volume needs it can't be known: %w", e.Title(), err)
	}
	for _, s := range h.Stack {
		if s.UUID == e.UUID && s.State != api.SnapshotBroken {
			return fmt.Errorf("%s: %w: it is in the volume's stack, %s", e.Title(), ErrInUse, s.State)
		}
	}
	return nil
}
