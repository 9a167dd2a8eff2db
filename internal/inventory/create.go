package inventory

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/catalogue"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// Create makes a volume. When it fails nothing of it is left.
func (inv *Inventory) Create(ctx context.Context, r api.CreateRequest) (api.VolumeInfo, error) {
	if err := checkCreate(r); err != nil {
		return api.VolumeInfo{}, err
	}
	master, of, err := inv.master(r)
	if err != nil {
		return api.VolumeInfo{}, err
	}
	leave, err := inv.enter(ctx, r.Name, of)
	if err != nil {
		return api.VolumeInfo{}, err
	}
	defer leave()
	if of != "" { // it may have been deleted before it was held
		if _, err := inv.ready(of); err != nil {
			return api.VolumeInfo{}, err
		}
	}
	e := catalogue.Entry{Name: r.Name, UUID: uuid.NewString(), State: catalogue.Creating}
	if err := inv.nameFree(e.Name); err != nil {
		return api.VolumeInfo{}, err
	}
	if err := inv.intend(ctx, r, &e); err != nil {
		return api.VolumeInfo{}, fmt.Errorf("volume %s: %w", r.Name, err)
	}
	var what []string
	if r.Size != 0 {
		what = append(what, "--size", strconv.FormatInt(r.Size, 10))
	}
	if master != "" {
		what = append(what, "--master", master)
	}
	if r.ChunkSize != 0 {
		what = append(what, "--chunk", strconv.FormatInt(r.ChunkSize, 10))
	}
	var need sized
	if err := inv.call(ctx, &need, nil, append([]string{"store", "size"}, what...)...); err != nil {
		return api.VolumeInfo{}, fmt.Errorf("volume %s: %w", r.Name, err)
	}
	if r.Force {
		what = append(what, "--force")
	}
	what = append(what, "--name", e.Name)
	return infoOf(inv.create(ctx, e, need.Room, what))
}

func checkCreate(r api.CreateRequest) error {
	if err := cowfmt.ValidName(r.Name); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	places := 0
	for _, p := range []string{r.Store, r.Pool, r.Provider} {
		if p != "" {
			places++
		}
	}
	switch {
	case r.Master != "" && r.From != "":
		return fmt.Errorf("%w: a clone has one master, not both %s and volume %s", ErrInvalid, r.Master, r.From)
	case r.Master == "" && r.From == "" && r.Size == 0:
		return fmt.Errorf("%w: volume %s: say what to make: a size, a master, or both", ErrInvalid, r.Name)
	case r.Size < 0 || r.ChunkSize < 0:
		return fmt.Errorf("%w: volume %s: a negative size", ErrInvalid, r.Name)
	case places > 1:
		return fmt.Errorf("%w: volume %s: a store is at a path, in a pool, or a provider's: choose one", ErrInvalid, r.Name)
	case r.LUN != "" && r.Pool == "":
		return fmt.Errorf("%w: volume %s: a LUN without the pool it is in", ErrInvalid, r.Name)
	}
	return nil
}

// master returns a new volume's master as the program wants it, and the volume of the catalogue that it is, if it
// is one.
func (inv *Inventory) master(r api.CreateRequest) (master, of string, err error) {
	if r.From != "" {
		from, err := inv.ready(r.From)
		if err != nil {
			return "", "", err
		}
		if from.Role == cowfmt.RoleState.String() {
			return "raw:" + from.Origin, from.Name, nil
		}
		return "store:" + from.Store, from.Name, nil
	}
	scheme, path, ok := strings.Cut(r.Master, ":")
	switch {
	case r.Master == "", strings.HasPrefix(r.Master, "nbd"), ok && strings.HasPrefix(path, "//"):
		return r.Master, "", nil // the program knows which it can read
	case !ok || scheme != "store" && scheme != "raw":
		scheme, path = "", r.Master
	}
	if !filepath.IsAbs(path) {
		return "", "", fmt.Errorf("%w: master %s: not an absolute path", ErrInvalid, r.Master)
	}
	if err := inv.devices.stable(path); err != nil {
		return "", "", err
	}
	if scheme == "store" {
		if e, ok := inv.ByStore(path); ok {
			return r.Master, e.Name, nil
		}
	}
	return r.Master, "", nil
}

// nameFree: names are unique, damaged records included.
func (inv *Inventory) nameFree(name string) error {
	if err := notReserved(name); err != nil {
		return err
	}
	switch e, err := inv.cat.ByName(name); {
	case err == nil:
		return fmt.Errorf("volume name %s %w, by the one with store %s (%s)", name, ErrExists, e.Store, e.State)
	case !errors.Is(err, ErrNotFound):
		return fmt.Errorf("volume name %s %w: %w", name, ErrExists, err)
	}
	return nil
}

// notReserved refuses the names whose sockets are others'.
func notReserved(name string) error {
	switch name + ".sock" {
	case api.DaemonSocket:
		return fmt.Errorf("%w: volume name %s: its socket would be the daemon's", ErrInvalid, name)
	case api.NodeSocket:
		return fmt.Errorf("%w: volume name %s: its socket would be the image node's", ErrInvalid, name)
	}
	return nil
}

// create makes the volume or snapshot of an entry whose place was chosen, of room bytes, what being the flags of `store
// create`. Nothing is left when it fails, or an entry with the reason, which Recover or Delete get rid of.
func (inv *Inventory) create(ctx context.Context, e catalogue.Entry, room int64, what []string) (catalogue.Entry, error) {
	lock, err := inv.program.makingLock(ctx, e.UUID)
	if err != nil {
		return e, err
	}
	defer inv.program.madeUnlock(lock)
	err = inv.of(e).Add(e)
	if err == nil {
		e, err = inv.carryOut(ctx, lock, e, room, what)
	}
	if err == nil {
		inv.log.Info().Str("store", e.Store).Msg(e.Title() + " made")
		return e, nil
	}
	err = fmt.Errorf("%s: %w", e.Title(), err)
	if _, there := inv.byUUID(e.UUID); !there {
		return e, err
	}
	// Not with the caller's context: that may be what ended it.
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if undone := inv.erase(undo, lock, e.UUID); undone != nil {
		err = fmt.Errorf("%w; and what was begun could not be undone: %w; %s", err, undone, again(e))
	}
	return e, err
}

// again says how what could not be brought to an end is tried once more.
func again(e catalogue.Entry) string {
	if e.Snapshot() {
		return "it is tried again when the daemon starts"
	}
	return fmt.Sprintf("`virt-cow volume delete %s` tries again", e.Name)
}

func (inv *Inventory) carryOut(ctx context.Context, lock *os.File, e catalogue.Entry, room int64, what []string) (catalogue.Entry, error) {
	onto := false
	if e.Made {
		path, err := inv.make(ctx, e, room)
		if err != nil {
			return e, err
		}
		e.Store = path
		if err := inv.of(e).Update(e); err != nil {
			return e, err
		}
		if err := inv.devices.stable(path); err != nil {
			return e, err
		}
	}
	if e.Pool != "" || e.Provider != "" {
		_, block := blockDevice(e.Store)
		onto = !block
	} else if filepath.Dir(e.Store) == inv.config.StoreDir {
		if err := os.MkdirAll(inv.config.StoreDir, 0o750); err != nil {
			return e, err
		}
	}
	args := append([]string{"store", "create", "--uuid", e.UUID}, what...)
	if onto {
		args = append(args, "--onto")
	}
	if err := inv.call(ctx, nil, lock, append(args, "--", e.Store)...); err != nil {
		return e, err
	}
	got, err := inv.look(ctx, e.Store)
	switch {
	case err != nil:
		return e, err
	case got == nil || got.UUID != e.UUID:
		return e, fmt.Errorf("%s: is not the store that was just made there", e.Store)
	}
	e = got.into(e)
	e.State = catalogue.Ready
	return e, inv.of(e).Update(e)
}

// call runs the program for a moment; it keeps the lock, if there is one, for as long as it runs.
func (inv *Inventory) call(ctx context.Context, out any, lock *os.File, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var keep []*os.File
	if lock != nil {
		keep = []*os.File{lock}
	}
	return inv.program.run(ctx, out, keep, args...)
}

func infoOf(e catalogue.Entry, err error) (api.VolumeInfo, error) {
	if err != nil {
		return api.VolumeInfo{}, err
	}
	return info(e), nil
}

// info is an entry as the control API tells of it.
func info(e catalogue.Entry) api.VolumeInfo {
	return api.VolumeInfo{
		Name: e.Name, UUID: e.UUID, State: string(e.State), Store: e.Store, Role: e.Role, Size: e.Size, ChunkSize: e.ChunkSize,
		Master: e.Master, Origin: e.Origin, CutLoose: e.CutLoose, Pool: e.Pool, Provider: e.Provider, Created: e.Created, Error: e.Error,
	}
}
