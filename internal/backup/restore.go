package backup

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// head is what a restore writes last, bytes: with no boot sector and no partition table nothing starts from a disk.
const head = 1 << 20

// restorePiece is how much is read and written at once, bytes, by restoreWorkers.
const (
	restorePiece   = 4 << 20
	restoreWorkers = 4
)

// Restore writes a disk of a backup over a device, which must not be smaller. Its first MiB is zeroed first, and written last,
// each durably: a disk whose restore did not come to its end is never taken for a whole one. Of an empty device, which reads as zeros, the
// holes are left alone. progress, if set, is called from several goroutines.
func Restore(ctx context.Context, from, to blockdev.Device, empty bool, progress func(done int64)) error {
	size := from.Info().Size
	if room := to.Info().Size; room < size {
		return fmt.Errorf("%s has %d bytes, %s needs %d", to.Info().Name, room, from.Info().Name, size)
	}
	first := min(head, size)
	if unit := int64(to.Info().BlockSize); first%unit != 0 || size%unit != 0 {
		return fmt.Errorf("%s has sectors of %d bytes: %s, of %d bytes, does not fit on it", to.Info().Name, unit, from.Info().Name, size)
	}
	if err := zero(to, 0, first); err != nil {
		return err
	}
	if err := to.Flush(); err != nil {
		return err
	}
	r := &restore{from: from, to: to, empty: empty, progress: progress}
	g, working := errgroup.WithContext(ctx)
	g.SetLimit(restoreWorkers)
	for off := first; off < size && working.Err() == nil; off += restorePiece {
		g.Go(func() error { return r.piece(working, off, min(restorePiece, size-off)) })
	}
	if err := errors.Join(g.Wait(), ctx.Err()); err != nil {
		return err
	}
	if err := to.Flush(); err != nil {
		return err
	}
	r.empty = true // zeroed above
	if err := r.piece(ctx, 0, first); err != nil {
		return err
	}
	return to.Flush()
}

// restore is one under way.
type restore struct {
	from, to blockdev.Device
	empty    bool
	progress func(int64)
	done     atomic.Int64
}

func (r *restore) piece(ctx context.Context, off, length int64) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	extents, err := r.from.Extents(off, length)
	if err != nil {
		return err
	}
	hole := true
	for _, e := range extents {
		hole = hole && e.Zero
	}
	switch {
	case !hole:
		err = r.data(off, length)
	case !r.empty:
		err = zero(r.to, off, length)
	}
	if err == nil && r.progress != nil {
		r.progress(r.done.Add(length))
	}
	return err
}

func (r *restore) data(off, length int64) error {
	buf := blockdev.Alloc(int(length))
	defer blockdev.Free(buf)
	if _, err := r.from.ReadAt(buf, off); err != nil {
		return err
	}
	if r.empty && zeros(buf) {
		return nil
	}
	_, err := r.to.WriteAt(buf, off)
	return err
}

// zero makes a range read as zeros.
func zero(to blockdev.Device, off, length int64) error {
	err := to.WriteZeroes(off, length, true)
	if !errors.Is(err, blockdev.ErrNotSupported) {
		return err
	}
	buf := blockdev.Alloc(int(min(length, restorePiece)))
	defer blockdev.Free(buf)
	clear(buf)
	for end := off + length; off < end; off += int64(len(buf)) {
		if _, err := to.WriteAt(buf[:min(int64(len(buf)), end-off)], off); err != nil {
			return err
		}
	}
	return nil
}
