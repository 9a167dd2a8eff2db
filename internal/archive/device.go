package archive

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/object"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// Damage is something of a backup that can't be read as it was written.
type Damage struct {
	Disk   string // its name; or
	File   string // a file's
	Offset int64  // bytes
	Length int64  // bytes
	Err    error
}

func (d Damage) String() string {
	if d.Disk == "" {
		return fmt.Sprintf("file %s: %v", d.File, d.Err)
	}
	return fmt.Sprintf("disk %s, bytes %d to %d: %v", d.Disk, d.Offset, d.Offset+d.Length-1, d.Err)
}

// DiskOptions say how a disk is opened.
type DiskOptions struct {
	// SkipBad, if set, has what is damaged read as zeros, and is told of it, perhaps several times, but never twice at once. Unset,
	// reading it is ErrDamaged.
	SkipBad func(Damage)
}

// OpenDisk opens a disk of a backup for reading. ErrNotFound if there is no such backup or disk. ctx is for the opening alone.
func (a *Archive) OpenDisk(ctx context.Context, id, disk string, o DiskOptions) (blockdev.Device, error) {
	d, err := a.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	ctx = withLog(ctx, a.config.Log)
	im, err := openImage(ctx, a.rep, d, disk)
	if err != nil {
		return nil, a.readFailed(id, fmt.Errorf("disk %s: %w", disk, err))
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	v := &view{a: a, image: im, id: id, options: o, life: life, end: end}
	v.cache.init(int(min(8, cacheBytes/im.piece)))
	return v, nil
}

// img is a disk's image, opened for reading.
type img struct {
	Disk
	geometry
	r     opener
	table []object.ID
	empty map[object.ID]bool // pieces that were seen to be zeros
}

// openImage reads the index of an image, and the pieces that are said to be zeros.
func openImage(ctx context.Context, r repo.Repository, d *Details, disk string) (*img, error) {
	i := slices.IndexFunc(d.Disks, func(have Disk) bool { return have.Name == disk })
	if i < 0 {
		var names []string
		for _, have := range d.Disks {
			names = append(names, have.Name)
		}
		return nil, fmt.Errorf("%w: the backup has no such disk, but %s", ErrNotFound, strings.Join(names, ", "))
	}
	im := &img{Disk: d.Disks[i], r: r, empty: map[object.ID]bool{}}
	im.geometry = geometry{size: im.Size, piece: im.Piece}
	if err := im.geometry.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	e, err := find(ctx, r, d.root, disk+image)
	if err != nil {
		return nil, err
	}
	if im.table, err = readTable(ctx, r, e.ObjectID, im.geometry); err != nil {
		return nil, err
	}
	for _, text := range im.zero {
		id, err := object.ParseID(text)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		// Looked at once, and believed from then on: it is by this that a terabyte of nothing is restored in no time.
		b, err := readSmall(ctx, r, id, im.piece)
		if err == nil && isZero(b) {
			im.empty[id] = true
		} else if named(err) && !errors.Is(err, ErrDamaged) {
			return nil, err
		}
	}
	return im, nil
}

// read reads piece i into p.
func (im *img) read(ctx context.Context, i int, p []byte) error {
	if im.empty[im.table[i]] {
		clear(p)
		return nil
	}
	return readObject(ctx, im.r, im.table[i], p)
}

// view is an image as a block device.
type view struct {
	a       *Archive
	image   *img
	id      string
	options DiskOptions
	life    context.Context
	end     context.CancelFunc
	cache   cache
	said    sync.Mutex // while SkipBad is called
}

// Info implements blockdev.Device.
func (v *view) Info() blockdev.Info {
	return blockdev.Info{Name: v.image.Name + " of backup " + v.id, Size: v.image.size, BlockSize: blockdev.SectorSize, ReadOnly: true}
}

func (v *view) check(off, length int64) error {
	if v.life.Err() != nil {
		return fmt.Errorf("%s: %w", v.Info().Name, os.ErrClosed)
	}
	return blockdev.CheckRange(v.Info(), off, length)
}

// ReadAt implements blockdev.Device.
func (v *view) ReadAt(p []byte, off int64) (int, error) {
	if err := v.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		i := int(at / v.image.piece)
		in := at % v.image.piece
		part := p[n : n+int(min(int64(len(p)-n), v.image.length(i)-in))]
		if err := v.part(part, i, in); err != nil {
			return n, err
		}
		n += len(part)
	}
	return len(p), nil
}

// part reads from one piece.
func (v *view) part(p []byte, i int, in int64) error {
	if v.image.empty[v.image.table[i]] {
		clear(p)
		return nil
	}
	data, err := v.cache.get(i, func() ([]byte, error) { return v.read(i) })
	if err != nil {
		return err
	}
	copy(p, data[in:])
	return nil
}

// read reads a piece, or, if that is wanted, gives zeros for one that is damaged.
func (v *view) read(i int) ([]byte, error) {
	b := make([]byte, v.image.length(i))
	err := v.a.st.damaged(v.image.read(v.life, i, b))
	if err == nil {
		return b, nil
	}
	d := Damage{Disk: v.image.Name, Offset: int64(i) * v.image.piece, Length: v.image.length(i), Err: err}
	if v.options.SkipBad == nil || !errors.Is(err, ErrDamaged) {
		return nil, v.a.readFailed(v.id, fmt.Errorf("disk %s, bytes %d to %d: %w", d.Disk, d.Offset, d.Offset+d.Length-1, err))
	}
	v.said.Lock()
	defer v.said.Unlock()
	v.options.SkipBad(d)
	clear(b)
	return b, nil
}

// Extents implements blockdev.Device: runs of zeros are told to the piece.
func (v *view) Extents(off, length int64) ([]blockdev.Extent, error) {
	if err := v.check(off, length); err != nil {
		return nil, err
	}
	var out []blockdev.Extent
	for at, end := off, off+length; at < end; {
		i := int(at / v.image.piece)
		next := min(end, int64(i+1)*v.image.piece)
		zero := v.image.empty[v.image.table[i]]
		if n := len(out); n > 0 && out[n-1].Zero == zero {
			out[n-1].Length += next - at
		} else {
			out = append(out, blockdev.Extent{Offset: at, Length: next - at, Zero: zero, Hole: zero})
		}
		at = next
	}
	return out, nil
}

// WriteAt implements blockdev.Device.
func (v *view) WriteAt(p []byte, off int64) (int, error) {
	if err := v.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	return 0, blockdev.ErrReadOnly
}

// WriteZeroes implements blockdev.Device.
func (v *view) WriteZeroes(off, length int64, _ bool) error {
	if err := v.check(off, length); err != nil {
		return err
	}
	return blockdev.ErrReadOnly
}

// Flush implements blockdev.Device.
func (v *view) Flush() error { return v.check(0, 0) }

// Close implements blockdev.Device.
func (v *view) Close() error {
	v.end()
	return nil
}
