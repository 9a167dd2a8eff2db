package archive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
)

// maxState bounds state.json, in bytes.
const maxState = 256 << 20

// Resume goes on with a backup from what Checkpoint returned, in this process or another. ErrFinished: it is in the archive already, as the
// backup that List finds by its job. ErrNotFound: nothing of it is.
func (a *Archive) Resume(ctx context.Context, checkpoint []byte) (*Writer, error) {
	t, err := parseToken(checkpoint)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*Writer, error) {
		return nil, fmt.Errorf("archive %s: checkpoint of job %s: %w", a.config.URI, t.Job, a.st.damaged(err))
	}
	ctx = withLog(ctx, a.config.Log)
	if err := a.refresh(ctx); err != nil {
		return nil, err
	}
	found, err := a.snapshots(ctx, map[string]string{tagJob: t.Job})
	if err != nil {
		return fail(err)
	}
	var newest state
	var holds []manifest.ID
	for _, s := range found {
		if s.IncompleteReason == "" {
			return fail(fmt.Errorf("it is backup %s: %w", s.ID, ErrFinished))
		}
		st, err := a.readState(ctx, s)
		if err != nil {
			return fail(err)
		}
		if holds = append(holds, s.ID); st.Seq > newest.Seq {
			newest = st
		}
	}
	if newest.Seq < t.Seq {
		return fail(fmt.Errorf("%w: it was aborted, or deleted", ErrNotFound))
	}
	w, err := a.Begin(ctx, newest.Meta)
	if err != nil {
		return nil, err
	}
	w.holds = holds
	if err := w.restore(ctx, newest); err != nil {
		w.Close(ctx)
		return fail(err)
	}
	return w, nil
}

func (a *Archive) readState(ctx context.Context, s *snapshot.Manifest) (st state, err error) {
	e, err := find(ctx, a.rep, s, stateFile)
	if err != nil {
		return st, err
	}
	b, err := readSmall(ctx, a.rep, e.ObjectID, maxState)
	if err != nil {
		return st, err
	}
	return parseState(b)
}

func parseState(b []byte) (st state, err error) {
	switch err = json.Unmarshal(b, &st); {
	case err != nil:
	case st.Version != 1:
		err = fmt.Errorf("version %d is not known", st.Version)
	case st.Seq == 0:
		err = errors.New("it has no number")
	}
	if err != nil {
		return state{}, fmt.Errorf("%s: %w", stateFile, err)
	}
	return st, nil
}

// restore takes over what a checkpoint has. That all of it is still in the archive is checked, by kopia's own index: the disks can't be read
// as they were any more.
func (w *Writer) restore(ctx context.Context, st state) error {
	w.seq, w.stats = st.Seq, st.Stats
	there := map[object.ID]bool{}
	check := func(id object.ID) error {
		if there[id] {
			return nil
		}
		if err := exists(ctx, w.rep, id); err != nil {
			return err
		}
		there[id] = true
		return nil
	}
	for name, f := range st.Files {
		if err := errors.Join(checkFile(name), check(f.ID)); err != nil {
			return fmt.Errorf("file %q: %w", name, err)
		}
		w.files[name] = f
	}
	for length, text := range st.Zero {
		id, err := object.ParseID(text)
		if err != nil {
			return err
		}
		w.zero[length] = id
	}
	for _, ds := range st.Disks {
		d, err := w.Disk(ds.Name, ds.Size, ds.Piece)
		if err != nil {
			return err
		}
		for _, s := range ds.Segments {
			if err := d.take(ctx, s, check); err != nil {
				return fmt.Errorf("disk %s: %w", d.name, err)
			}
		}
		d.segments = ds.Segments
	}
	return nil
}

// take puts the pieces of a segment into the table.
func (d *DiskWriter) take(ctx context.Context, s segment, check func(object.ID) error) error {
	for _, r := range s.Runs {
		if r[0] < 0 || r[1] <= 0 || r[0] >= d.count() || r[1] > d.count()-r[0] {
			return fmt.Errorf("%w: a segment has pieces that the disk has not", ErrDamaged)
		}
	}
	var ids []object.ID
	err := decompose(ctx, d.w.rep, s.ID, func(id object.ID, length int64) error {
		ids = append(ids, id)
		return check(id)
	})
	if err != nil {
		return err
	}
	n := 0
	for p := range s.each() {
		if n == len(ids) {
			break
		}
		if d.table[p] == object.EmptyID {
			d.done += d.length(p)
		}
		d.table[p] = ids[n]
		n++
	}
	if n != len(ids) || n == 0 {
		return fmt.Errorf("%w: a segment has not the pieces it says", ErrDamaged)
	}
	return nil
}

// exists fails unless kopia knows where an object's first content is, and will keep it.
func exists(ctx context.Context, r repo.Repository, id object.ID) error {
	for {
		index, ok := id.IndexObjectID()
		if !ok {
			break
		}
		id = index
	}
	cid, _, _ := id.ContentID()
	info, err := r.ContentInfo(ctx, cid)
	if err == nil && info.Deleted {
		err = content.ErrContentNotFound
	}
	return err
}
