package archive

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/repo/object"
)

// Meta says what a backup is of. All of it is in lists.
type Meta struct {
	Domain string    `json:"domain"`         // name
	UUID   string    `json:"uuid,omitempty"` // of the domain
	Host   string    `json:"host"`           // where it ran
	Job    string    `json:"job"`            // UUID
	Grade  string    `json:"grade,omitempty"`
	Time   time.Time `json:"time"` // of the cut
}

// Stats counts bytes of images.
type Stats struct {
	Read    int64 `json:"read"`    // handed to Write
	Zero    int64 `json:"zero"`    // of them, zeros; and what Zero was told
	Reused  int64 `json:"reused"`  // the archive had them already
	Written int64 `json:"written"` // put into the storage, packed, with all that belongs to it
}

// Writer is a backup under way. Its methods may be called at the same time; Finish, Abort or Close comes last.
type Writer struct {
	a        *Archive
	rep      repo.DirectRepositoryWriter
	meta     Meta
	sessions *sessions
	slots    chan struct{} // one for each piece that is being packed
	uploaded atomic.Int64

	saving sync.Mutex // held by whoever writes a checkpoint, or the end

	mu    sync.Mutex
	disks map[string]*DiskWriter
	files map[string]stored
	zero  map[int64]object.ID // pieces of zeros by length
	seen  map[uint64]struct{} // pieces that this backup has put in, by the first bytes of their names
	stats Stats
	seq   uint64        // of the last checkpoint
	holds []manifest.ID // checkpoints that were written and not deleted since
	id    manifest.ID   // of the backup, once its manifest was handed to kopia
}

// stored is an object and its length in bytes.
type stored struct {
	ID   object.ID `json:"id"`
	Size int64     `json:"size"`
}

// Begin begins a backup. Nothing of it is in the archive before Checkpoint or Finish.
func (a *Archive) Begin(ctx context.Context, m Meta) (*Writer, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("backup: %w", err)
	}
	m.Time = m.Time.UTC()
	w := &Writer{
		a: a, meta: m,
		sessions: &sessions{ids: map[content.SessionID]bool{}},
		slots:    make(chan struct{}, max(2, runtime.NumCPU())),
		disks:    map[string]*DiskWriter{},
		files:    map[string]stored{},
		zero:     map[int64]object.ID{},
		seen:     map[uint64]struct{}{},
	}
	_, rep, err := a.rep.NewDirectWriter(w.context(ctx), repo.WriteSessionOptions{
		Purpose:  "backup " + m.Job,
		OnUpload: func(n int64) { w.uploaded.Add(n) },
	})
	if err != nil {
		return nil, w.failed(err)
	}
	w.rep = rep
	return w, nil
}

// context is what kopia is called with.
func (w *Writer) context(ctx context.Context) context.Context {
	return context.WithValue(withLog(ctx, w.a.config.Log), sessionsKey{}, w.sessions)
}

// failed names the archive and the backup in an error of kopia's.
func (w *Writer) failed(err error) error {
	return fmt.Errorf("archive %s: backup of %s: %w", w.a.config.URI, w.meta.Domain, w.a.st.judge(err))
}

// Meta is what Begin was told, also after Resume.
func (w *Writer) Meta() Meta { return w.meta }

// Stats tells what was done so far, by this process and those before it.
func (w *Writer) Stats() Stats {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.stats
	s.Written += w.uploaded.Load()
	return s
}

// Disk is the writer of an image; NAME.img in the archive. piece is SmallPiece or LargePiece. After Resume it is the one that was begun.
func (w *Writer) Disk(name string, size, piece int64) (*DiskWriter, error) {
	g := geometry{size: size, piece: piece}
	if err := errors.Join(checkName(name), g.check()); err != nil {
		return nil, fmt.Errorf("backup of %s: disk %q: %w", w.meta.Domain, name, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if d := w.disks[name]; d != nil {
		if d.geometry != g {
			return nil, fmt.Errorf("backup of %s: disk %s was begun with %d bytes in pieces of %d, not %d in %d", w.meta.Domain, name, d.size, d.piece, size, piece)
		}
		return d, nil
	}
	if _, taken := w.files[name+image]; taken {
		return nil, fmt.Errorf("backup of %s: disk %s: a file has its name", w.meta.Domain, name)
	}
	d := &DiskWriter{w: w, name: name, geometry: g, table: make([]object.ID, g.count())}
	w.disks[name] = d
	return d, nil
}

// Disks are the names of the disks that were begun.
func (w *Writer) Disks() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(w.disks))
}

// MaxFile bounds a small file, in bytes.
const MaxFile = 64 << 20

// File puts a small file into the backup, in place of one of this name. Folders are parted by slashes.
func (w *Writer) File(ctx context.Context, name string, data []byte) error {
	err := checkFile(name)
	switch {
	case err != nil:
	case name == metaFile || name == manifestFile:
		err = errors.New("the name is taken")
	case len(data) > MaxFile:
		err = fmt.Errorf("%d bytes are too many", len(data))
	}
	if err != nil {
		return fmt.Errorf("backup of %s: file %q: %w", w.meta.Domain, name, err)
	}
	id, err := put(w.context(ctx), w.rep, name, data)
	if err != nil {
		return w.failed(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.files[name] = stored{ID: id, Size: int64(len(data))}
	return nil
}

// Close lets go of a backup that is to be resumed later. What no checkpoint has is lost.
func (w *Writer) Close(ctx context.Context) error {
	if err := w.rep.Close(w.context(ctx)); err != nil {
		return w.failed(err)
	}
	return nil
}

// Abort takes out of the archive what Checkpoint has put there, and closes. The space comes back with the maintenance.
func (w *Writer) Abort(ctx context.Context) error {
	w.saving.Lock()
	defer w.saving.Unlock()
	var err error
	if w.id != "" { // Finish failed, perhaps after the backup was entered
		if err = w.a.Delete(ctx, string(w.id)); errors.Is(err, ErrNotFound) {
			err = nil
		}
	}
	return errors.Join(err, w.a.Forget(ctx, w.meta.Job), w.Close(ctx))
}
