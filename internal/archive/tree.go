package archive

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/snapshotfs"
)

// tree is a folder of a backup.
type tree struct {
	files   map[string]stored
	folders map[string]*tree
}

func newTree() *tree { return &tree{files: map[string]stored{}, folders: map[string]*tree{}} }

// add puts a file in, and the folders on the way to it. What is a file already can't be a folder.
func (t *tree) add(path string, s stored) error {
	name, rest, deeper := strings.Cut(path, "/")
	_, file := t.files[name]
	folder := t.folders[name]
	switch {
	case file, folder != nil && !deeper:
		return fmt.Errorf("%s is in the backup twice", name)
	case !deeper:
		t.files[name] = s
		return nil
	case folder == nil:
		folder = newTree()
		t.folders[name] = folder
	}
	return folder.add(rest, s)
}

// write writes the folder as kopia has them, and returns its entry.
func (t *tree) write(ctx context.Context, w repo.RepositoryWriter, name string, at time.Time) (*snapshot.DirEntry, error) {
	when := fs.UTCTimestampFromTime(at)
	sum := &fs.DirectorySummary{TotalDirCount: 1, MaxModTime: when}
	var entries []*snapshot.DirEntry
	for _, name := range slices.Sorted(maps.Keys(t.folders)) {
		e, err := t.folders[name].write(ctx, w, name, at)
		if err != nil {
			return nil, err
		}
		sum.TotalFileSize += e.DirSummary.TotalFileSize
		sum.TotalFileCount += e.DirSummary.TotalFileCount
		sum.TotalDirCount += e.DirSummary.TotalDirCount
		entries = append(entries, e)
	}
	for _, name := range slices.Sorted(maps.Keys(t.files)) {
		f := t.files[name]
		sum.TotalFileSize += f.Size
		sum.TotalFileCount++
		entries = append(entries, &snapshot.DirEntry{
			Name: name, Type: snapshot.EntryTypeFile, Permissions: 0o600, FileSize: f.Size, ModTime: when, ObjectID: f.ID,
		})
	}
	slices.SortFunc(entries, func(a, b *snapshot.DirEntry) int { return strings.Compare(a.Name, b.Name) })
	id, err := snapshotfs.WriteDirManifest(ctx, w, name, &snapshot.DirManifest{StreamType: "kopia:directory", Entries: entries, Summary: sum}, compressor)
	if err != nil {
		return nil, err
	}
	return &snapshot.DirEntry{Name: name, Type: snapshot.EntryTypeDirectory, Permissions: 0o700, ModTime: when, ObjectID: id, DirSummary: sum}, nil
}

// keep enters a folder into kopia's list of snapshots. Nothing of it is durable before the writer is flushed.
func (w *Writer) keep(ctx context.Context, t *tree, incomplete string) (*snapshot.Manifest, error) {
	root, err := t.write(ctx, w.rep, w.meta.Domain, w.meta.Time)
	if err != nil {
		return nil, err
	}
	s := &snapshot.Manifest{
		Source:           w.meta.source(),
		Description:      "virt-cow: domain " + w.meta.Domain,
		StartTime:        fs.UTCTimestampFromTime(w.meta.Time),
		EndTime:          fs.UTCTimestampFromTime(w.rep.Time()),
		IncompleteReason: incomplete,
		RootEntry:        root,
		Tags:             w.meta.tags(),
		Stats: snapshot.Stats{
			TotalFileSize: root.DirSummary.TotalFileSize, TotalFileCount: int32(root.DirSummary.TotalFileCount),
			TotalDirectoryCount: int32(root.DirSummary.TotalDirCount),
		},
	}
	_, err = snapshot.SaveSnapshot(ctx, w.rep, s)
	return s, err
}

// walk goes through the files of a snapshot.
func walk(ctx context.Context, r repo.Repository, s *snapshot.Manifest, each func(name string, e *snapshot.DirEntry)) error {
	root, err := snapshotfs.SnapshotRoot(r, s)
	if err != nil {
		return err
	}
	return walkEntry(ctx, root, "", each)
}

func walkEntry(ctx context.Context, e fs.Entry, name string, each func(string, *snapshot.DirEntry)) error {
	dir, ok := e.(fs.Directory)
	if !ok {
		if has, ok := e.(snapshot.HasDirEntry); ok {
			each(name, has.DirEntry())
		}
		return nil
	}
	entries, err := fs.GetAllEntries(ctx, dir)
	if err != nil {
		return fmt.Errorf("folder %q: %w", name, err)
	}
	for _, e := range entries {
		if err := walkEntry(ctx, e, path.Join(name, e.Name()), each); err != nil {
			return err
		}
	}
	return nil
}

// find finds a file of a snapshot.
func find(ctx context.Context, r repo.Repository, s *snapshot.Manifest, name string) (found *snapshot.DirEntry, err error) {
	err = walk(ctx, r, s, func(at string, e *snapshot.DirEntry) {
		if at == name {
			found = e
		}
	})
	if err == nil && found == nil {
		err = fmt.Errorf("%w: it has no %s", ErrNotFound, name)
	}
	return found, err
}
