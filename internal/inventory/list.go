package inventory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/catalogue"
)

// Len is how many volumes there are.
func (inv *Inventory) Len() int { return inv.cat.Len() }

// List returns all volumes in the order of their names, damaged records with an Error among them.
func (inv *Inventory) List() []api.VolumeInfo {
	all := []api.VolumeInfo{}
	for _, e := range inv.cat.All() {
		all = append(all, info(e))
	}
	for _, d := range inv.cat.Damaged() {
		all = append(all, api.VolumeInfo{Name: d.Name, Error: d.Err.Error()})
	}
	slices.SortFunc(all, func(a, b api.VolumeInfo) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// showTimeout is for a header that is only shown: what the catalogue has does too.
const showTimeout = 10 * time.Second

// Show tells of one volume, and reads its header again first.
func (inv *Inventory) Show(ctx context.Context, name string) (api.VolumeInfo, error) {
	e, err := inv.cat.ByName(name)
	if err != nil {
		return api.VolumeInfo{}, err
	}
	if e.State != catalogue.Ready {
		return info(e), nil
	}
	ctx, cancel := context.WithTimeout(ctx, showTimeout)
	defer cancel()
	now, err := inv.refresh(ctx, e)
	v := info(now)
	if err != nil {
		v.Error = err.Error()
	}
	return v, nil
}

// refresh takes over what the header of a volume says now.
func (inv *Inventory) refresh(ctx context.Context, e catalogue.Entry) (catalogue.Entry, error) {
	there, err := inv.look(ctx, e.Store)
	switch {
	case err != nil:
		return e, err
	case there == nil:
		return e, fmt.Errorf("there is no store at %s: `virt-cow volume scan` looks for it", e.Store)
	case there.UUID != e.UUID || there.Name != e.Name:
		return e, fmt.Errorf("%s holds another volume's store, %s with UUID %s", e.Store, there.Name, there.UUID)
	}
	now := there.into(e)
	if now == e {
		return e, nil
	}
	if err := inv.cat.Replace(e, now); err != nil && !errors.Is(err, catalogue.ErrChanged) && !errors.Is(err, catalogue.ErrNotFound) {
		return now, err
	}
	return now, nil
}

// Lookup returns the entry of a volume that may be used. ErrNotFound; ErrNotReady while it is made or deleted, or is
// missing.
func (inv *Inventory) Lookup(name string) (catalogue.Entry, error) { return inv.ready(name) }

func (inv *Inventory) ready(name string) (catalogue.Entry, error) {
	e, err := inv.cat.ByName(name)
	switch {
	case err != nil:
		return catalogue.Entry{}, err
	case e.State == catalogue.Missing:
		return catalogue.Entry{}, fmt.Errorf("volume %s: %w: its store was not found at %s: `virt-cow volume scan` looks for it", name, ErrNotReady, e.Store)
	case e.State != catalogue.Ready:
		return catalogue.Entry{}, fmt.Errorf("volume %s: %w: %s", name, ErrNotReady, e.State)
	}
	return e, nil
}

// ByStore finds the volume with this store, by whatever path. It looks at the path, but opens nothing.
func (inv *Inventory) ByStore(path string) (catalogue.Entry, bool) {
	if e, ok := inv.cat.ByStore(path); ok {
		return e, true
	}
	at, ok := inv.looks.thingAt(path)
	if !ok {
		return catalogue.Entry{}, false
	}
	for _, e := range inv.cat.All() {
		if there, ok := inv.looks.thingAt(e.Store); ok && there == at {
			return e, true
		}
	}
	return catalogue.Entry{}, false
}

// maxDepth bounds clones of clones.
const maxDepth = 16

// Devices are the block devices that an engine opens for a volume: its store's, its origin's, its masters', its snapshots'.
func (inv *Inventory) Devices(e catalogue.Entry) []string {
	var devices []string
	add := func(path string) {
		if _, ok := blockDevice(path); ok && !slices.Contains(devices, path) {
			devices = append(devices, path)
		}
	}
	for _, s := range inv.snapshotsOf(e) {
		add(s.Store)
	}
	for range maxDepth {
		add(e.Store)
		add(e.Origin)
		if e.CutLoose || e.Master == "" {
			break
		}
		if path, ok := strings.CutPrefix(e.Master, "raw:"); ok {
			add(path)
			break
		}
		path, ok := strings.CutPrefix(e.Master, "store:")
		if !ok {
			break
		}
		if e, ok = inv.ByStore(path); !ok {
			add(path)
			break
		}
	}
	return devices
}

// Clones are the volumes that need this one's store, or its raw disk, as their master, or whose snapshots do, as far as this
// host's catalogue knows. It must not be written to as long as there are any. A master on a file system that hangs is not waited for: it
// is none that could be served now.
func (inv *Inventory) Clones(name string) []string {
	e, err := inv.cat.ByName(name)
	if err != nil || e.Store == "" {
		return nil
	}
	writes := map[string]string{"store": e.Store}
	if e.Origin != "" {
		writes = map[string]string{"raw": e.Origin}
	}
	var names []string
	same := map[string]bool{} // by master: many clones share one
	for _, c := range inv.cat.All() {
		scheme, path, _ := strings.Cut(c.Master, ":")
		own := writes[scheme]
		if own == "" || c.CutLoose && !inv.needsMaster(c) {
			continue
		}
		is, known := same[c.Master]
		if !known {
			is = inv.looks.sameThing(path, own)
			same[c.Master] = is
		}
		if is {
			names = append(names, c.Name)
		}
	}
	return names
}

// CutLoose records that a volume's hydration is complete: it needs its master no more.
func (inv *Inventory) CutLoose(name string) error {
	for {
		e, err := inv.ready(name)
		if err != nil || e.CutLoose {
			return err
		}
		cut := e
		cut.CutLoose = true
		if err := inv.cat.Replace(e, cut); !errors.Is(err, catalogue.ErrChanged) {
			return err
		}
	}
}
