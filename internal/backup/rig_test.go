package backup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// wait is how long a test polls for what must come.
const wait = 60 * time.Second

const piece = 64 << 10

// shelf is an archive in a folder: what outlives the process that wrote it is what was checkpointed. It fails at the operation
// that fails says.
type shelf struct {
	dir  string
	fail atomic.Pointer[func(op string) error] // nil: never
}

// fails has operations fail with what f says. A node that runs looks at its archive on its own too.
func (s *shelf) fails(f func(op string) error) { s.fail.Store(&f) }

func (s *shelf) op(op string) error {
	if f := s.fail.Load(); f != nil {
		return (*f)(op)
	}
	return nil
}

func (s *shelf) open(context.Context, func(string)) (Archive, error) { return s, s.op("open") }

func (s *shelf) Close(context.Context) error { return nil }

func (s *shelf) Begin(_ context.Context, i Info) (Writer, error) {
	return &shelfWriter{s: s, job: i.Job, staged: map[string][]byte{}}, s.op("begin")
}

func (s *shelf) Resume(_ context.Context, checkpoint []byte) (Writer, error) {
	return &shelfWriter{s: s, job: string(checkpoint), staged: map[string][]byte{}}, s.op("resume")
}

func (s *shelf) Entered(_ context.Context, job string) (string, error) {
	if _, err := os.Stat(filepath.Join(s.dir, "backup-"+job)); err != nil {
		return "", s.op("entered")
	}
	return "backup-" + job, s.op("entered")
}

func (s *shelf) Maintain(context.Context) (string, error) { return "quick", s.op("maintain") }

func (s *shelf) Forget(_ context.Context, job string) error {
	if err := s.op("forget"); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(s.dir, job))
}

type shelfWriter struct {
	s   *shelf
	job string

	mu     sync.Mutex
	staged map[string][]byte
	stats  Stats
}

func (w *shelfWriter) folder() string { return filepath.Join(w.s.dir, w.job) }

func (w *shelfWriter) stage(op, name string, data []byte) error {
	if err := w.s.op(op); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.staged[name] = bytes.Clone(data)
	w.stats.Written += int64(len(data))
	return nil
}

func (w *shelfWriter) Disk(name string, _, _ int64) (DiskWriter, error) {
	return &shelfDisk{w, name}, w.s.op("disk")
}

func (w *shelfWriter) File(_ context.Context, name string, data []byte) error {
	return w.stage("file", strings.ReplaceAll(name, "/", "-"), data)
}

func (w *shelfWriter) Checkpoint(context.Context) ([]byte, error) {
	if err := w.s.op("checkpoint"); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := os.MkdirAll(w.folder(), 0o700); err != nil {
		return nil, err
	}
	for name, data := range w.staged {
		if err := os.WriteFile(filepath.Join(w.folder(), name), data, 0o600); err != nil {
			return nil, err
		}
	}
	clear(w.staged)
	return []byte(w.job), nil
}

func (w *shelfWriter) Finish(ctx context.Context, manifest []byte) (string, error) {
	if err := w.s.op("finish"); err != nil {
		return "", err
	}
	if err := w.stage("file", "manifest", manifest); err != nil {
		return "", err
	}
	if _, err := w.Checkpoint(ctx); err != nil {
		return "", err
	}
	id := "backup-" + w.job
	if err := os.Rename(w.folder(), filepath.Join(w.s.dir, id)); err != nil {
		return "", err
	}
	return id, w.s.op("finished")
}

func (w *shelfWriter) Close() error { return nil }

func (w *shelfWriter) Stats() Stats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stats
}

type shelfDisk struct {
	w    *shelfWriter
	name string
}

func (d *shelfDisk) Write(ctx context.Context, index int64, data []byte) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return d.w.stage("write", fmt.Sprintf("%s.%d", d.name, index), data)
}

// read is a disk of a backup, and what else it has.
func (s *shelf) read(t *testing.T, id, disk string, size int64) []byte {
	t.Helper()
	out := make([]byte, size)
	for i := range (size + piece - 1) / piece {
		data, err := os.ReadFile(filepath.Join(s.dir, id, fmt.Sprintf("%s.%d", disk, i)))
		if err != nil {
			t.Fatal(err)
		}
		copy(out[i*piece:], data)
	}
	return out
}

// hosts are the daemons of the other hosts, and the disks.
type hosts struct {
	mu      sync.Mutex
	disks   map[string]*testDisk // by volume's UUID
	answer  func(address, path string, s api.PeerSnapshot) (any, error)
	cursors map[string][]int64 // by snapshot
	removed map[string]string  // by snapshot, the address that was asked
}

type testDisk struct {
	mu       sync.Mutex
	data     []byte
	standing Standing
	look     error
	onRead   func(off int64) error
	reads    map[int64]int // by offset
	opens    error
}

func (h *hosts) Call(_ context.Context, address, path string, in, out any) error {
	s := in.(api.PeerSnapshot)
	h.mu.Lock()
	answer := h.answer
	h.mu.Unlock()
	if answer != nil {
		a, err := answer(address, path, s)
		if a != nil || err != nil {
			if out != nil && a != nil {
				b, _ := json.Marshal(a)
				_ = json.Unmarshal(b, out)
			}
			return err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch path {
	case api.PathPeerCursor:
		h.cursors[s.Snapshot] = append(h.cursors[s.Snapshot], s.Cursor)
	case api.PathPeerSnapshotRemove:
		h.removed[s.Snapshot] = address
	case api.PathPeerAttest:
		*out.(*api.PeerAttestAnswer) = api.PeerAttestAnswer{Open: true, Unbroken: true, Epoch: 7}
	}
	return nil
}

func (h *hosts) disk(d *api.ManifestDisk) *testDisk {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.disks[d.UUID]
}

func (h *hosts) Open(_ context.Context, d *api.ManifestDisk) (Source, error) {
	disk := h.disk(d)
	disk.mu.Lock()
	defer disk.mu.Unlock()
	return disk, disk.opens
}

func (h *hosts) Owner(_ context.Context, d *api.ManifestDisk) (Standing, error) {
	disk := h.disk(d)
	disk.mu.Lock()
	defer disk.mu.Unlock()
	if errors.Is(disk.look, ErrGivenUp) { // it can be read
		return disk.standing, nil
	}
	return disk.standing, disk.look
}

func (d *testDisk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	onRead := d.onRead
	d.mu.Unlock()
	if onRead != nil {
		if err := onRead(off); err != nil {
			return 0, err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reads[off]++
	return copy(p, d.data[off:]), nil
}

func (d *testDisk) Extents(off, length int64) ([]blockdev.Extent, error) {
	return []blockdev.Extent{{Offset: off, Length: length, Zero: off == 2*piece}}, nil // the third piece is known to be a hole
}

func (d *testDisk) Look(context.Context, int64) (Standing, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.standing, d.look
}

func (d *testDisk) Via() (string, string) { return "lun", "" }
func (d *testDisk) Close() error          { return nil }

// rig is an image node with what is around it.
type rig struct {
	*hosts
	t      *testing.T
	shelf  *shelf
	config Config
	node   *Node
	stop   func() // ends it
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{
		t: t, shelf: &shelf{dir: t.TempDir()},
		hosts: &hosts{disks: map[string]*testDisk{}, cursors: map[string][]int64{}, removed: map[string]string{}},
	}
	r.config = Config{
		StateDir: t.TempDir(), Archive: r.shelf.open, Sources: r.hosts, Peers: r.hosts, Log: zerolog.New(zerolog.NewTestWriter(t)),
		Piece: piece, Checkpoint: time.Nanosecond, Retry: time.Millisecond, // a checkpoint after each piece
	}
	r.start()
	t.Cleanup(func() { r.stop() })
	return r
}

func (r *rig) start() {
	r.t.Helper()
	node, err := Open(r.config)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		node.Run(ctx)
	}()
	r.node = node
	r.stop = func() {
		cancel()
		<-ended
	}
	for node.stopped() {
		time.Sleep(time.Millisecond)
	}
}

func (r *rig) reserve() string {
	r.t.Helper()
	s := r.reserved()
	if s.State != api.JobReserved || s.Job == "" {
		r.t.Fatalf("%+v", s)
	}
	return s.Job
}

func (r *rig) reserved() api.JobStatus {
	r.t.Helper()
	s, err := r.node.Reserve(r.t.Context(), api.ReserveRequest{Domain: "web", UUID: domain, Host: "hv1", Address: "hv1:16589"})
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

const domain = "5b0f2b5e-0001-4d5c-9d0a-000000000001"

// manifest is of disks of these many pieces each; the last one is a short one.
func (r *rig) manifest(job string, pieces ...int) api.Manifest {
	m := api.Manifest{
		Version: 1, Domain: "web", UUID: domain, Host: "hv1", Cut: job, CutAt: time.Now().UnixMilli(), Grade: api.GradeFS,
		XML: "<domain/>", InactiveXML: "<domain id='1'/>", Files: map[string][]byte{"nvram": []byte("n"), "tpm/state": []byte("t")},
	}
	for i, n := range pieces {
		d := &testDisk{data: make([]byte, n*piece-512), reads: map[int64]int{}}
		for at := 0; at < len(d.data); at += 512 {
			if p := at / piece; p != 1 && p != 2 { // of the second and the third piece all are zeros
				copy(d.data[at:], fmt.Sprintf("disk %d sector %d", i, at/512))
			}
		}
		v := uuid.NewString()
		r.hosts.mu.Lock()
		r.disks[v] = d
		r.hosts.mu.Unlock()
		m.Disks = append(m.Disks, api.ManifestDisk{
			Target: fmt.Sprintf("vd%c", 'a'+i), Volume: fmt.Sprintf("web-%d", i), UUID: v, Size: int64(len(d.data)), Snapshot: uuid.NewString(),
		})
	}
	return m
}

func (r *rig) begin(m *api.Manifest) {
	r.t.Helper()
	if _, err := r.node.Start(r.t.Context(), api.StartRequest{Job: m.Cut, Manifest: *m}); err != nil {
		r.t.Fatal(err)
	}
}

// await waits for a job's state, by its long poll.
func (r *rig) await(job string, is func(api.JobStatus) bool) api.JobStatus {
	r.t.Helper()
	var changed uint64
	for end := time.Now().Add(wait); ; {
		s, err := r.node.Job(r.t.Context(), api.JobRequest{Job: job, Changed: changed})
		if err != nil {
			r.t.Fatal(err)
		}
		if is(s) {
			return s
		}
		if changed = s.Changed; time.Now().After(end) {
			r.t.Fatalf("job: %+v", s)
		}
	}
}

func state(want string) func(api.JobStatus) bool {
	return func(s api.JobStatus) bool { return s.State == want }
}

// holds checks that the archive has the disks of a job as they are.
func (r *rig) holds(s api.JobStatus, m *api.Manifest) {
	r.t.Helper()
	for _, d := range m.Disks {
		if !bytes.Equal(r.shelf.read(r.t, s.Backup, d.Target, d.Size), r.disks[d.UUID].data) {
			r.t.Errorf("%s is not as it was", d.Target)
		}
	}
}

// awaitRemoved waits until all snapshots of a manifest were asked to be removed.
func (r *rig) awaitRemoved(m *api.Manifest) {
	r.t.Helper()
	for end := time.Now().Add(wait); ; time.Sleep(time.Millisecond) {
		r.hosts.mu.Lock()
		missing := ""
		for _, d := range m.Disks {
			if r.removed[d.Snapshot] == "" {
				missing = d.Target
			}
		}
		r.hosts.mu.Unlock()
		switch {
		case missing == "":
			return
		case time.Now().After(end):
			r.t.Fatalf("the snapshot of %s is still there", missing)
		}
	}
}

// awaitForgotten waits until the archive has nothing.
func (r *rig) awaitForgotten() {
	r.t.Helper()
	for end := time.Now().Add(wait); ; time.Sleep(time.Millisecond) {
		left, err := os.ReadDir(r.shelf.dir)
		switch {
		case err == nil && len(left) == 0:
			return
		case time.Now().After(end):
			r.t.Fatal(left, err)
		}
	}
}

var errAway = errors.New("away")
