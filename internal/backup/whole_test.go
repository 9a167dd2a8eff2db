package backup

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/archive"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/master"
	"github.com/virt-cow/virt-cow/internal/store"
)

// guestChunk is the size of the chunks of the volumes and snapshots in these tests.
const guestChunk = 64 << 10

// volume is a guest's disk with a snapshot, in files; its test is its engine.
type volume struct {
	t        *testing.T
	origin   *blockdev.File // the raw disk, or the clone's store
	data     blockdev.Device
	store    *store.Store
	snapshot *store.Snapshot
	saved    []byte // flags of its only leaf
	was      []byte // at the cut
	disk     api.ManifestDisk
}

func create(t *testing.T, path string, size int64) *blockdev.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err == nil {
		err = f.Truncate(size)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	d, err := blockdev.OpenFile(t.Context(), path, blockdev.FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (v *volume) check(err error) {
	v.t.Helper()
	if err != nil {
		v.t.Fatal(err)
	}
}

// raw makes a volume of a raw disk.
func raw(t *testing.T, dir, name string, size int64) *volume {
	t.Helper()
	v := &volume{t: t, was: make([]byte, size)}
	for off := 0; off < len(v.was); off += 512 {
		if off/guestChunk%4 != 3 { // every fourth chunk is zeros
			copy(v.was[off:], fmt.Sprintf("%s at the cut, sector %d", name, off/512))
		}
	}
	v.origin = create(t, filepath.Join(dir, name+".raw"), size)
	v.data = v.origin
	must(v.origin.WriteAt(v.was, 0))(t)
	h := must(store.NewHeader(store.Params{
		Name: name, Role: cowfmt.RoleState, Size: size, ChunkSize: guestChunk, Now: time.Now(),
		Origin: &cowfmt.Locator{Kind: cowfmt.LocatorRaw, Address: v.origin.Info().Name},
	}))(t)
	dev := create(t, filepath.Join(dir, name+".state"), h.DataEnd())
	v.check(store.Create(dev, h))
	v.store = must(store.Open(dev))(t)
	v.disk = api.ManifestDisk{Target: "vda", Volume: name, UUID: h.UUID.String(), Size: size, Origin: &api.Place{Address: v.origin.Info().Name, Size: size}}
	v.disk.Store = api.Place{Address: dev.Info().Name, UUID: h.UUID.String()}
	return v
}

// clone makes a volume whose even chunks are its own and whose odd ones are the master's.
func clone(t *testing.T, dir, name string, size int64) *volume {
	t.Helper()
	v := &volume{t: t, was: make([]byte, size)}
	base := bytes.Repeat([]byte("of the master..."), int(size)/16)
	m := create(t, filepath.Join(dir, name+".master"), size)
	must(m.WriteAt(base, 0))(t)
	h := must(store.NewHeader(store.Params{
		Name: name, Role: cowfmt.RoleClone, Size: size, ChunkSize: guestChunk, Now: time.Now(),
		Master: &cowfmt.Locator{Kind: cowfmt.LocatorRaw, Address: m.Info().Name}, MasterIdentity: identity(t, m),
	}))(t)
	dev := create(t, filepath.Join(dir, name+".cow"), h.DataEnd())
	v.check(store.Create(dev, h))
	v.origin, v.store = dev, must(store.Open(dev))(t)
	v.data = must(v.store.Data())(t)
	copy(v.was, base)
	flags := make([]byte, store.LeafFlags)
	for c := int64(0); c < size/guestChunk; c += 2 {
		copy(v.was[c*guestChunk:], bytes.Repeat([]byte(fmt.Sprintf("clone's chunk %02d", c)), guestChunk/16))
		must(v.data.WriteAt(v.was[c*guestChunk:(c+1)*guestChunk], c*guestChunk))(t)
		flags[c/8] |= 1 << (c % 8)
	}
	v.check(v.store.WriteLeaves([]store.Leaf{{Index: 0, Flags: flags}}))
	v.disk = api.ManifestDisk{Target: "vdb", Volume: name, UUID: h.UUID.String(), Size: size, Master: &api.Place{Address: m.Info().Name, Size: size}}
	v.disk.Store = api.Place{Address: dev.Info().Name, UUID: h.UUID.String()}
	return v
}

// cut makes the snapshot.
func (v *volume) cut(dir, cut string) {
	v.t.Helper()
	h := must(store.NewSnapshotHeader(store.SnapshotParams{
		Volume: v.store.Header(), VolumeAddress: v.disk.Store.Address, Cut: uuid.MustParse(cut), Now: time.Now(),
	}))(v.t)
	dev := create(v.t, filepath.Join(dir, v.disk.Volume+".snapshot"), h.DataEnd())
	v.check(store.CreateSnapshot(dev, h))
	v.snapshot, v.saved = must(store.OpenSnapshot(dev))(v.t), make([]byte, store.LeafFlags)
	if v.snapshot.HasFrozen() {
		flags := make([]byte, store.LeafFlags)
		v.check(v.store.ReadLeaf(0, flags))
		v.check(v.snapshot.WriteFrozen([]store.Leaf{{Index: 0, Flags: flags}}))
	}
	v.check(v.store.AddSnapshot(cowfmt.StackEntry{
		Kind: cowfmt.StackSnapshot, State: cowfmt.StackPending, UUID: h.UUID, Generation: h.Generation, CutID: h.Cut,
		Locator: cowfmt.Locator{Kind: cowfmt.LocatorStore, Address: dev.Info().Name},
	}))
	v.state(cowfmt.StackActive)
	v.disk.Snapshot, v.disk.ChunkSize = h.UUID.String(), h.ChunkSize
	v.disk.Saves = api.Place{Address: dev.Info().Name, UUID: h.UUID.String()}
}

func (v *volume) state(s uint8) {
	v.t.Helper()
	v.check(v.store.SetSnapshot(v.snapshot.Header().UUID, func(e *cowfmt.StackEntry) { e.State = s }))
}

// overwrite is the guest's first write to a chunk since the cut.
func (v *volume) overwrite(chunk int64) {
	v.t.Helper()
	off := chunk * guestChunk
	saves := must(v.snapshot.Data())(v.t)
	must(saves.WriteAt(v.was[off:off+guestChunk], off))(v.t)
	v.saved[chunk/8] |= 1 << (chunk % 8)
	v.check(v.snapshot.WriteLeaves([]store.Leaf{{Index: 0, Flags: v.saved}}))
	must(v.data.WriteAt(bytes.Repeat([]byte("after the cut..."), guestChunk/16), off))(v.t)
}

// whole is an image node with a real archive and disks in a folder.
type whole struct {
	t       *testing.T
	archive archive.Config
	dir     string
	hosts   *hosts
	config  Config
}

// template is an empty archive that tests copy: making one takes a while.
var template = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "virt-cow-backup-test-")
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "passphrase"), []byte("correct horse\n"), 0o600); err != nil {
		return "", err
	}
	return dir, archive.Create(context.Background(), archiveAt(dir))
})

func archiveAt(dir string) archive.Config {
	return archive.Config{URI: filepath.Join(dir, "repository"), PassphraseFile: filepath.Join(dir, "passphrase"), Host: "node", Log: zerolog.Nop()}
}

func TestMain(m *testing.M) {
	if dir := os.Getenv("VIRT_COW_TEST_NODE"); dir != "" {
		runNode(dir)
	}
	code := m.Run()
	if dir, err := template(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

func newWhole(t *testing.T) *whole {
	t.Helper()
	from, err := template()
	if err != nil {
		t.Fatal(err)
	}
	w := &whole{t: t, dir: t.TempDir(), hosts: &hosts{disks: map[string]*testDisk{}, cursors: map[string][]int64{}, removed: map[string]string{}}}
	if out, err := exec.Command("cp", "-a", from+"/.", w.dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Mkdir(w.path("disks"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.archive = archiveAt(w.dir)
	w.config = nodeConfig(w.dir)
	w.config.Peers = w.hosts
	return w
}

func (w *whole) path(name string) string { return filepath.Join(w.dir, name) }

// nodeConfig is that of a node in a folder.
func nodeConfig(dir string) Config {
	return Config{
		StateDir: filepath.Join(dir, "state"), Archive: OpenArchive(archiveAt(dir)), Log: zerolog.Nop(),
		Sources: NewSources(Places{Folders: []string{filepath.Join(dir, "disks")}, Scan: scanFolders}, zerolog.Nop()),
		Piece:   1 << 20, Checkpoint: time.Nanosecond, Retry: time.Millisecond,
	}
}

// rig runs a node here.
func (w *whole) rig() *rig {
	r := &rig{t: w.t, hosts: w.hosts, config: w.config}
	r.start()
	w.t.Cleanup(func() { r.stop() })
	return r
}

// holds checks what the archive has.
func (w *whole) holds(id string, volumes ...*volume) {
	w.t.Helper()
	a := must(archive.Open(w.t.Context(), w.archive))(w.t)
	defer a.Close(context.Background())
	for _, v := range volumes {
		d := must(a.OpenDisk(w.t.Context(), id, v.disk.Target, archive.DiskOptions{}))(w.t)
		got := make([]byte, v.disk.Size)
		must(d.ReadAt(got, 0))(w.t)
		if !bytes.Equal(got, v.was) {
			w.t.Errorf("%s is not as it was at the cut", v.disk.Volume)
		}
		d.Close()
	}
	if d := must(a.Get(w.t.Context(), id))(w.t); len(d.Disks) != len(volumes) || json.Unmarshal(d.Manifest, &api.Manifest{}) != nil {
		w.t.Errorf("%+v", d)
	}
	must(a.Verify(w.t.Context(), id, nil))(w.t)
}

func manifestOf(job string, volumes ...*volume) api.Manifest {
	m := api.Manifest{Version: 1, Domain: "web", UUID: domain, Host: "hv1", Cut: job, CutAt: time.Now().UnixMilli(), Grade: api.GradeCrash}
	for _, v := range volumes {
		m.Disks = append(m.Disks, v.disk)
	}
	return m
}

// A raw disk and a clone that is half its master's, whose guest has written since the cut.
func TestWhole(t *testing.T) {
	t.Parallel()
	w := newWhole(t)
	r := w.rig()
	job := r.reserve()
	a, b := raw(t, w.path("disks"), "a", 5<<20), clone(t, w.path("disks"), "b", 3<<20)
	for _, v := range []*volume{a, b} {
		v.cut(w.path("disks"), job)
		v.overwrite(0)
		v.overwrite(20)
	}
	// The clone's chunk 1 was the master's: no copy is needed.
	must(b.data.WriteAt(bytes.Repeat([]byte("after the cut..."), guestChunk/16), guestChunk))(t)
	m := manifestOf(job, a, b)
	m.Disks[1].Store.Address = "/dev/mapper/elsewhere" // found by its UUID
	r.begin(&m)
	s := r.await(job, func(s api.JobStatus) bool { return s.Ended != 0 })
	if s.State != api.JobDone {
		t.Fatalf("%+v", s)
	}
	w.holds(s.Backup, a, b)
	r.awaitRemoved(&m)
}

// What is broken fails, also where the snapshot's store can't be read any more; the archive keeps nothing of it.
func TestWholeBroken(t *testing.T) {
	t.Parallel()
	for _, gone := range []bool{false, true} {
		w := newWhole(t)
		r := w.rig()
		job := r.reserve()
		v := raw(t, w.path("disks"), "a", 2<<20)
		v.cut(w.path("disks"), job)
		v.state(cowfmt.StackBroken)
		if gone {
			v.check(os.Remove(v.disk.Saves.Address))
		}
		m := manifestOf(job, v)
		r.begin(&m)
		if s := r.await(job, func(s api.JobStatus) bool { return s.Ended != 0 }); s.State != api.JobFailed || !strings.Contains(s.Error, "broken") {
			t.Errorf("%+v", s)
		}
		r.awaitRemoved(&m)
		a := must(archive.Open(t.Context(), w.archive))(t)
		defer a.Close(context.Background())
		if all := must(a.List(t.Context(), archive.Filter{}))(t); len(all) != 0 {
			t.Error(all)
		}
	}
}

// A node is killed in the middle. The next one reads nothing that is in the archive.
func TestWholeKilled(t *testing.T) {
	t.Parallel()
	w := newWhole(t)
	r := w.rig()
	job := r.reserve()
	v := raw(t, w.path("disks"), "a", 12<<20)
	v.cut(w.path("disks"), job)
	v.overwrite(5)
	m := manifestOf(job, v)
	r.stop()
	r.node.queue = nil
	if _, err := r.node.Start(t.Context(), api.StartRequest{Job: job, Manifest: m}); err != nil { // the node that is stopped only notes it
		t.Fatal(err)
	}
	self := must(os.Executable())(t)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "VIRT_COW_TEST_NODE="+w.dir, "TMPDIR="+t.TempDir()) // what it leaves goes with the test
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	journal := must(openJournal(w.config.StateDir))(t)
	for end := time.Now().Add(wait); ; time.Sleep(5 * time.Millisecond) {
		if p, _, err := journal.checkpoint(job); err == nil && len(p.Pieces) == 1 && p.Pieces[0] >= 3 {
			break
		}
		if time.Now().After(end) {
			cmd.Process.Kill()
			t.Fatal("no checkpoint")
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	at, _, err := journal.checkpoint(job)
	if err != nil || at.Pieces[0] >= 12 {
		t.Fatal(at, err)
	}
	seen := &watched{Sources: w.config.Sources, lowest: v.disk.Size}
	r.config.Sources = seen
	v.overwrite(150)
	r.start()
	s := r.await(job, func(s api.JobStatus) bool { return s.Ended != 0 })
	if s.State != api.JobDone {
		t.Fatalf("%+v", s)
	}
	w.holds(s.Backup, v)
	if seen.lowest < at.Pieces[0]<<20 {
		t.Errorf("read at %d, the archive had %d pieces", seen.lowest, at.Pieces[0])
	}
}

// A node is killed after its first checkpoint is in the archive, and before that is noted: the next one begins anew, and goes on from its own.
func TestWholeKilledUnnoted(t *testing.T) {
	t.Parallel()
	w := newWhole(t)
	w.config.Checkpoint = time.Hour // one a disk
	failing := &onceFailing{Sources: w.config.Sources}
	w.config.Sources = failing
	r := w.rig()
	job := r.reserve()
	a, b := raw(t, w.path("disks"), "a", 3<<20), raw(t, w.path("disks"), "b", 1<<20)
	b.disk.Target = "vdb"
	a.cut(w.path("disks"), job)
	b.cut(w.path("disks"), job)
	m := manifestOf(job, a, b)

	killed := must(w.config.Archive(t.Context(), func(string) {}))(t)
	writer := must(killed.Begin(t.Context(), Info{Job: job, Domain: m.Domain, UUID: m.UUID, Host: m.Host, Grade: m.Grade, CutAt: time.UnixMilli(m.CutAt)}))(t)
	a.check(must(writer.Disk("vda", a.disk.Size, 1<<20))(t).Write(t.Context(), 0, a.was[:1<<20]))
	must(writer.Checkpoint(t.Context()))(t)
	a.check(killed.Close(t.Context()))

	r.begin(&m)
	s := r.await(job, func(s api.JobStatus) bool { return s.Ended != 0 || strings.Contains(s.Waits, "missing") })
	if s.State != api.JobDone || !failing.failed.Load() {
		t.Fatalf("%+v", s)
	}
	w.holds(s.Backup, a, b)
}

// onceFailing has the first read of the second disk fail.
type onceFailing struct {
	Sources
	failed atomic.Bool
}

type onceFailingSource struct {
	Source
	f *onceFailing
}

func (f *onceFailing) Open(ctx context.Context, d *api.ManifestDisk) (Source, error) {
	s, err := f.Sources.Open(ctx, d)
	if err != nil || d.Target != "vdb" {
		return s, err
	}
	return onceFailingSource{s, f}, nil
}

func (s onceFailingSource) ReadAt(p []byte, off int64) (int, error) {
	if !s.f.failed.Swap(true) {
		return 0, errAway
	}
	return s.Source.ReadAt(p, off)
}

// watched notes where is read.
type watched struct {
	Sources
	mu     sync.Mutex
	lowest int64
}

type watchedSource struct {
	Source
	w *watched
}

func (w *watched) Open(ctx context.Context, d *api.ManifestDisk) (Source, error) {
	s, err := w.Sources.Open(ctx, d)
	return watchedSource{s, w}, err
}

func (s watchedSource) ReadAt(p []byte, off int64) (int, error) {
	s.w.mu.Lock()
	s.w.lowest = min(s.w.lowest, off)
	s.w.mu.Unlock()
	return s.Source.ReadAt(p, off)
}

// halfRead has reads behind 6 MiB last until the process is killed.
type halfRead struct{ Sources }

type halfReadSource struct{ Source }

func (h halfRead) Open(ctx context.Context, d *api.ManifestDisk) (Source, error) {
	s, err := h.Sources.Open(ctx, d)
	return halfReadSource{s}, err
}

func (s halfReadSource) ReadAt(p []byte, off int64) (int, error) {
	if off >= 6<<20 {
		time.Sleep(wait)
	}
	return s.Source.ReadAt(p, off)
}

// runNode is a process that is to be killed.
func runNode(dir string) {
	c := nodeConfig(dir)
	c.Peers = &hosts{cursors: map[string][]int64{}, removed: map[string]string{}}
	c.Sources = halfRead{c.Sources}
	node, err := Open(c)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait) // where nobody kills it
	defer cancel()
	node.Run(ctx)
	os.Exit(0)
}

func identity(t *testing.T, f *blockdev.File) *cowfmt.Identity {
	t.Helper()
	return must(master.Identify(f))(t)
}
