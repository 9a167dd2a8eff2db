package archive

import (
	"bytes"
	"context"
	"errors"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/restore"
	"github.com/kopia/kopia/snapshot/snapshotfs"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
)

// openedDir is set, to a folder of fresh, for a process that only connects to the archive.
const openedDir = "VIRT_COW_TEST_OPENED"

// openAtOnce does the first part of Open many times at once, before its process has done anything else.
func openAtOnce(dir string) {
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			c := Config{URI: filepath.Join(dir, "repository"), PassphraseFile: filepath.Join(dir, "passphrase"), Folder: filepath.Join(dir, "node")}
			p, _, err := c.read()
			if err == nil {
				var st *storage
				if st, err = p.connect(context.Background(), &c, false); err == nil {
					_, _, err = c.connection(st, "1", false)
				}
			}
			if err != nil {
				panic(err)
			}
		})
	}
	all.Wait()
}

// TestOpenAtOnce: an image node that starts looks after its archive, and goes on with its jobs, at once.
func TestOpenAtOnce(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), openedDir+"="+filepath.Dir(fresh(t).URI))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// plain is the archive as `kopia repository connect` would have it, on a storage that knows nothing of us.
func plain(t *testing.T, c Config) repo.DirectRepository {
	t.Helper()
	ctx := t.Context()
	p, err := parsePlace(&c)
	if err != nil {
		t.Fatal(err)
	}
	st, err := p.connect(ctx, &c, false)
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "repository.config")
	if err := repo.Connect(ctx, config, st.Storage, "correct horse", nil); err != nil {
		t.Fatal(err)
	}
	rep, err := repo.Open(ctx, config, "correct horse", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rep.Close(context.Background()) })
	return rep.(repo.DirectRepository)
}

// TestPassphraseChanged: what kopia's `repository change-password` did holds at once, caches or not.
func TestPassphraseChanged(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), fresh(t)
	a := open(t, c)
	id := backup(t, a, meta("g1"), pieces("ab", SmallPiece, 512), SmallPiece)
	if err := a.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := plain(t, c).FormatManager().ChangePassword(ctx, "another phrase"); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(ctx, c); !errors.Is(err, ErrPassphrase) {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.PassphraseFile, []byte("another phrase"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, c).Get(ctx, id); err != nil {
		t.Fatal(err)
	}
}

// TestPlainKopia has kopia itself list, verify and restore what was written, through what its commands call.
func TestPlainKopia(t *testing.T) {
	t.Parallel()
	c := fresh(t)
	a := open(t, c)
	vda, vdb := pieces("abc..a.d", LargePiece, LargePiece), pieces(".e..f.", SmallPiece, 512)
	m := meta("g1")
	w := begin(t, a, m)
	writeDisk(t, disk(t, w, "vda", vda, LargePiece), vda)
	writeDisk(t, disk(t, w, "vdb", vdb, SmallPiece), vdb)
	small := map[string][]byte{"domain.xml": []byte("<domain/>"), "nvram": bytes.Repeat([]byte{1, 0}, 9<<20), "tpm/tpm2-00.permall": {}}
	for name, data := range small {
		if err := w.File(t.Context(), name, data); err != nil {
			t.Fatal(err)
		}
	}
	id := finish(t, w)
	other := backup(t, a, meta("g2"), vdb, SmallPiece)

	ctx, rep := t.Context(), plain(t, c)
	sources, err := snapshot.ListSources(ctx, rep)
	if err != nil || len(sources) != 2 {
		t.Fatalf("%v, %v: want one source a domain", sources, err)
	}
	found, err := snapshot.ListSnapshots(ctx, rep, snapshot.SourceInfo{UserName: "virt-cow", Host: "domains", Path: "/g1"})
	if err != nil || len(found) != 1 || string(found[0].ID) != id {
		t.Fatalf("%v, %v: want %s", found, err, id)
	}
	byTag, err := snapshot.ListSnapshotManifests(ctx, rep, nil, map[string]string{"tag:domain": "g2"})
	if err != nil || len(byTag) != 1 || string(byTag[0]) != other {
		t.Fatalf("%v, %v: want %s", byTag, err, other)
	}
	if s := found[0]; s.IncompleteReason != "" || !s.StartTime.ToTime().Equal(m.Time) || s.Stats.TotalFileSize < int64(len(vda)+len(vdb)) {
		t.Errorf("%+v", s)
	}
	root, err := snapshotfs.SnapshotRoot(rep, found[0])
	if err != nil {
		t.Fatal(err)
	}
	v := snapshotfs.NewVerifier(ctx, rep, snapshotfs.VerifierOptions{VerifyFilesPercent: 100, Parallelism: 2})
	result, err := v.InParallel(ctx, func(tw *snapshotfs.TreeWalker) error { return tw.Process(ctx, root, "") })
	if err != nil || result.ErrorCount != 0 || result.Stats.ReadFileCount != 7 {
		t.Fatalf("%+v, %v", result, err)
	}
	to := filepath.Join(t.TempDir(), "restored")
	out := &restore.FilesystemOutput{TargetPath: to, WriteSparseFiles: true, SkipOwners: true}
	if err := out.Init(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := restore.Entry(ctx, rep, out, root, restore.Options{Parallel: 2, RestoreDirEntryAtDepth: math.MaxInt32}); err != nil {
		t.Fatal(err)
	}
	small["vda.img"], small["vdb.img"], small["backup.json"] = vda, vdb, []byte(`{"version":1}`)
	for name, want := range small {
		got, err := os.ReadFile(filepath.Join(to, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: kopia restored something else (%d bytes, want %d): %v", name, len(got), len(want), err)
		}
	}
}

// TestBackup reads a backup through our own API, and looks at what it tells.
func TestBackup(t *testing.T) {
	t.Parallel()
	a := open(t, fresh(t))
	ctx := t.Context()
	vda := pieces("ab.ab..c", LargePiece, 512*3)
	m := meta("g1")
	w := begin(t, a, m)
	d := disk(t, w, "vda", vda, LargePiece)
	writeDisk(t, d, vda)
	if err := w.File(ctx, "tpm/x", []byte("tpm")); err != nil {
		t.Fatal(err)
	}
	stats := w.Stats()
	if stats.Read != int64(len(vda)) || stats.Zero != 3*LargePiece || stats.Reused != 2*LargePiece {
		t.Errorf("%+v", stats)
	}
	if d.Done() != int64(len(vda)) {
		t.Errorf("done %d of %d", d.Done(), len(vda))
	}
	if l, err := a.List(ctx, Filter{}); err != nil || len(l) != 0 {
		t.Fatalf("%v, %v: listed before the end", l, err)
	}
	id := finish(t, w)
	same(t, a, id, "vda", vda)

	l, err := a.List(ctx, Filter{Domain: "g1"})
	if err != nil || len(l) != 1 || l[0].ID != id || l[0].Meta != m {
		t.Fatalf("%+v, %v: want %+v", l, err, m)
	}
	if l, err := a.List(ctx, Filter{Domain: "g2"}); err != nil || len(l) != 0 {
		t.Fatalf("%v, %v", l, err)
	}
	got, err := a.Get(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Disks) != 1 || got.Disks[0].Size != int64(len(vda)) || !slices.Equal(got.Files, []string{"tpm/x"}) || string(got.Manifest) != `{"version":1}` {
		t.Errorf("%+v", got)
	}
	if b, err := a.File(ctx, id, "tpm/x"); err != nil || string(b) != "tpm" {
		t.Errorf("%q, %v", b, err)
	}

	// The same again puts nothing in.
	w = begin(t, a, meta("g1"))
	writeDisk(t, disk(t, w, "vda", vda, LargePiece), vda)
	if s := w.Stats(); s.Reused != int64(len(vda))-3*LargePiece || s.Written > 64<<10 {
		t.Errorf("the same again: %+v", s)
	}
	again := finish(t, w)
	if r, err := a.Verify(ctx, id, func(Report) {}); err != nil || r.Done != int64(len(vda)) || len(r.Damage) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if err := a.Delete(ctx, id); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Get(ctx, id); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted: %v", err)
	}
	if done, err := a.Maintain(ctx, UpkeepFull, false); err != nil || done != UpkeepFull {
		t.Fatal(done, err)
	}
	if done, err := a.Maintain(ctx, UpkeepDue, false); err != nil || done != UpkeepNone {
		t.Error("due again at once:", done, err)
	}
	same(t, a, again, "vda", vda)
	for _, id := range []string{"", "../x", id, strings.Repeat("0", 32)} {
		if _, err := a.OpenDisk(ctx, id, "vda", DiskOptions{}); !errors.Is(err, ErrNotFound) {
			t.Errorf("backup %q: %v", id, err)
		}
	}
	if _, err := a.OpenDisk(ctx, again, "vdz", DiskOptions{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("disk vdz: %v", err)
	}
	if _, err := a.File(ctx, again, "nvram"); !errors.Is(err, ErrNotFound) {
		t.Errorf("file nvram: %v", err)
	}
}

// TestDevice holds an opened disk to what a block device is.
func TestDevice(t *testing.T) {
	t.Parallel()
	a := open(t, fresh(t))
	vda := pieces("a..b", SmallPiece, 512*5)
	id := backup(t, a, meta("g1"), vda, SmallPiece)
	open := func(t *testing.T) blockdev.Device {
		dev, err := a.OpenDisk(t.Context(), id, "vda", DiskOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return dev
	}
	blockdevtest.Conformance(t, open)
	dev := open(t)
	defer dev.Close()
	got, err := dev.Extents(512, int64(len(vda))-512)
	want := []blockdev.Extent{
		{Offset: 512, Length: SmallPiece - 512}, {Offset: SmallPiece, Length: 2 * SmallPiece, Zero: true, Hole: true},
		{Offset: 3 * SmallPiece, Length: 512 * 5},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v: want %v", got, err, want)
	}
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			p := make([]byte, 512*33)
			for i := range 50 {
				at := (g*7919 + i*104729) * 512 % (len(vda) - len(p)) &^ 511
				if _, err := dev.ReadAt(p, int64(at)); err != nil || !bytes.Equal(p, vda[at:at+len(p)]) {
					t.Errorf("at %d: %v", at, err)
				}
			}
		})
	}
	all.Wait()
}

// TestTwoAtOnce writes two backups at once through one connection, and a third through another.
func TestTwoAtOnce(t *testing.T) {
	t.Parallel()
	c := fresh(t)
	a := open(t, c)
	far := c
	far.Folder, far.Host = t.TempDir(), "node2"
	b := open(t, far)
	images := [][]byte{pieces("abcdef", SmallPiece, 512), pieces("defghi", SmallPiece, 512), pieces("abxyzi", SmallPiece, 512)}
	ids := make([]string, 3)
	var all sync.WaitGroup
	for i, on := range []*Archive{a, a, b} {
		all.Go(func() {
			w := begin(t, on, meta("g1"))
			d := disk(t, w, "vda", images[i], SmallPiece)
			for p := range d.Pieces() {
				if err := d.Write(t.Context(), p, images[i][int64(p)*SmallPiece:][:d.Length(p)]); err != nil {
					t.Error(err)
				}
				if _, err := w.Checkpoint(t.Context()); err != nil {
					t.Error(err)
				}
			}
			ids[i] = finish(t, w)
		})
	}
	all.Wait()
	for i, id := range ids {
		same(t, a, id, "vda", images[i])
		same(t, b, id, "vda", images[i])
	}
	if _, err := b.Maintain(t.Context(), UpkeepQuick, false); !errors.Is(err, ErrNotOwner) {
		t.Errorf("maintenance by another host: %v", err)
	}
	if _, err := b.Maintain(t.Context(), UpkeepQuick, true); err != nil {
		t.Errorf("taken over: %v", err)
	}
}

// TestOtherArchive has another archive in the place of one, with the same caches.
func TestOtherArchive(t *testing.T) {
	t.Parallel()
	c := fresh(t)
	image := pieces("ab.", SmallPiece, SmallPiece)
	backup(t, open(t, c), meta("g1"), image, SmallPiece)
	if err := os.RemoveAll(c.URI); err != nil {
		t.Fatal(err)
	}
	if err := Create(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	id := backup(t, open(t, c), meta("g2"), image, SmallPiece)
	c.Folder = t.TempDir()
	a := open(t, c)
	if _, err := a.Verify(t.Context(), id, nil); err != nil {
		t.Error(err)
	}
}
