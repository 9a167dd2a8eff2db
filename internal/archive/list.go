package archive

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/snapshot"
)

// Backup is a backup in the archive.
type Backup struct {
	ID string
	Meta
	Finished time.Time
	Size     int64 // bytes of all images and files
}

// Filter says which backups are wanted; what is empty does not matter.
type Filter struct{ Domain, Job string }

// List returns the backups, oldest first.
func (a *Archive) List(ctx context.Context, f Filter) ([]Backup, error) {
	ctx = withLog(ctx, a.config.Log)
	if err := a.refresh(ctx); err != nil {
		return nil, err
	}
	tags := map[string]string{}
	for tag, want := range map[string]string{tagDomain: f.Domain, tagJob: f.Job} {
		if want != "" {
			tags[tag] = want
		}
	}
	found, err := a.snapshots(ctx, tags)
	if err != nil {
		return nil, fmt.Errorf("archive %s: %w", a.config.URI, a.st.damaged(err))
	}
	var out []Backup
	for _, s := range found {
		if s.IncompleteReason == "" {
			out = append(out, backupOf(s))
		}
	}
	return out, nil
}

func backupOf(s *snapshot.Manifest) Backup {
	return Backup{ID: string(s.ID), Meta: metaOf(s), Finished: s.EndTime.ToTime().UTC(), Size: s.Stats.TotalFileSize}
}

// snapshots are those of ours with these tags, by time; incomplete ones too.
func (a *Archive) snapshots(ctx context.Context, tags map[string]string) ([]*snapshot.Manifest, error) {
	return snapshots(ctx, a.rep, tags)
}

func snapshots(ctx context.Context, r repo.Repository, tags map[string]string) ([]*snapshot.Manifest, error) {
	tags = maps.Clone(tags)
	tags[tagOurs] = "1"
	ids, err := snapshot.ListSnapshotManifests(ctx, r, nil, tags)
	if err != nil {
		return nil, err
	}
	var out []*snapshot.Manifest
	for _, id := range ids {
		s, err := snapshot.LoadSnapshot(ctx, r, id)
		if errors.Is(err, snapshot.ErrSnapshotNotFound) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("snapshot %s: %w", id, err)
		}
		out = append(out, s)
	}
	slices.SortStableFunc(out, func(a, b *snapshot.Manifest) int { return a.StartTime.ToTime().Compare(b.StartTime.ToTime()) })
	return out, nil
}

// Disk is a disk of a backup.
type Disk struct {
	Name  string
	Size  int64 // bytes
	Piece int64 // bytes

	zero []string
}

// Details is what a backup holds.
type Details struct {
	Backup
	Stats    Stats
	Disks    []Disk
	Files    []string // names for File
	Manifest []byte   // as Finish was given it

	root *snapshot.Manifest
}

// Get returns what a backup holds: ErrNotFound if there is no such backup.
func (a *Archive) Get(ctx context.Context, id string) (*Details, error) {
	if err := a.refresh(ctx); err != nil {
		return nil, err
	}
	d, err := a.get(withLog(ctx, a.config.Log), a.rep, id)
	if err != nil {
		return nil, a.readFailed(id, err)
	}
	return d, nil
}

// readFailed names archive and backup in an error of reading.
func (a *Archive) readFailed(id string, err error) error {
	return fmt.Errorf("archive %s: backup %s: %w", a.config.URI, id, a.st.damaged(err))
}

// maxAbout bounds the JSON files of a backup, in bytes.
const maxAbout = 64 << 20

func (a *Archive) get(ctx context.Context, r repo.Repository, id string) (*Details, error) {
	s, err := load(ctx, r, id)
	if err != nil {
		return nil, err
	}
	d := &Details{Backup: backupOf(s), root: s}
	own, err := readFile(ctx, r, s, metaFile, maxAbout)
	if err != nil {
		return nil, err
	}
	var ab about
	if err := json.Unmarshal(own, &ab); err != nil {
		return nil, fmt.Errorf("%s: %w", metaFile, err)
	}
	if ab.Version != 1 {
		return nil, fmt.Errorf("%s has version %d: a newer virt-cow made it: %w", metaFile, ab.Version, errors.ErrUnsupported)
	}
	d.Stats = ab.Stats
	for _, disk := range ab.Disks {
		d.Disks = append(d.Disks, Disk{Name: disk.Name, Size: disk.Size, Piece: disk.Piece, zero: disk.Zero})
	}
	if d.Manifest, err = readFile(ctx, r, s, manifestFile, maxAbout); err != nil {
		return nil, err
	}
	return d, walk(ctx, r, s, func(name string, _ *snapshot.DirEntry) {
		if !slices.ContainsFunc(d.Disks, func(disk Disk) bool { return name == disk.Name+image }) && name != metaFile && name != manifestFile {
			d.Files = append(d.Files, name)
		}
	})
}

// load finds a backup by its id.
func load(ctx context.Context, r repo.Repository, id string) (*snapshot.Manifest, error) {
	if b, err := hex.DecodeString(id); err != nil || len(b) != 16 {
		return nil, fmt.Errorf("%w: %q is not the id of a backup: `virt-cow backup list` prints those there are", ErrNotFound, id)
	}
	s, err := snapshot.LoadSnapshot(ctx, r, manifest.ID(id))
	switch {
	case errors.Is(err, snapshot.ErrSnapshotNotFound):
		return nil, fmt.Errorf("%w: there is no such backup: `virt-cow backup list` prints those there are", ErrNotFound)
	case err != nil:
		return nil, err
	case s.Tags[tagOurs] == "":
		return nil, fmt.Errorf("%w: it is a snapshot of kopia's, not a backup of a domain", ErrNotFound)
	case s.IncompleteReason != "":
		return nil, fmt.Errorf("%w: it is a backup that is not finished", ErrNotFound)
	}
	return s, nil
}

// Delete takes a backup out of the archive. What only it had is given back by the maintenance, in a day or two: kopia waits until nobody can
// be building on it.
func (a *Archive) Delete(ctx context.Context, id string) error {
	if err := a.refresh(ctx); err != nil {
		return err
	}
	return a.write(ctx, "delete "+id, func(ctx context.Context, w repo.DirectRepositoryWriter) error {
		if _, err := load(ctx, w, id); err != nil {
			return fmt.Errorf("backup %s: %w", id, err)
		}
		return w.DeleteManifest(ctx, manifest.ID(id))
	})
}

// File returns a small file of a backup.
func (a *Archive) File(ctx context.Context, id, name string) ([]byte, error) {
	ctx = withLog(ctx, a.config.Log)
	if err := a.refresh(ctx); err != nil {
		return nil, err
	}
	s, err := load(ctx, a.rep, id)
	if err != nil {
		return nil, a.readFailed(id, err)
	}
	b, err := readFile(ctx, a.rep, s, name, MaxFile)
	if err != nil {
		return nil, a.readFailed(id, err)
	}
	return b, nil
}

func readFile(ctx context.Context, r repo.Repository, s *snapshot.Manifest, name string, limit int64) ([]byte, error) {
	e, err := find(ctx, r, s, name)
	if err != nil {
		return nil, err
	}
	b, err := readSmall(ctx, r, e.ObjectID, limit)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}
