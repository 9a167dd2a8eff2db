package archive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/object"
)

// about is archive.json.
type about struct {
	Version int         `json:"version"`
	Meta    Meta        `json:"meta"`
	Stats   Stats       `json:"stats"`
	Disks   []aboutDisk `json:"disks"`
}

type aboutDisk struct {
	Name  string   `json:"name"`
	File  string   `json:"file"`
	Size  int64    `json:"size"`
	Piece int64    `json:"piece"`
	Zero  []string `json:"zero,omitempty"` // the objects that are pieces of zeros
}

// Finish enters the backup into the archive, with manifest as backup.json, takes its checkpoints out, closes, and returns the
// backup's id. All disks must be written. After an error it may be tried again; the backup is in the archive once at most.
func (w *Writer) Finish(ctx context.Context, manifest []byte) (string, error) {
	w.saving.Lock()
	defer w.saving.Unlock()
	ctx = w.context(ctx)
	if err := w.enter(ctx, manifest); err != nil {
		return "", w.failed(err)
	}
	if err := w.rep.Flush(ctx); err != nil {
		return "", w.failed(err)
	}
	id := string(w.id)
	if err := w.Close(ctx); err != nil {
		w.a.config.Log.Warn().Err(err).Str("backup", id).Msg("closing a finished backup")
	}
	return id, nil
}

// enter hands everything to kopia, once: what is tried again after an error is to make it durable.
func (w *Writer) enter(ctx context.Context, manifest []byte) error {
	if w.id != "" {
		return nil
	}
	w.mu.Lock()
	files, disks := maps.Clone(w.files), maps.Clone(w.disks)
	ab := about{Version: 1, Meta: w.meta, Stats: w.stats}
	ab.Stats.Written += w.uploaded.Load()
	w.mu.Unlock()

	t := newTree()
	for _, name := range slices.Sorted(maps.Keys(disks)) {
		d := disks[name]
		s, err := d.finish(ctx)
		if err != nil {
			return fmt.Errorf("disk %s: %w", name, err)
		}
		if err := t.add(name+image, s); err != nil {
			return err
		}
		ab.Disks = append(ab.Disks, aboutDisk{Name: name, File: name + image, Size: d.size, Piece: d.piece, Zero: w.zeroOf(d.geometry)})
	}
	own, err := json.Marshal(ab)
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{manifestFile: manifest, metaFile: own} {
		id, err := put(ctx, w.rep, name, data)
		if err != nil {
			return err
		}
		files[name] = stored{ID: id, Size: int64(len(data))}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := t.add(name, files[name]); err != nil {
			return err
		}
	}
	// Other checkpoints of the job than our own are of an attempt that its maker has forgotten.
	if err := forget(ctx, w.rep, w.meta.Job); err != nil {
		return err
	}
	s, err := w.keep(ctx, t, "")
	if err != nil {
		return err
	}
	w.id = s.ID
	return nil
}

// zeroOf are the names of the pieces of zeros that an image may have.
func (w *Writer) zeroOf(g geometry) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, length := range slices.Compact([]int64{g.piece, g.length(g.count() - 1)}) {
		if id, ok := w.zero[length]; ok {
			out = append(out, id.String())
		}
	}
	return out
}

// finish composes the image.
func (d *DiskWriter) finish(ctx context.Context) (stored, error) {
	d.mu.Lock()
	table := slices.Clone(d.table)
	d.mu.Unlock()
	if first := slices.Index(table, object.EmptyID); first >= 0 {
		return stored{}, fmt.Errorf("not all of it was written: piece %d is missing", first)
	}
	id, err := compose(ctx, d.w.rep, d.name, func(yield func(object.ID, int64) bool) {
		for i, id := range table {
			if !yield(id, d.length(i)) {
				return
			}
		}
	})
	return stored{ID: id, Size: d.size}, err
}

// forget takes the checkpoints of a job out of kopia's list.
func forget(ctx context.Context, w repo.RepositoryWriter, job string) error {
	found, err := snapshots(ctx, w, map[string]string{tagJob: job})
	if err != nil {
		return err
	}
	for _, s := range found {
		if s.IncompleteReason == "" {
			return fmt.Errorf("it is backup %s: %w", s.ID, ErrFinished)
		}
		if err := w.DeleteManifest(ctx, s.ID); err != nil {
			return err
		}
	}
	return nil
}

// Forget takes the checkpoints of a job out of the archive, of which no writer is open: a job that was given up. There may be none.
func (a *Archive) Forget(ctx context.Context, job string) error {
	if err := a.refresh(ctx); err != nil {
		return err
	}
	return a.write(ctx, "forget "+job, func(ctx context.Context, w repo.DirectRepositoryWriter) error {
		if err := forget(ctx, w, job); !errors.Is(err, ErrFinished) {
			return err
		}
		return nil
	})
}
