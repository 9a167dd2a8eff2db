//go:build !virtcow_lean

// What exports a disk on a host has no archive: see cmd/virt-cow/lean.go.

package backup

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/virt-cow/virt-cow/internal/archive"
)

// OpenArchive opens the archive for one attempt at a job.
func OpenArchive(c archive.Config) func(ctx context.Context, waits func(string)) (Archive, error) {
	return func(ctx context.Context, waits func(string)) (Archive, error) {
		c := c
		c.Waits = waits
		a, err := archive.Open(ctx, c)
		if err != nil {
			return nil, judgeArchive(err)
		}
		return &kopia{a}, nil
	}
}

// kopia is an archive that is open.
type kopia struct{ *archive.Archive }

// Begin implements Archive.
func (k *kopia) Begin(ctx context.Context, i Info) (Writer, error) {
	w, err := k.Archive.Begin(ctx, archive.Meta{Domain: i.Domain, UUID: i.UUID, Host: i.Host, Job: i.Job, Grade: i.Grade, Time: i.CutAt})
	if err != nil {
		return nil, judgeArchive(err)
	}
	return &kopiaWriter{Writer: w, ctx: ctx}, nil
}

// Resume implements Archive.
func (k *kopia) Resume(ctx context.Context, checkpoint []byte) (Writer, error) {
	w, err := k.Archive.Resume(ctx, checkpoint)
	if err != nil {
		return nil, judgeArchive(err)
	}
	return &kopiaWriter{Writer: w, ctx: ctx}, nil
}

// Entered implements Archive.
func (k *kopia) Entered(ctx context.Context, job string) (string, error) {
	found, err := k.List(ctx, archive.Filter{Job: job})
	if err != nil || len(found) == 0 {
		return "", judgeArchive(err)
	}
	return found[0].ID, nil
}

// Forget implements Archive.
func (k *kopia) Forget(ctx context.Context, job string) error {
	return judgeArchive(k.Archive.Forget(ctx, job))
}

// Maintain implements Archive.
func (k *kopia) Maintain(ctx context.Context) (done string, err error) {
	what, err := k.Archive.Maintain(ctx, archive.UpkeepDue, false)
	if errors.Is(err, archive.ErrNotOwner) {
		return "", fmt.Errorf("%w: %w", ErrNotOurs, err)
	}
	return string(what), err
}

// kopiaWriter is a backup that is being written. ctx is of the attempt.
type kopiaWriter struct {
	*archive.Writer
	ctx context.Context
}

// Disk implements Writer.
func (w *kopiaWriter) Disk(name string, size, piece int64) (DiskWriter, error) {
	d, err := w.Writer.Disk(name, size, piece)
	if err != nil {
		return nil, err
	}
	return kopiaDisk{d}, nil
}

// File implements Writer.
func (w *kopiaWriter) File(ctx context.Context, name string, data []byte) error {
	return judgeArchive(w.Writer.File(ctx, name, data))
}

// Checkpoint implements Writer.
func (w *kopiaWriter) Checkpoint(ctx context.Context) ([]byte, error) {
	b, err := w.Writer.Checkpoint(ctx)
	return b, judgeArchive(err)
}

// Finish implements Writer.
func (w *kopiaWriter) Finish(ctx context.Context, manifest []byte) (string, error) {
	id, err := w.Writer.Finish(ctx, manifest)
	return id, judgeArchive(err)
}

// Stats implements Writer.
func (w *kopiaWriter) Stats() Stats {
	s := w.Writer.Stats()
	return Stats{Reused: s.Reused, Written: s.Written}
}

// Close implements Writer.
func (w *kopiaWriter) Close() error { return w.Writer.Close(context.WithoutCancel(w.ctx)) }

// kopiaDisk is a disk that is being written.
type kopiaDisk struct{ *archive.DiskWriter }

// Write implements DiskWriter.
func (d kopiaDisk) Write(ctx context.Context, index int64, data []byte) error {
	if data == nil {
		return judgeArchive(d.Zero(ctx, int(index)))
	}
	return judgeArchive(d.DiskWriter.Write(ctx, int(index), data))
}

// judgeArchive says of what never gets better that waiting does not help. An archive that is full, not mounted, or refuses is waited for:
// an operator can mend that, and what was copied is kept. So is one whose disk does not answer: what can't be read then is not lost.
func judgeArchive(err error) error {
	if errors.Is(err, syscall.EIO) {
		return err
	}
	for _, final := range []error{archive.ErrPassphrase, archive.ErrDamaged, archive.ErrNotFound, archive.ErrCheckpoint} {
		if errors.Is(err, final) {
			return fmt.Errorf("%w: %w", ErrGivenUp, err)
		}
	}
	return err
}
