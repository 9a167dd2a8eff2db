package inventory

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/catalogue"
	"github.com/virt-cow/virt-cow/internal/plugin"
)

// Delete removes a volume with its store, or without. It refuses one that is used, that clones need, or that a
// plugin wants kept. A raw disk beside a state store always stays.
func (inv *Inventory) Delete(ctx context.Context, name string, r api.DeleteRequest) (api.VolumeInfo, error) {
	leave, err := inv.enter(ctx, name)
	if err != nil {
		return api.VolumeInfo{}, err
	}
	defer leave()
	e, err := inv.cat.ByName(name)
	if err != nil {
		return api.VolumeInfo{}, err
	}
	was := info(e)
	if e.State == catalogue.Ready || e.State == catalogue.Missing {
		if err := inv.mayDelete(ctx, e, r.KeepStore); err != nil {
			return was, err
		}
	}
	if r.KeepStore {
		// Of one that is being created: what was made of it is the operator's now.
		inv.log.Info().Str("volume", name).Str("store", e.Store).Msg("volume forgotten, its store kept")
		return was, inv.cat.Remove(name)
	}
	if e.State == catalogue.Missing {
		return was, fmt.Errorf("volume %s: %w: its store was not found at %s: `virt-cow volume scan` looks for it, "+
			"`virt-cow volume delete --keep-store %s` forgets it", name, ErrNotReady, e.Store, name)
	}
	return was, inv.delete(ctx, e)
}

func (inv *Inventory) delete(ctx context.Context, e catalogue.Entry) error {
	if e.State == catalogue.Ready {
		before := e
		e.State, e.Error = catalogue.Deleting, ""
		if err := inv.of(e).Update(e); err != nil {
			return err
		}
		var err error
		if !e.Snapshot() {
			if err = inv.unused(e.Name); err == nil {
				err = inv.isOurs(ctx, e)
			}
		}
		if err != nil { // nothing was deleted yet
			if undone := inv.of(e).Update(before); undone != nil {
				err = fmt.Errorf("%w; and %w", err, undone)
			}
			return err
		}
	}
	// From here on it is finished, whatever comes, unless the store turns out to be in use.
	finish, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if err := inv.eraseAlone(finish, e.UUID); err != nil {
		return fmt.Errorf("%s: %w; %s", e.Title(), err, again(e))
	}
	inv.log.Info().Str("store", e.Store).Msg(e.Title() + " deleted")
	return nil
}

// mayDelete asks all that may want a volume kept.
func (inv *Inventory) mayDelete(ctx context.Context, e catalogue.Entry, keepStore bool) error {
	if err := inv.unused(e.Name); err != nil {
		return err
	}
	if !keepStore {
		if err := inv.noSnapshots(e); err != nil {
			return err
		}
	}
	if !keepStore && e.Origin == "" { // a raw disk stays, and is what its clones need
		if err := inv.noClones(ctx, e); err != nil {
			return err
		}
	}
	if inv.config.Veto == nil {
		return nil
	}
	if err := inv.config.Veto(ctx, plugin.EventDelete, info(e)); err != nil {
		return fmt.Errorf("volume %s: %w: %w", e.Name, ErrVetoed, err)
	}
	return nil
}

func (inv *Inventory) unused(name string) error {
	if inv.config.InUse == nil {
		return nil
	}
	domain, used := inv.config.InUse(name)
	switch {
	case !used:
		return nil
	case domain == "":
		return fmt.Errorf("volume %s: %w: it is served: `virt-cow volume stop %s` ends that", name, ErrInUse, name)
	}
	return fmt.Errorf("volume %s: %w by domain %s: `virt-cow detach %s %s` takes it from there", name, ErrInUse, domain, domain, name)
}

// noClones asks the headers of what the catalogue takes for clones: one may have been cut loose since.
func (inv *Inventory) noClones(ctx context.Context, e catalogue.Entry) error {
	var need []string
	for _, name := range inv.Clones(e.Name) {
		c, err := inv.cat.ByName(name)
		if err != nil {
			continue // deleted meanwhile
		}
		if c.State == catalogue.Ready {
			if now, err := inv.refresh(ctx, c); err == nil && now.CutLoose && !inv.needsMaster(now) {
				continue
			}
		}
		need = append(need, name)
	}
	if len(need) == 0 {
		return nil
	}
	what := "volume " + need[0] + " is a clone of it"
	if len(need) > 1 {
		what = "volumes " + strings.Join(need, ", ") + " are clones of it"
	}
	return fmt.Errorf("volume %s: %w: %s: delete them first, or let them hydrate until they are cut loose and their snapshots are gone", e.Name, ErrInUse, what)
}

// isOurs refuses to delete a volume whose store is not, or not certainly, where the catalogue says.
func (inv *Inventory) isOurs(ctx context.Context, e catalogue.Entry) error {
	there, err := inv.look(ctx, e.Store)
	switch {
	case err != nil:
		return fmt.Errorf("volume %s: its store can't be examined: %w; `virt-cow volume delete --keep-store %s` forgets it", e.Name, err, e.Name)
	case there == nil:
		return fmt.Errorf("volume %s: %w: there is no store at %s: `virt-cow volume scan` looks for it, "+
			"`virt-cow volume delete --keep-store %s` forgets it", e.Name, ErrNotReady, e.Store, e.Name)
	case there.UUID != e.UUID:
		return fmt.Errorf("volume %s: %s holds another volume's store, %s with UUID %s: `virt-cow volume scan` looks for this one's",
			e.Name, e.Store, there.Name, there.UUID)
	}
	if st, err := os.Lstat(e.Store); err != nil {
		return fmt.Errorf("volume %s: %w", e.Name, err)
	} else if _, block := blockDevice(e.Store); !block && st.Mode()&os.ModeSymlink != 0 {
		file, _ := filepath.EvalSymlinks(e.Store)
		return fmt.Errorf("volume %s: %s is a symbolic link by now, and the store is %s: nothing was deleted: put the store in the link's place; "+
			"or `virt-cow volume delete --keep-store %s` forgets the volume, and `virt-cow store delete` deletes the store", e.Name, e.Store, file, e.Name)
	}
	return nil
}
