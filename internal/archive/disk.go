package archive

import (
	"context"
	"fmt"
	"sync"

	"github.com/kopia/kopia/repo/object"
)

// DiskWriter is the image of a disk under way.
type DiskWriter struct {
	w    *Writer
	name string
	geometry

	mu       sync.Mutex
	table    []object.ID // names of its pieces; none yet: object.EmptyID
	done     int64       // bytes of pieces that have a name
	fresh    []int       // pieces that no checkpoint has
	segments []segment   // what the last checkpoint has
}

// Pieces is the number of pieces.
func (d *DiskWriter) Pieces() int { return d.count() }

// Length is that of a piece in bytes: the last one may be shorter.
func (d *DiskWriter) Length(piece int) int64 { return d.length(piece) }

// Has tells whether a piece was written. After Resume: whether a checkpoint has it.
func (d *DiskWriter) Has(piece int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.table[piece] != object.EmptyID
}

// Done is how many bytes were written.
func (d *DiskWriter) Done() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.done
}

// Write writes a piece; data is it whole and is not kept. It is durable once a Checkpoint that began later has returned. After an error it
// may be tried again.
func (d *DiskWriter) Write(ctx context.Context, piece int, data []byte) error {
	if err := d.check(piece); err != nil {
		return err
	}
	n := d.length(piece)
	if int64(len(data)) != n {
		return fmt.Errorf("backup of %s: disk %s: piece %d has %d bytes, not %d", d.w.meta.Domain, d.name, piece, n, len(data))
	}
	if isZero(data) {
		return d.put(ctx, piece, nil, Stats{Read: n, Zero: n})
	}
	return d.put(ctx, piece, data, Stats{Read: n})
}

// Zero is Write for a piece that is known to be all zeros.
func (d *DiskWriter) Zero(ctx context.Context, piece int) error {
	if err := d.check(piece); err != nil {
		return err
	}
	return d.put(ctx, piece, nil, Stats{Zero: d.length(piece)})
}

func (d *DiskWriter) check(piece int) error {
	if piece < 0 || piece >= d.count() {
		return fmt.Errorf("backup of %s: disk %s: there is no piece %d", d.w.meta.Domain, d.name, piece)
	}
	return nil
}

func (d *DiskWriter) put(ctx context.Context, piece int, data []byte, s Stats) error {
	select {
	case d.w.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-d.w.slots }()
	var (
		id  object.ID
		err error
	)
	if data == nil {
		id, err = d.w.zeroPiece(ctx, d.length(piece))
	} else if id, err = put(d.w.context(ctx), d.w.rep, d.name, data); err == nil && d.w.had(ctx, id) {
		s.Reused = int64(len(data))
	}
	if err != nil {
		return d.w.failed(fmt.Errorf("disk %s, piece %d: %w", d.name, piece, err))
	}
	d.mu.Lock()
	if d.table[piece] == object.EmptyID {
		d.done += d.length(piece)
	}
	d.table[piece] = id
	d.fresh = append(d.fresh, piece)
	d.mu.Unlock()
	d.w.count(s)
	return nil
}

func (w *Writer) count(s Stats) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stats.Read += s.Read
	w.stats.Zero += s.Zero
	w.stats.Reused += s.Reused
}

// zeroPiece is the piece of so many zeros, which is written once.
func (w *Writer) zeroPiece(ctx context.Context, length int64) (object.ID, error) {
	w.mu.Lock()
	id, ok := w.zero[length]
	w.mu.Unlock()
	if ok {
		return id, nil
	}
	id, err := put(w.context(ctx), w.rep, "zeros", make([]byte, length))
	if err != nil {
		return id, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.zero[length] = id
	return id, nil
}

// had tells whether the archive had a piece before this process put it in. It is for Stats alone: in doubt it was new.
func (w *Writer) had(ctx context.Context, id object.ID) bool {
	cid, _, ok := id.ContentID()
	if !ok {
		return false
	}
	info, err := w.rep.ContentInfo(w.context(ctx), cid)
	if err != nil || !w.sessions.wrote(info.PackBlobID) {
		return err == nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	_, again := w.seen[key(id)]
	w.seen[key(id)] = struct{}{}
	return again
}
