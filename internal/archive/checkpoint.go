package archive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/repo/object"
)

// A checkpoint is a snapshot that is marked incomplete. In its folder are the small files, and of each disk *segments*: objects composed
// of the pieces that were new at a checkpoint. state.json says what is what. So a checkpoint costs what is new since the last one, the
// bytes that the caller keeps are a name only, and kopia's garbage collection, which may run at any time on any host, keeps all that is
// in it, also over days in which the job waits.
//
// The newest checkpoint of a job has all that those before it have, so it is taken whichever the caller has kept the name of: a
// process may die between writing one and noting it.

// checkpointed marks such snapshots.
const checkpointed = "virt-cow checkpoint"

// maxSegments bounds those of a disk; then they become one.
const maxSegments = 32

// segment is a composed object of some pieces of a disk.
type segment struct {
	stored
	Runs []run `json:"runs"` // in the order of the pieces in it
}

// run is a run of pieces: from the first, so many.
type run [2]int

// state is state.json.
type state struct {
	Version int               `json:"version"`
	Seq     uint64            `json:"seq"`
	Meta    Meta              `json:"meta"`
	Stats   Stats             `json:"stats"`
	Zero    map[int64]string  `json:"zero"`
	Disks   []diskState       `json:"disks"`
	Files   map[string]stored `json:"files"`
}

type diskState struct {
	Name     string    `json:"name"`
	Size     int64     `json:"size"`
	Piece    int64     `json:"piece"`
	Segments []segment `json:"segments"`
}

const stateFile = "state.json"

// token is what the caller keeps.
type token struct {
	Version int    `json:"version"`
	Job     string `json:"job"`
	Seq     uint64 `json:"seq"`
}

// parseToken reads what Checkpoint has returned.
func parseToken(b []byte) (t token, err error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	switch err = d.Decode(&t); {
	case err != nil:
	case d.More():
		err = errors.New("more than one")
	case t.Version != 1:
		err = fmt.Errorf("version %d is not known", t.Version)
	case t.Job == "" || len(t.Job) > maxText || t.Seq == 0:
		err = errors.New("no job in it")
	}
	if err != nil {
		return token{}, fmt.Errorf("%w: %w", ErrCheckpoint, err)
	}
	return t, nil
}

// Checkpoint makes durable what was written before it was called, and returns what another process needs to Resume: a few bytes. After
// an error the checkpoint before is still good.
func (w *Writer) Checkpoint(ctx context.Context) ([]byte, error) {
	w.saving.Lock()
	defer w.saving.Unlock()
	ctx = w.context(ctx)
	st, t, undo, err := w.gather(ctx)
	if err == nil {
		err = w.save(ctx, st, t)
	}
	if err != nil {
		undo()
		return nil, w.failed(fmt.Errorf("checkpoint: %w", err))
	}
	return json.Marshal(token{Version: 1, Job: w.meta.Job, Seq: st.Seq})
}

// gather writes the segments of what is new. undo makes it new again.
func (w *Writer) gather(ctx context.Context) (st state, t *tree, undo func(), err error) {
	w.mu.Lock()
	disks := slices.SortedFunc(maps.Values(w.disks), func(a, b *DiskWriter) int { return strings.Compare(a.name, b.name) })
	w.mu.Unlock()

	var undos []func()
	undo = func() {
		for _, u := range undos {
			u()
		}
	}
	t = newTree()
	st = state{Version: 1, Meta: w.meta, Zero: map[int64]string{}}
	for _, d := range disks {
		segments, u, err := d.segment(ctx)
		undos = append(undos, u)
		if err != nil {
			return st, t, undo, err
		}
		st.Disks = append(st.Disks, diskState{Name: d.name, Size: d.size, Piece: d.piece, Segments: segments})
		for i, s := range segments {
			t.files[fmt.Sprintf("%s.%d", d.name, i)] = s.stored
		}
	}
	w.mu.Lock() // after the segments: whatever name of zeros is in them is known here
	defer w.mu.Unlock()
	w.seq++
	st.Seq, st.Stats, st.Files = w.seq, w.stats, maps.Clone(w.files)
	st.Stats.Written += w.uploaded.Load()
	for length, id := range w.zero {
		st.Zero[length] = id.String()
	}
	for i, name := range slices.Sorted(maps.Keys(st.Files)) {
		t.files[fmt.Sprintf("file.%d", i)] = st.Files[name]
	}
	return st, t, undo, nil
}

// segment makes a segment of the pieces that are new, or, where there are many segments, one of all pieces.
func (d *DiskWriter) segment(ctx context.Context) (segments []segment, undo func(), err error) {
	d.mu.Lock()
	was, fresh := d.segments, d.fresh
	d.fresh = nil
	undo = func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.segments, d.fresh = was, append(d.fresh, fresh...)
	}
	segments = slices.Clone(was)
	pieces := slices.Compact(slices.Sorted(slices.Values(fresh)))
	if len(segments) >= maxSegments {
		segments, pieces = nil, nil
		for i, id := range d.table {
			if id != object.EmptyID {
				pieces = append(pieces, i)
			}
		}
	}
	ids := make([]object.ID, len(pieces))
	for i, p := range pieces {
		ids[i] = d.table[p]
	}
	d.mu.Unlock()
	if len(pieces) == 0 {
		return segments, undo, nil
	}
	s := segment{Runs: runsOf(pieces)}
	s.ID, err = compose(ctx, d.w.rep, d.name, func(yield func(object.ID, int64) bool) {
		for i, p := range pieces {
			s.Size += d.length(p)
			if !yield(ids[i], d.length(p)) {
				return
			}
		}
	})
	if err != nil {
		return nil, undo, err
	}
	segments = append(segments, s)
	d.mu.Lock()
	d.segments = segments
	d.mu.Unlock()
	return segments, undo, nil
}

func runsOf(pieces []int) []run {
	var runs []run
	for _, p := range pieces {
		if n := len(runs); n > 0 && runs[n-1][0]+runs[n-1][1] == p {
			runs[n-1][1]++
		} else {
			runs = append(runs, run{p, 1})
		}
	}
	return runs
}

// each are the pieces of the segment.
func (s segment) each() iter.Seq[int] {
	return func(yield func(int) bool) {
		for _, r := range s.Runs {
			for i := range r[1] {
				if !yield(r[0] + i) {
					return
				}
			}
		}
	}
}

// save enters the checkpoint in place of those before it.
func (w *Writer) save(ctx context.Context, st state, t *tree) error {
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	id, err := put(ctx, w.rep, stateFile, b)
	if err != nil {
		return err
	}
	t.files[stateFile] = stored{ID: id, Size: int64(len(b))}
	s, err := w.keep(ctx, t, checkpointed)
	if err != nil {
		return err
	}
	old := w.holds
	w.holds = append(slices.Clone(old), s.ID)
	for _, id := range old {
		if err := w.rep.DeleteManifest(ctx, id); err != nil {
			return err
		}
	}
	if err := w.rep.Flush(ctx); err != nil {
		return err
	}
	w.holds = []manifest.ID{s.ID}
	return nil
}
