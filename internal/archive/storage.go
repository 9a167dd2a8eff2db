package archive

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/format"
	"github.com/minio/minio-go/v7"
	"github.com/rs/zerolog"
)

// storage is a storage of kopia's with what it lacks: patience, durability of folders, and errors that say what to do.
type storage struct {
	blob.Storage
	uri      string
	folder   string // where it is one
	patience time.Duration
	waits    func(string) // nil: nobody wants to know
	log      zerolog.Logger
	id       string      // of the repository; set before open
	open     atomic.Bool // the repository was seen in it
}

// opened says that the repository was seen: from now on a storage without it is one that is gone.
func (s *storage) opened(id string) {
	s.id = id
	s.open.Store(true)
}

// Pauses between attempts.
const (
	firstPause = 200 * time.Millisecond
	lastPause  = 5 * time.Second
)

// try does something until it succeeds, fails for good, or patience is at its end.
func (s *storage) try(ctx context.Context, what string, do func() error) error {
	began, pause := time.Now(), firstPause
	for waited := false; ; waited = true {
		err := do()
		if err == nil {
			if waited {
				s.log.Info().Str("archive", s.uri).Dur("after", time.Since(began)).Msg("archive answers again")
			}
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if final, is := s.final(err); is {
			return final
		}
		if !s.open.Load() || time.Since(began) > s.patience {
			return fmt.Errorf("%w: %s: %w", ErrUnreachable, what, err)
		}
		if !waited {
			s.log.Warn().Err(err).Str("archive", s.uri).Str("what", what).Dur("patience", s.patience).Msg("archive does not answer, trying again")
			if s.waits != nil {
				s.waits(fmt.Sprintf("archive %s: %s: %v", s.uri, what, err))
				defer s.waits("")
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// final tells whether trying again is of no use, and what the error then is.
func (s *storage) final(err error) (error, bool) {
	var answer minio.ErrorResponse
	var errno syscall.Errno
	switch {
	case errors.Is(err, errGone):
		return nil, false
	case noSpace(err):
		return fmt.Errorf("%w: %w", ErrNoSpace, err), true
	case errors.Is(err, blob.ErrBlobNotFound), errors.Is(err, fs.ErrNotExist):
		return err, s.here() == nil
	case errors.Is(err, blob.ErrInvalidRange), errors.Is(err, blob.ErrBlobAlreadyExists), errors.Is(err, blob.ErrSetTimeUnsupported),
		errors.Is(err, blob.ErrUnsupportedPutBlobOption), errors.Is(err, blob.ErrUnsupportedObjectLock), errors.Is(err, blob.ErrNotAVolume):
		return err, true
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS), errors.Is(err, blob.ErrInvalidCredentials):
		return fmt.Errorf("%w: %w", ErrUnreachable, err), true
	case errors.As(err, &answer):
		// The server has understood and said no. What it may answer otherwise later, it answers with 5xx and 429.
		refused := answer.StatusCode >= 400 && answer.StatusCode < 500 && answer.StatusCode != 408 && answer.StatusCode != 429
		return fmt.Errorf("%w: %w", ErrUnreachable, err), refused
	case s.folder != "" && !errors.As(err, &errno), errors.Is(err, syscall.EIO):
		return err, s.here() == nil // a file that is too short, or a bad spot in it
	}
	return nil, false
}

// noSpace tells whether a storage is full, as file systems and servers say it.
func noSpace(err error) bool {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return true
	}
	var answer minio.ErrorResponse
	if !errors.As(err, &answer) {
		return false
	}
	switch answer.Code {
	case "XMinioStorageFull", "QuotaExceeded", "InsufficientStorage":
		return true
	}
	return answer.StatusCode == 507
}

// errGone says that a folder is not the one that was opened.
var errGone = errors.New("the repository is not there any more: is it mounted?")

// here fails if the folder has lost the repository: where a file system was mounted there is the empty folder beneath, or another disk with
// an archive of its own. What was written there would be lost, and fill the one or spoil the other.
func (s *storage) here() error {
	if s.folder == "" || !s.open.Load() {
		return nil
	}
	b, err := os.ReadFile(s.repository())
	if err != nil {
		return fmt.Errorf("%w: %w", errGone, err)
	}
	switch id, err := parseIdentity(b); {
	case err != nil:
		return fmt.Errorf("%w: %w", errGone, err)
	case id != s.id:
		return fmt.Errorf("%w: %s is of another one", errGone, s.repository())
	}
	return nil
}

// repository is the file in the folder that makes it one.
func (s *storage) repository() string {
	return filepath.Join(s.folder, format.KopiaRepositoryBlobID+".f")
}

// errNone says that a storage is there, and has no repository.
var errNone = fmt.Errorf("there is %w yet: make one with `virt-cow archive create`, or look whether it is mounted", ErrNoRepository)

// PutBlob implements blob.Storage. When it returns the blob survives a power cut.
func (s *storage) PutBlob(ctx context.Context, id blob.ID, data blob.Bytes, o blob.PutOptions) error {
	if t, ok := ctx.Value(sessionsKey{}).(*sessions); ok {
		t.add(content.SessionIDFromBlobID(id))
	}
	return s.try(ctx, "writing "+string(id), func() error {
		if err := s.here(); err != nil {
			return err
		}
		if err := s.Storage.PutBlob(ctx, id, data, o); err != nil {
			return err
		}
		return s.syncFolders(ctx, id)
	})
}

// syncFolders makes the name of a blob durable, and the folders on the way to it: kopia syncs the file alone.
func (s *storage) syncFolders(ctx context.Context, id blob.ID) error {
	sharded, ok := s.Storage.(interface {
		GetShardedPathAndFilePath(context.Context, blob.ID) (string, string, error)
	})
	if !ok || s.folder == "" {
		return nil
	}
	_, file, err := sharded.GetShardedPathAndFilePath(ctx, id)
	if err != nil {
		return err
	}
	for dir := filepath.Dir(file); len(dir) >= len(s.folder); dir = filepath.Dir(dir) {
		if err := syncDir(dir); err != nil {
			return err
		}
		if dir == s.folder {
			break
		}
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// GetBlob implements blob.Storage.
func (s *storage) GetBlob(ctx context.Context, id blob.ID, off, length int64, out blob.OutputBuffer) error {
	return s.try(ctx, "reading "+string(id), func() error {
		out.Reset()
		return s.Storage.GetBlob(ctx, id, off, length, out)
	})
}

// GetMetadata implements blob.Storage.
func (s *storage) GetMetadata(ctx context.Context, id blob.ID) (m blob.Metadata, err error) {
	err = s.try(ctx, "looking at "+string(id), func() (err error) {
		m, err = s.Storage.GetMetadata(ctx, id)
		return err
	})
	return m, err
}

// DeleteBlob implements blob.Storage.
func (s *storage) DeleteBlob(ctx context.Context, id blob.ID) error {
	return s.try(ctx, "deleting "+string(id), func() error { return s.Storage.DeleteBlob(ctx, id) })
}

// ListBlobs implements blob.Storage. A list that breaks off is begun anew, so none is passed on in part.
func (s *storage) ListBlobs(ctx context.Context, prefix blob.ID, each func(blob.Metadata) error) error {
	var all []blob.Metadata
	err := s.try(ctx, "listing", func() error {
		all = all[:0]
		if err := s.here(); err != nil {
			return err
		}
		return s.Storage.ListBlobs(ctx, prefix, func(m blob.Metadata) error {
			all = append(all, m)
			return nil
		})
	})
	for i := 0; i < len(all) && err == nil; i++ {
		err = each(all[i])
	}
	return err
}
