package archive

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
	"golang.org/x/sync/errgroup"
)

// Report is what Verify has found. Sizes are bytes.
type Report struct {
	Size   int64 // of all images
	Done   int64 // of it, looked at
	Damage []Damage
}

// Verify reads everything that a backup has from the storage, past all caches, opens it and hashes it again. What is damaged is in the
// report, and ErrDamaged. progress, if set, is called from time to time, never twice at once.
func (a *Archive) Verify(ctx context.Context, id string, progress func(Report)) (Report, error) {
	ctx = withLog(ctx, a.config.Log)
	second, err := a.open(ctx, true)
	if err != nil {
		return Report{}, err
	}
	defer second.close(ctx)
	_, hasher, err := second.rep.NewDirectWriter(ctx, repo.WriteSessionOptions{Purpose: "verify " + id})
	if err != nil {
		return Report{}, a.readFailed(id, err)
	}
	defer hasher.Close(ctx)
	v := &verifier{a: a, st: second.st, rep: second.rep, hasher: hasher, id: id, progress: progress, good: map[uint64]struct{}{}, bad: map[object.ID]error{}}
	if err := v.all(ctx); err != nil {
		return v.report, a.readFailed(id, err)
	}
	if len(v.report.Damage) > 0 {
		return v.report, fmt.Errorf("archive %s: backup %s: %w: %v", a.config.URI, id, ErrDamaged, v.report.Damage[0])
	}
	return v.report, nil
}

type verifier struct {
	a        *Archive
	st       *storage
	rep      repo.DirectRepository
	hasher   repo.RepositoryWriter // never flushed, and on a storage that is read-only
	id       string
	progress func(Report)

	mu     sync.Mutex
	report Report
	good   map[uint64]struct{} // by the first bytes of their names; so one of 2^64 wrong names passes
	bad    map[object.ID]error
}

func (v *verifier) all(ctx context.Context) error {
	d, err := v.a.get(ctx, v.rep, v.id)
	if err != nil {
		return err
	}
	for _, disk := range d.Disks {
		v.report.Size += disk.Size
	}
	err = walk(ctx, v.rep, d.root, func(name string, e *snapshot.DirEntry) {
		if slices.ContainsFunc(d.Disks, func(disk Disk) bool { return name == disk.Name+image }) {
			return
		}
		if _, err := readSmall(ctx, v.rep, e.ObjectID, MaxFile); err != nil {
			v.found(Damage{File: name, Err: v.st.damaged(err)})
		}
	})
	for i := 0; i < len(d.Disks) && err == nil; i++ {
		err = v.disk(ctx, d, d.Disks[i])
	}
	return err
}

func (v *verifier) disk(ctx context.Context, d *Details, disk Disk) error {
	im, err := openImage(ctx, v.rep, d, disk.Name)
	if err != nil {
		err = v.st.damaged(err)
		if !errors.Is(err, ErrDamaged) {
			return err
		}
		v.found(Damage{Disk: disk.Name, Length: disk.Size, Err: err})
		return nil
	}
	im.empty = nil // they are read like all others
	group, ctx := errgroup.WithContext(ctx)
	next := make(chan int)
	group.Go(func() error {
		defer close(next)
		for i := range im.table {
			select {
			case next <- i:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range max(2, runtime.NumCPU()) {
		group.Go(func() error {
			buf := make([]byte, im.piece)
			for i := range next {
				if err := v.piece(ctx, im, i, buf[:im.length(i)]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// piece reads a piece, unless it was seen, and hashes it again: it must come out by its name.
func (v *verifier) piece(ctx context.Context, im *img, i int, buf []byte) error {
	id := im.table[i]
	err, seen := v.known(id)
	if !seen {
		if err = im.read(ctx, i, buf); err == nil {
			var again object.ID
			if again, err = put(ctx, v.hasher, "verify", buf); err == nil && again != id {
				err = fmt.Errorf("its bytes are those of %v, not of %v", again, id)
			}
		}
		if err = v.st.damaged(err); err != nil && !errors.Is(err, ErrDamaged) {
			return err
		}
		v.remember(id, err)
	}
	if err != nil {
		v.found(Damage{Disk: im.Name, Offset: int64(i) * im.piece, Length: im.length(i), Err: err})
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.report.Done += im.length(i)
	if v.progress != nil && (i%64 == 0 || i == len(im.table)-1) {
		v.progress(v.report)
	}
	return nil
}

// key is the beginning of an object's name.
func key(id object.ID) uint64 {
	cid, _, _ := id.ContentID()
	return binary.LittleEndian.Uint64(cid.Hash())
}

func (v *verifier) known(id object.ID) (error, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.bad[id]; err != nil {
		return err, true
	}
	_, ok := v.good[key(id)]
	return nil, ok
}

func (v *verifier) remember(id object.ID, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err != nil {
		v.bad[id] = err
	} else {
		v.good[key(id)] = struct{}{}
	}
}

// found notes damage; what adjoins is one.
func (v *verifier) found(d Damage) {
	v.mu.Lock()
	defer v.mu.Unlock()
	all := append(v.report.Damage, d)
	slices.SortStableFunc(all, func(a, b Damage) int {
		if a.Disk != b.Disk || a.File != b.File {
			return 0
		}
		return int(min(max(a.Offset-b.Offset, -1), 1))
	})
	out := all[:1]
	for _, d := range all[1:] {
		if last := &out[len(out)-1]; d.Disk != "" && last.Disk == d.Disk && last.Offset+last.Length == d.Offset {
			last.Length += d.Length
		} else {
			out = append(out, d)
		}
	}
	v.report.Damage = out
}
