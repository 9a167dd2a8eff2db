package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kopia/kopia/repo/blob"
)

// failing is a storage whose operations fail as told.
type failing struct {
	blob.Storage
	count atomic.Int64 // of puts and deletes
	fail  func(n int64) error
}

func (f *failing) PutBlob(ctx context.Context, id blob.ID, data blob.Bytes, o blob.PutOptions) error {
	if err := f.fail(f.count.Add(1)); err != nil {
		return err
	}
	return f.Storage.PutBlob(ctx, id, data, o)
}

func (f *failing) DeleteBlob(ctx context.Context, id blob.ID) error {
	if err := f.fail(f.count.Add(1)); err != nil {
		return err
	}
	return f.Storage.DeleteBlob(ctx, id)
}

// TestNthFails has the Nth operation that changes the storage fail for good, for every N until none does: checkpoint and end fail, or what
// they said is true; trying again then succeeds, and there is one backup, and nothing else.
func TestNthFails(t *testing.T) {
	t.Parallel()
	c := fresh(t)
	a, b := open(t, c), open(t, c)
	f := &failing{Storage: a.st.Storage}
	a.st.Storage = f
	ctx := t.Context()
	for n := int64(1); ; n++ {
		vda := pieces(string(rune(0x100+2*n))+string(rune(0x101+2*n))+".", SmallPiece, 512)
		f.count.Store(0)
		f.fail = func(i int64) error {
			if i == n {
				return fmt.Errorf("the %dth: %w", n, syscall.EACCES)
			}
			return nil
		}
		m := meta("g1")
		w := begin(t, a, m)
		d := disk(t, w, "vda", vda, SmallPiece)
		failed := 0
		try := func(do func() error) {
			t.Helper()
			for {
				err := do()
				if err == nil {
					return
				}
				if failed++; failed > 1 || !errors.Is(err, ErrUnreachable) {
					t.Fatalf("operation %d: %v", n, err)
				}
			}
		}
		for p := range d.Pieces() {
			try(func() error { return d.Write(ctx, p, vda[int64(p)*SmallPiece:][:d.Length(p)]) })
			var token []byte
			try(func() (err error) { token, err = w.Checkpoint(ctx); return err })
			if p == 1 { // what Checkpoint said is there for another
				r, err := b.Resume(ctx, token)
				if err != nil {
					t.Fatalf("operation %d: %v", n, err)
				}
				if d := disk(t, r, "vda", vda, SmallPiece); !d.Has(0) || !d.Has(1) {
					t.Fatalf("operation %d: a piece is not in the checkpoint", n)
				}
				r.Close(ctx)
			}
		}
		var id string
		try(func() (err error) { id, err = w.Finish(ctx, nil); return err })
		same(t, b, id, "vda", vda)
		if l, err := b.List(ctx, Filter{Job: m.Job}); err != nil || len(l) != 1 {
			t.Fatalf("operation %d: %v, %v", n, l, err)
		}
		if left, err := b.snapshots(ctx, map[string]string{tagJob: m.Job}); err != nil || len(left) != 1 {
			t.Fatalf("operation %d: %v, %v are left", n, left, err)
		}
		if failed == 0 {
			return
		}
	}
}

// TestAway has the storage not answer for a while: a backup waits and goes on.
func TestAway(t *testing.T) {
	t.Parallel()
	a := open(t, fresh(t))
	var away atomic.Bool
	a.st.Storage = &failing{Storage: a.st.Storage, fail: func(int64) error {
		if away.Load() {
			return fmt.Errorf("somewhere: %w", syscall.ESTALE)
		}
		return nil
	}}
	var told atomic.Value
	back := sync.OnceFunc(func() { time.AfterFunc(time.Second, func() { away.Store(false) }) })
	a.st.waits = func(what string) {
		if what != "" {
			told.Store(what)
			back()
		}
	}
	vda := pieces("abc", SmallPiece, SmallPiece)
	w := begin(t, a, meta("g1"))
	away.Store(true)
	writeDisk(t, disk(t, w, "vda", vda, SmallPiece), vda)
	id := finish(t, w)
	if away.Load() {
		t.Error("finished while the storage was away")
	}
	if what, _ := told.Load().(string); !strings.Contains(what, a.config.URI) || !strings.Contains(what, "somewhere") {
		t.Errorf("told that it waits for %q", what)
	}
	same(t, a, id, "vda", vda)

	a.st.patience = 500 * time.Millisecond
	away.Store(true)
	w = begin(t, a, meta("g1"))
	d := disk(t, w, "vda", vda, SmallPiece)
	err := d.Zero(t.Context(), 0)
	if err == nil {
		_, err = w.Checkpoint(t.Context())
	}
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), a.config.URI) {
		t.Errorf("away for good: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	a.st.patience = time.Hour
	time.AfterFunc(300*time.Millisecond, cancel)
	if _, err := w.Checkpoint(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestUnmounted takes the repository away as an unmount does, and brings it back: nothing is written into the folder beneath, and
// nothing in it is taken for missing.
func TestUnmounted(t *testing.T) {
	t.Parallel()
	c := fresh(t)
	a := open(t, c)
	vda := pieces("abc", SmallPiece, SmallPiece)
	id := backup(t, a, meta("g1"), vda, SmallPiece)
	w := begin(t, a, meta("g1"))
	vdb := pieces("def", SmallPiece, SmallPiece)
	writeDisk(t, disk(t, w, "vda", vdb, SmallPiece), vdb)
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	move(c.URI, c.URI+".away")
	if err := os.Mkdir(c.URI, 0o700); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		if _, err := w.Checkpoint(t.Context()); err != nil {
			t.Error(err)
		}
	})
	all.Go(func() { same(t, a, id, "vda", vda) })
	time.Sleep(time.Second)
	if left, err := os.ReadDir(c.URI); err != nil || len(left) != 0 {
		t.Errorf("%v, %v: written into the folder beneath", left, err)
	}
	if err := os.Remove(c.URI); err != nil {
		t.Fatal(err)
	}
	move(c.URI+".away", c.URI)
	all.Wait()
	same(t, a, finish(t, w), "vda", vdb)
}

// unmounts is a storage that goes away with the first write. The first attempt at each blob fails, as it may have been under way then.
type unmounts struct {
	blob.Storage
	first func()
	tried sync.Map
	back  atomic.Bool
}

func (u *unmounts) PutBlob(ctx context.Context, id blob.ID, data blob.Bytes, o blob.PutOptions) error {
	u.first()
	if _, again := u.tried.LoadOrStore(id, true); !again && !u.back.Load() {
		return fmt.Errorf("somewhere: %w", syscall.ESTALE)
	}
	return u.Storage.PutBlob(ctx, id, data, o)
}

// TestUnmountedAmidWrites takes the repository away in the middle of a blob's write: it is not written into the folder beneath when
// that is tried again.
func TestUnmountedAmidWrites(t *testing.T) {
	c := fresh(t)
	a := open(t, c)
	gone := make(chan error, 1)
	u := &unmounts{Storage: a.st.Storage, first: sync.OnceFunc(func() {
		gone <- errors.Join(os.Rename(c.URI, c.URI+".away"), os.Mkdir(c.URI, 0o700))
	})}
	a.st.Storage = u
	vda := pieces("abc", SmallPiece, SmallPiece)
	w := begin(t, a, meta("g1"))
	var all sync.WaitGroup
	all.Go(func() {
		writeDisk(t, disk(t, w, "vda", vda, SmallPiece), vda)
		if _, err := w.Checkpoint(t.Context()); err != nil {
			t.Error(err)
		}
	})
	err := <-gone
	time.Sleep(1500 * time.Millisecond) // for it to be tried again
	left, lerr := os.ReadDir(c.URI)
	if err := errors.Join(err, lerr); err != nil || len(left) != 0 {
		t.Errorf("%v, %v: written into the folder beneath", left, err)
	}
	if err := errors.Join(os.RemoveAll(c.URI), os.Rename(c.URI+".away", c.URI)); err != nil {
		t.Fatal(err)
	}
	u.back.Store(true)
	all.Wait()
	same(t, a, finish(t, w), "vda", vda)
}

// TestSwapped has another archive in the place of the one that is open, as where disks are changed in turn: nothing is written into it.
func TestSwapped(t *testing.T) {
	t.Parallel()
	c := fresh(t)
	a := open(t, c)
	vda := pieces("abc", SmallPiece, SmallPiece)
	w := begin(t, a, meta("g1"))
	writeDisk(t, disk(t, w, "vda", vda, SmallPiece), vda)
	other := c
	other.URI, other.Folder = c.URI+".other", t.TempDir()
	if err := Create(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	swap := func() {
		t.Helper()
		if err := errors.Join(os.Rename(c.URI, c.URI+".swap"), os.Rename(other.URI, c.URI), os.Rename(c.URI+".swap", other.URI)); err != nil {
			t.Fatal(err)
		}
	}
	swap()
	a.st.patience = 100 * time.Millisecond
	if _, err := w.Checkpoint(t.Context()); !errors.Is(err, ErrUnreachable) {
		t.Errorf("written into another archive: %v", err)
	}
	swap()
	open(t, other)
	same(t, a, finish(t, w), "vda", vda)
}

// TestFull runs out of space on a real file system; with more of it the same backup goes on.
func TestFull(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	c := fresh(t)
	mount := filepath.Join(t.TempDir(), "small")
	if err := os.Mkdir(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("virt-cow-test", mount, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatalf("mounting a small file system: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(mount, syscall.MNT_DETACH) })
	c.URI = filepath.Join(mount, "repository")
	if err := Create(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	a := open(t, c)
	vda := pieces("abcdefghijklmn", SmallPiece, SmallPiece)
	w := begin(t, a, meta("g1"))
	d := disk(t, w, "vda", vda, SmallPiece)
	var err error
	for p := 0; p < d.Pieces() && err == nil; p++ {
		err = d.Write(t.Context(), p, vda[p*SmallPiece:][:SmallPiece])
	}
	if err == nil {
		_, err = w.Checkpoint(t.Context())
	}
	if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), c.URI) || strings.Count(err.Error(), "no space") > 2 {
		t.Fatalf("%v, want %v", err, ErrNoSpace)
	}
	if err := syscall.Mount("virt-cow-test", mount, "tmpfs", syscall.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	writeDisk(t, d, vda)
	same(t, a, finish(t, w), "vda", vda)
}

// TestOpen opens what can't be opened.
func TestOpen(t *testing.T) {
	good := fresh(t)
	write := func(name, text string, mode os.FileMode) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), name)
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	for name, x := range map[string]struct {
		change func(*Config)
		is     error
		says   string
	}{
		"wrong passphrase":     {func(c *Config) { c.PassphraseFile = write("p", "other", 0o600) }, ErrPassphrase, "/p is not of this archive"},
		"passphrase for all":   {func(c *Config) { c.PassphraseFile = write("p", "correct horse", 0o644) }, nil, "others can read"},
		"no passphrase":        {func(c *Config) { c.PassphraseFile = write("p", "\n", 0o600) }, nil, "is empty"},
		"two passphrases":      {func(c *Config) { c.PassphraseFile = write("p", "a\nb", 0o600) }, nil, "more than one line"},
		"no passphrase file":   {func(c *Config) { c.PassphraseFile = "" }, nil, "passphrase file"},
		"a folder for a file":  {func(c *Config) { c.PassphraseFile = t.TempDir() }, nil, "not a regular file"},
		"empty folder":         {func(c *Config) { c.URI = t.TempDir() }, ErrNoRepository, "archive create"},
		"no folder":            {func(c *Config) { c.URI = filepath.Join(t.TempDir(), "x") }, ErrNoRepository, "mounted"},
		"a file":               {func(c *Config) { c.URI = write("f", "", 0o600) }, ErrUnreachable, ""},
		"relative":             {func(c *Config) { c.URI = "x" }, nil, "want a folder"},
		"unknown":              {func(c *Config) { c.URI = "ftp://x/y" }, nil, "want a folder"},
		"host in a file URI":   {func(c *Config) { c.URI = "file://x/y" }, nil, "want file:///PATH"},
		"secrets in the URI":   {func(c *Config) { c.URI = "s3://me:hush@bucket/x" }, nil, "no names or passwords"},
		"no bucket":            {func(c *Config) { c.URI = "s3:///x" }, nil, "want s3://BUCKET"},
		"unknown option":       {func(c *Config) { c.URI = "s3://b/x?colour=red" }, nil, "colour"},
		"no credentials":       {func(c *Config) { c.URI = "s3://b/x" }, nil, "AWS_ACCESS_KEY_ID"},
		"bad credentials":      {func(c *Config) { c.URI, c.CredentialsFile = "s3://b/x", write("c", "[default]\n", 0o600) }, nil, "has no aws_access_key_id"},
		"credentials for all":  {func(c *Config) { c.URI, c.CredentialsFile = "s3://b/x", write("c", "", 0o640) }, nil, "others can read"},
		"not kopia's":          {func(c *Config) { c.URI = "kopia://" + write("k", "{}", 0o600) }, nil, "no storage"},
		"unknown storage":      {func(c *Config) { c.URI = "kopia://" + write("k", `{"storage":{"type":"abacus"}}`, 0o600) }, nil, "abacus"},
		"folder is not a path": {func(c *Config) { c.Folder = "node" }, nil, "absolute"},
	} {
		t.Run(name, func(t *testing.T) {
			c := good
			x.change(&c)
			a, err := Open(t.Context(), c)
			if err == nil {
				a.Close(t.Context())
				t.Fatal("opened")
			}
			if x.is != nil && !errors.Is(err, x.is) || !strings.Contains(err.Error(), x.says) || strings.Contains(err.Error(), "hush") {
				t.Errorf("%v", err)
			}
		})
	}
	if err := Create(t.Context(), good); !errors.Is(err, ErrExists) {
		t.Errorf("made again: %v", err)
	}
	for name, uri := range map[string]string{
		"file URI":            "file://" + good.URI,
		"kopia's config file": "kopia://" + write("k", `{"storage":{"type":"filesystem","config":{"path":"`+good.URI+`"}}}`, 0o600),
	} {
		c := good
		c.URI = uri
		if _, err := open(t, c).List(t.Context(), Filter{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNoSecrets looks for secrets in what is left on this host.
func TestNoSecrets(t *testing.T) {
	t.Parallel()
	c := fresh(t)
	var log bytes.Buffer
	c.Log = c.Log.Output(&log).Level(-1)
	a := open(t, c)
	backup(t, a, meta("g1"), pieces("a", SmallPiece, SmallPiece), SmallPiece)
	err := filepath.Walk(c.Folder, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		if info.Mode().IsRegular() {
			if b, err := os.ReadFile(path); err != nil || bytes.Contains(b, []byte("correct horse")) {
				t.Errorf("%s: %v, or it has the passphrase", path, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if log.Len() == 0 || bytes.Contains(log.Bytes(), []byte("correct horse")) {
		t.Errorf("a log of %d bytes, or the passphrase is in it", log.Len())
	}
}
