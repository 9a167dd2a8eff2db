package serve

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/reserve"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/engine"
	"github.com/virt-cow/virt-cow/internal/store"
)

// stackOpener opens the snapshot stores of a volume.
type stackOpener struct {
	config Config
	paths  map[uuid.UUID]string // on this host, where the header's are not right here
	owner  cowfmt.Owner
	log    zerolog.Logger
}

// stackPaths reads the paths of snapshot stores in a spec, by UUID.
func stackPaths(snapshots map[string]string) (map[uuid.UUID]string, error) {
	out := map[uuid.UUID]string{}
	for text, path := range snapshots {
		id, err := uuid.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("snapshots: UUID %q: %w", text, err)
		}
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("snapshots: %s: %q: not an absolute path", text, path)
		}
		out[id] = path
	}
	return out, nil
}

// open opens the store of a stack's entry past the page cache, and holds its device and its UUID until it is closed.
func (o *stackOpener) open(ctx context.Context, e cowfmt.StackEntry) (on *store.Snapshot, closing func() error, err error) {
	path := e.Locator.Address
	if here, ok := o.paths[e.UUID]; ok {
		path = here
	}
	if e.Locator.Kind != cowfmt.LocatorStore {
		return nil, nil, fmt.Errorf("snapshot %v: this program can't keep one in %v", e.UUID, e.Locator.Kind)
	}
	f, err := blockdev.OpenFile(ctx, path, blockdev.FileOptions{Direct: true})
	if err != nil {
		return nil, nil, fmt.Errorf("snapshot %v: %w", e.UUID, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	// A look first: what is another store may be locked for good.
	if err = isSnapshot(f, e.UUID); err != nil {
		return nil, nil, fmt.Errorf("snapshot %v: %w", e.UUID, err)
	}
	// A predecessor that was killed keeps its lock until its last write has landed.
	waiting, cancel := context.WithTimeout(ctx, o.config.LockWait)
	defer cancel()
	if err = f.Lock(waiting, blockdev.LockExclusive); err == nil {
		err = o.register(f)
	}
	if err == nil {
		on, err = store.OpenSnapshot(engine.NewLatch(f))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("snapshot %v: %w", e.UUID, err)
	}
	lock, err := lockUUID(waiting, o.config.RunDir, on.Header(), false)
	if err != nil {
		return nil, nil, err
	}
	return on, func() error { return errors.Join(lock.Close(), f.Close()) }, nil
}

func isSnapshot(f *blockdev.File, id uuid.UUID) error {
	s, err := store.OpenSnapshot(f)
	if err != nil {
		return err
	}
	if h := s.Header(); h.UUID != id {
		return fmt.Errorf("%s holds %v", s.Name(), h.UUID)
	}
	return nil
}

// register lets this host write to a snapshot's LUN where others are kept from it. Nobody is shut out: a takeover by force
// breaks all snapshots, so that nothing which a dead host still writes there is believed.
func (o *stackOpener) register(f *blockdev.File) error {
	if !o.config.Reservations {
		return nil
	}
	can, err := reserve.Supported(f)
	if err != nil || !can {
		return advise(err)
	}
	return advise(reserve.Register(f, reserve.Key(o.owner.Host, o.owner.Boot)))
}

// maxSaveTimeout bounds how long a guest's write may wait for a snapshot.
const maxSaveTimeout = 10 * time.Minute
