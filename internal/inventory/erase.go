package inventory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/virt-cow/virt-cow/internal/catalogue"
)

// lockWait is how long Recover waits for a process of an earlier daemon.
const lockWait = 5 * time.Second

// Recover undoes what was being created and finishes what was being deleted when the daemon ended, or when a pool
// could not be reached. What can't be done now stays, with the reason in the entry's Error.
func (inv *Inventory) Recover(ctx context.Context) {
	for _, e := range inv.all() {
		if e.State != catalogue.Creating && e.State != catalogue.Deleting {
			continue
		}
		if err := inv.recoverOne(ctx, e); errors.Is(err, errBusy) {
			continue // it is being brought to an end
		} else if err != nil {
			inv.log.Error().Err(err).Str("of", e.Title()).Str("state", string(e.State)).Msg("an interrupted operation can't be brought to an end yet")
		} else {
			inv.log.Info().Str("of", e.Title()).Str("state", string(e.State)).Str("store", e.Store).Msg("an interrupted operation was brought to an end")
		}
	}
}

func (inv *Inventory) recoverOne(ctx context.Context, e catalogue.Entry) error {
	leave, err := inv.enter(ctx, e.Name)
	if err != nil {
		return err
	}
	defer leave()
	if now, ok := inv.byUUID(e.UUID); !ok || now.State != e.State {
		return nil // whoever held it is done
	}
	return inv.eraseAlone(ctx, e.UUID)
}

// eraseAlone is erase once no process of an earlier daemon works on the volume any more.
func (inv *Inventory) eraseAlone(ctx context.Context, id string) error {
	waiting, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	lock, err := inv.program.makingLock(waiting, id)
	if err != nil {
		return inv.note(id, err)
	}
	defer inv.program.madeUnlock(lock)
	return inv.erase(ctx, lock, id)
}

// erase removes a volume or snapshot that is being created or deleted, with its store, and then its entry. It may be called
// again after a crash at any point. An error is noted in the entry.
func (inv *Inventory) erase(ctx context.Context, lock *os.File, id string) error {
	e, ok := inv.byUUID(id)
	if !ok {
		return nil
	}
	err := inv.eraseStore(ctx, lock, e)
	if err == nil && e.Made {
		err = inv.unmake(ctx, e)
	}
	switch {
	case err == nil:
		return inv.of(e).Remove(e.Name)
	case e.State == catalogue.Deleting && errors.Is(err, ErrInUse): // nothing was deleted
		e.State, e.Error = catalogue.Ready, ""
		return errors.Join(err, inv.of(e).Update(e))
	}
	return inv.note(id, err)
}

// eraseStore removes the store if it is this volume's. It is no error if there is none.
func (inv *Inventory) eraseStore(ctx context.Context, lock *os.File, e catalogue.Entry) error {
	if e.Store == "" && e.Made { // made, perhaps, and then the daemon was killed
		path, err := inv.findMade(ctx, e)
		if err != nil || path == "" {
			return err
		}
		e.Store = path
	}
	if e.Store == "" {
		return nil
	}
	there, err := inv.look(ctx, e.Store)
	switch {
	case err != nil:
		return err
	case there != nil && there.UUID != e.UUID && e.Made:
		return fmt.Errorf("%s, which %s made for %s, holds another store now, of volume %s: nothing was deleted", e.Store, placeName(e), e.Title(), there.Name)
	case there != nil && there.UUID == e.UUID:
		if e.Snapshot() {
			if err := inv.notListed(ctx, e); err != nil {
				return err
			}
		}
		if _, block := blockDevice(e.Store); block {
			return inv.deleteStore(ctx, lock, e, e.Store)
		}
		// Under a name that is this volume's alone: what a crash leaves of it is known for what it is.
		if err := setAside(e); err != nil {
			return err
		}
	}
	return inv.eraseAside(ctx, lock, e)
}

func (inv *Inventory) deleteStore(ctx context.Context, lock *os.File, e catalogue.Entry, path string) error {
	args := []string{"store", "delete", "--uuid", e.UUID}
	if v, ok := inv.cat.ByUUID(e.VolumeUUID); ok && v.Store != "" { // a snapshot's: it is asked whether it lists it
		args = append(args, "--volume", v.Store)
	}
	return inv.call(ctx, nil, lock, append(args, "--", path)...)
}

// setAside gives a volume's file its temporary name, durably.
func setAside(e catalogue.Entry) error {
	tmp := temporary(e.Store, e.UUID)
	// Both are one file if `store create` was killed between two steps: then a rename would do nothing.
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return rename(e.Store, tmp)
}

// eraseAside removes what has the volume's temporary name: a store that a killed `store create` did not end, or one
// that was set aside.
func (inv *Inventory) eraseAside(ctx context.Context, lock *os.File, e catalogue.Entry) error {
	tmp := temporary(e.Store, e.UUID)
	if _, err := os.Lstat(tmp); err != nil {
		return nil
	}
	there, err := inv.look(ctx, tmp)
	switch {
	case err == nil && there != nil && there.UUID == e.UUID:
		err := inv.deleteStore(ctx, lock, e, tmp)
		if _, taken := os.Lstat(e.Store); errors.Is(err, ErrInUse) && taken != nil {
			err = errors.Join(err, rename(tmp, e.Store))
		}
		return err
	case err != nil && e.State == catalogue.Deleting:
		return err
	}
	return os.Remove(tmp)
}

func rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// note records why an entry is still there.
func (inv *Inventory) note(id string, why error) error {
	e, ok := inv.byUUID(id)
	if !ok || e.Error == why.Error() {
		return why
	}
	e.Error = why.Error()
	return errors.Join(why, inv.of(e).Update(e))
}
