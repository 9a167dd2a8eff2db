// Package archive keeps backups in a kopia repository, written so that plain kopia lists, mounts and restores them.
//
// A backup is one kopia snapshot: a folder with an image of each disk (NAME.img), small files, backup.json (what its maker says of
// it) and archive.json (what this package has to know). An image is cut into pieces of one size. Each piece is a kopia object of its
// own, written by whoever has it first, in any order; at the end the image's indirect index is composed of their names, so nothing
// is read or written again. Kopia finds that a piece is there already, and packs, compresses and encrypts. All pieces of zeros are
// one object: kopia's readers know no holes, but zeros by that name cost neither space nor reading here (Device.Extents tells them).
//
// What is under way is held by a *checkpoint*: a snapshot marked incomplete, which plain kopia does not list but whose garbage
// collection keeps what it names. It has everything that another process needs to go on; see checkpoint.go.
//
// What must hold:
//
//  1. What Checkpoint or Finish returned for is durable in the storage, and survives the death of this process and, where the storage
//     is a folder, a power cut of its host.
//  2. Everything a backup or a checkpoint names was flushed before it, or with it: kopia writes the packs first, then their index.
//  3. What can't be read as it was written is an error, never zeros or other bytes, unless the caller asked to be told instead.
//  4. A storage that does not answer is waited for (Config.Patience); one that has no room, or refuses, is not.
package archive

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/format"
	"github.com/kopia/kopia/repo/maintenance"
)

var (
	// ErrNoRepository says that the storage answers and holds no repository.
	ErrNoRepository = errors.New("no archive")
	// ErrExists says that the storage holds a repository already.
	ErrExists = errors.New("an archive already")
	// ErrPassphrase says that the repository was made with another passphrase.
	ErrPassphrase = errors.New("wrong passphrase")
	// ErrUnreachable says that the storage did not answer, or refused.
	ErrUnreachable = errors.New("archive can't be reached")
	// ErrDamaged says that something is missing from the archive, or is not what was written.
	ErrDamaged = errors.New("damaged in the archive")
	// ErrNotFound says that the archive has no such backup, disk or file.
	ErrNotFound = errors.New("not in the archive")
	// ErrNoSpace says that the storage is full.
	ErrNoSpace = errors.New("no space left in the archive")
	// ErrNotOwner says that another host does the archive's maintenance.
	ErrNotOwner = errors.New("another host maintains the archive")
	// ErrCheckpoint says that what is to be resumed from is no checkpoint.
	ErrCheckpoint = errors.New("not the checkpoint of a backup")
	// ErrFinished says that the backup of a checkpoint is in the archive already.
	ErrFinished = errors.New("finished already")
)

// Archive is an open repository. Its methods may be called at the same time.
type Archive struct {
	config Config
	pass   string
	place  *place
	opened

	mu      sync.Mutex
	writers map[*Writer]struct{} // that are open
}

// Create makes a repository where there is none: ErrExists if there is. It is encrypted with a key that only the passphrase opens;
// without the passphrase nobody ever reads it again.
func Create(ctx context.Context, c Config) error {
	pl, pass, err := c.read()
	if err != nil {
		return err
	}
	st, err := pl.connect(ctx, &c, true)
	if err != nil {
		return err
	}
	defer st.Close(ctx)
	ctx = withLog(ctx, c.Log)
	options := &repo.NewRepositoryOptions{BlockFormat: format.ContentFormat{Hash: "BLAKE3-256-128", Encryption: "AES256-GCM-HMAC-SHA256"}}
	if err := repo.Initialize(ctx, st, options, pass); err != nil {
		if errors.Is(err, format.ErrAlreadyInitialized) {
			return fmt.Errorf("archive %s: %w", c.URI, ErrExists)
		}
		return fmt.Errorf("archive %s: making it: %w", c.URI, st.judge(err))
	}
	a, err := Open(ctx, c)
	if err != nil {
		return err
	}
	defer a.Close(ctx)
	return a.own(ctx)
}

// own makes this host the one that maintains the archive.
func (a *Archive) own(ctx context.Context) error {
	return a.write(ctx, "maintenance owner", func(ctx context.Context, w repo.DirectRepositoryWriter) error {
		p, err := maintenance.GetParams(ctx, w)
		if err != nil {
			return err
		}
		p.Owner = w.ClientOptions().UsernameAtHost()
		return maintenance.SetParams(ctx, w, p)
	})
}

// Open opens a repository. A storage that does not answer is not waited for.
func Open(ctx context.Context, c Config) (*Archive, error) {
	pl, pass, err := c.read()
	if err != nil {
		return nil, err
	}
	a := &Archive{config: c, pass: pass, place: pl, writers: map[*Writer]struct{}{}}
	if a.opened, err = a.open(ctx, false); err != nil {
		return nil, err
	}
	return a, nil
}

// opened is one connection to the repository.
type opened struct {
	rep repo.DirectRepository
	st  *storage
	dir string // its own, with kopia's configuration
}

// open connects. A second look past all caches, from which nothing is ever written, is what verifying uses.
func (a *Archive) open(ctx context.Context, second bool) (o opened, err error) {
	st, err := a.place.connect(ctx, &a.config, false)
	if err != nil {
		return o, err
	}
	defer func() {
		if err != nil {
			st.Close(ctx)
		}
	}()
	ctx = withLog(ctx, a.config.Log)
	id, err := identity(ctx, st)
	if err != nil {
		if errors.Is(err, blob.ErrBlobNotFound) {
			return o, fmt.Errorf("archive %s: %w", a.config.URI, errNone)
		}
		return o, fmt.Errorf("archive %s: %w", a.config.URI, st.damaged(err))
	}
	dir, file, err := a.config.connection(st, id, second)
	if err != nil {
		return o, fmt.Errorf("archive %s: %w", a.config.URI, err)
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	rep, err := repo.Open(ctx, file, a.pass, &repo.Options{
		DisableRepositoryLog: true,
		DoNotWaitForUpgrade:  true,
		OnFatalError: func(err error) {
			a.config.Log.Error().Err(err).Str("archive", a.config.URI).Msg("kopia can't go on with the archive")
		},
	})
	switch {
	case errors.Is(err, repo.ErrInvalidPassword):
		return o, fmt.Errorf("archive %s: %w: %s is not of this archive", a.config.URI, ErrPassphrase, a.config.PassphraseFile)
	case err != nil:
		return o, fmt.Errorf("archive %s: %w", a.config.URI, st.damaged(err))
	}
	direct, ok := rep.(repo.DirectRepository)
	if !ok {
		rep.Close(ctx)
		return o, fmt.Errorf("archive %s: a kopia server can't be used, only its storage", a.config.URI)
	}
	st.opened(id)
	return opened{rep: direct, st: st, dir: dir}, nil
}

// identity is what a repository has of its own, as a file's name.
func identity(ctx context.Context, st *storage) (string, error) {
	var b buffer
	if err := st.GetBlob(ctx, format.KopiaRepositoryBlobID, 0, -1, &b); err != nil {
		return "", err
	}
	return parseIdentity(b.Bytes())
}

func parseIdentity(b []byte) (string, error) {
	f, err := format.ParseKopiaRepositoryJSON(b)
	if err != nil {
		return "", err
	}
	if len(f.UniqueID) == 0 || len(f.UniqueID) > 64 {
		return "", fmt.Errorf("%s: an identity of %d bytes", format.KopiaRepositoryBlobID, len(f.UniqueID))
	}
	return hex.EncodeToString(f.UniqueID), nil
}

// buffer is a blob.OutputBuffer.
type buffer struct{ bytes.Buffer }

// Length implements blob.OutputBuffer.
func (b *buffer) Length() int { return b.Len() }

func (o *opened) close(ctx context.Context) error {
	return errors.Join(o.rep.Close(ctx), os.RemoveAll(o.dir))
}

// Close ends the connection, and lets go of backups that are under way; nobody may be writing to them.
func (a *Archive) Close(ctx context.Context) error {
	a.mu.Lock()
	writers := slices.Collect(maps.Keys(a.writers))
	a.mu.Unlock()
	var errs []error
	for _, w := range writers {
		errs = append(errs, w.Close(ctx))
	}
	return errors.Join(append(errs, a.close(withLog(ctx, a.config.Log)))...)
}

// write does something in a writer of its own and makes it durable.
func (a *Archive) write(ctx context.Context, purpose string, do func(context.Context, repo.DirectRepositoryWriter) error) error {
	ctx = withLog(ctx, a.config.Log)
	err := repo.DirectWriteSession(ctx, a.rep, repo.WriteSessionOptions{Purpose: purpose}, do)
	if err != nil {
		return fmt.Errorf("archive %s: %w", a.config.URI, a.st.judge(err))
	}
	return nil
}

// refresh makes seen what other processes have written.
func (a *Archive) refresh(ctx context.Context) error {
	if err := a.rep.Refresh(ctx); err != nil {
		return fmt.Errorf("archive %s: %w", a.config.URI, a.st.damaged(err))
	}
	return nil
}

// defaultPatience is how long a storage that does not answer is waited for.
const defaultPatience = 10 * time.Minute
