package backup

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/master"
	"github.com/virt-cow/virt-cow/internal/reader"
	"github.com/virt-cow/virt-cow/internal/store"
)

// luns reads disks straight from where they are.
type luns struct {
	*finder
	log zerolog.Logger
}

// NewSources finds disks in places.
func NewSources(p Places, log zerolog.Logger) Sources { return &luns{newFinder(p), log} }

// Owner implements Sources.
func (l *luns) Owner(ctx context.Context, d *api.ManifestDisk) (Standing, error) {
	dev, err := l.store(ctx, d.Store)
	if err != nil {
		return Standing{}, err
	}
	defer dev.Close()
	choice, err := store.Peek(dev)
	if err != nil {
		return Standing{}, err
	}
	return standing(choice.Header), nil
}

func standing(h *cowfmt.Header) Standing {
	s := Standing{Epoch: h.Epoch}
	if o := h.Owner; o != nil {
		s.Owned, s.Address, s.Name = true, o.Address, orElse(o.HostName, o.Host.String())
	}
	return s
}

// lun is a disk that is open.
type lun struct {
	*reader.View
	under []io.Closer // the last that was opened last
}

// Open implements Sources.
func (l *luns) Open(ctx context.Context, d *api.ManifestDisk) (Source, error) {
	s := &lun{}
	if err := l.open(ctx, d, s); err != nil {
		if !errors.Is(err, ErrNotSeen) { // a host may see it
			err = judge(err)
		}
		return nil, errors.Join(err, s.closeUnder())
	}
	return s, nil
}

func (l *luns) open(ctx context.Context, d *api.ManifestDisk, s *lun) error {
	volume, err := l.store(ctx, d.Store)
	if err != nil {
		return fmt.Errorf("volume %s: %w", d.Volume, err)
	}
	s.under = append(s.under, volume)
	choice, err := store.Peek(volume)
	if err != nil {
		return err
	}
	h := choice.Header
	if h.UUID.String() != d.UUID {
		return fmt.Errorf("%w: store %s is of volume %v, not of %s", ErrGivenUp, volume.Info().Name, h.UUID, d.UUID)
	}
	// First, as the snapshot's device may be what broke it. A copy of the header that says so is right, however old.
	for _, e := range h.Stack {
		if e.UUID.String() == d.Snapshot && e.State == cowfmt.StackBroken {
			return fmt.Errorf("%s: volume %s: %w: %s", volume.Info().Name, h.Name, reader.ErrBroken, d.Snapshot)
		}
	}
	c := reader.Config{Volume: volume, SnapshotUUID: uuid.MustParse(d.Snapshot), Log: l.log} // checked by checkManifest

	saves, err := l.store(ctx, d.Saves)
	if err != nil {
		return fmt.Errorf("snapshot of %s: %w", d.Volume, err)
	}
	s.under = append(s.under, saves)
	c.Snapshot = saves
	snapshot, err := store.OpenSnapshot(saves)
	if err != nil {
		return err
	}
	c.Cut = snapshot.Header().Cut
	if h.Role == cowfmt.RoleState {
		if err := l.origin(ctx, d, h, s, &c); err != nil {
			return err
		}
	}
	if snapshot.HasFrozen() && snapshot.Header().Master != nil {
		if err := l.master(ctx, d, snapshot.Header(), s, &c); err != nil {
			return err
		}
	}
	if s.View, err = reader.Open(ctx, c); err != nil {
		return err
	}
	if size := s.Info().Size; size != d.Size {
		return fmt.Errorf("%w: the snapshot of %s has %d bytes, the manifest says %d", ErrGivenUp, d.Volume, size, d.Size)
	}
	return nil
}

// origin opens the raw disk of a state store.
func (l *luns) origin(ctx context.Context, d *api.ManifestDisk, h *cowfmt.Header, s *lun, c *reader.Config) error {
	if d.Origin == nil {
		return fmt.Errorf("%w: the manifest does not say where the raw disk of volume %s is", ErrGivenUp, d.Volume)
	}
	raw, err := l.raw(ctx, *d.Origin)
	if err != nil {
		return fmt.Errorf("volume %s: %w", d.Volume, err)
	}
	s.under = append(s.under, raw)
	c.Origin = raw
	return otherThing(master.CheckOrigin(raw, h.OriginIdentity))
}

// master opens what a clone is made of, wherever that is on this host: its identity says whether it is the right one.
func (l *luns) master(ctx context.Context, d *api.ManifestDisk, snapshot *cowfmt.Header, s *lun, c *reader.Config) error {
	at := *snapshot.Master
	switch {
	case at.Kind == cowfmt.LocatorNBD:
	case d.Master == nil:
		return fmt.Errorf("%w: the manifest does not say where the master of volume %s is", ErrGivenUp, d.Volume)
	case at.Kind == cowfmt.LocatorStore:
		found, err := l.store(ctx, *d.Master)
		if err != nil {
			return fmt.Errorf("master of volume %s: %w", d.Volume, err)
		}
		at.Address = found.Info().Name
		if err := found.Close(); err != nil {
			return err
		}
	default:
		found, err := l.raw(ctx, *d.Master)
		if err != nil {
			return fmt.Errorf("master of volume %s: %w", d.Volume, err)
		}
		at.Address = found.Info().Name
		if err := found.Close(); err != nil {
			return err
		}
	}
	dev, err := master.Open(ctx, at, snapshot.MasterIdentity, l.log)
	if err != nil {
		return fmt.Errorf("master of volume %s: %w", d.Volume, otherThing(err))
	}
	s.under = append(s.under, dev)
	c.Master = dev
	return nil
}

// otherThing says of what is something else than it should be that the right one is not seen: on another host it may be there.
func otherThing(err error) error {
	if errors.Is(err, master.ErrWrong) {
		return fmt.Errorf("%w: %w", ErrNotSeen, err)
	}
	return err
}

// ReadAt implements Source.
func (s *lun) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.View.ReadAt(p, off)
	return n, judge(err)
}

// Extents implements Source.
func (s *lun) Extents(off, length int64) ([]blockdev.Extent, error) {
	e, err := s.View.Extents(off, length)
	return e, judge(err)
}

// Look implements Source.
func (s *lun) Look(ctx context.Context, released int64) (Standing, error) {
	h, err := s.Verify(ctx, released)
	if err != nil {
		return Standing{}, judge(err)
	}
	return standing(h), nil
}

// Via implements Source.
func (s *lun) Via() (via, why string) { return "lun", "" }

// Close implements Source.
func (s *lun) Close() error { return errors.Join(s.View.Close(), s.closeUnder()) }

func (s *lun) closeUnder() error {
	var err error
	for i := len(s.under) - 1; i >= 0; i-- {
		err = errors.Join(err, s.under[i].Close())
	}
	return err
}

// judge says of what can't get better that it can't.
func judge(err error) error {
	if errors.Is(err, reader.ErrBroken) || errors.Is(err, reader.ErrReleased) || errors.Is(err, reader.ErrGone) || errors.Is(err, master.ErrWrong) {
		return fmt.Errorf("%w: %w", ErrGivenUp, err)
	}
	return err
}
