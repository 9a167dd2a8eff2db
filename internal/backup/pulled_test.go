package backup

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/archive"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/peer"
	"github.com/virt-cow/virt-cow/test/lab/pki"
)

// puller is a host with disks that only it sees: what its daemon does is done here.
type puller struct {
	*hosts
	t     *testing.T
	files peer.Files

	mu      sync.Mutex
	volumes map[string]*volume // by UUID
	pulls   int
	exports map[string]*exported // by name
}

// exported is an Export that runs.
type exported struct {
	in   *io.PipeWriter
	out  *json.Decoder
	end  context.CancelFunc
	done chan struct{}
}

func certificates(t *testing.T, a *pki.Authority, names ...string) peer.Files {
	t.Helper()
	p := must(a.Server(names...))(t)
	dir := t.TempDir()
	if err := p.WriteServer(dir, a); err != nil {
		t.Fatal(err)
	}
	return peer.Files{CA: dir + "/" + pki.CACert, Cert: dir + "/" + pki.ServerCert, Key: dir + "/" + pki.ServerKey}
}

// pulling is an image node that sees the disks in "disks" only, and a host that sees all.
func pulling(t *testing.T) (*whole, *puller, *pki.Authority) {
	t.Helper()
	w, a := newWhole(t), must(pki.New("ours"))(t)
	if err := os.Mkdir(w.path("far"), 0o700); err != nil {
		t.Fatal(err)
	}
	p := &puller{hosts: w.hosts, t: t, files: certificates(t, a, "127.0.0.1"), volumes: map[string]*volume{}, exports: map[string]*exported{}}
	w.config.Peers = p
	w.config.Identity = peer.NewIdentity(certificates(t, a, "node"), zerolog.Nop())
	return w, p, a
}

func (p *puller) has(volumes ...*volume) {
	for _, v := range volumes {
		p.volumes[v.disk.UUID] = v
	}
}

func (p *puller) Call(ctx context.Context, address, path string, in, out any) error {
	r, is := in.(api.PeerPull)
	if !is {
		return p.hosts.Call(ctx, address, path, in, out)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch path {
	case api.PathPeerPull:
		p.pulls++
		return p.pull(r, out)
	case api.PathPeerPullLook:
		x := p.exports[r.Export]
		if x == nil {
			return errors.New("the export has ended")
		}
		return x.ask(api.PullLook{Released: r.Cursor}, out)
	}
	return errors.New(path)
}

func (x *exported) ask(line, out any) error {
	if err := json.NewEncoder(x.in).Encode(line); err != nil {
		return err
	}
	return x.out.Decode(out)
}

func (p *puller) pull(r api.PeerPull, out any) error {
	in, toIn := io.Pipe()
	fromOut, toOut := io.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	x := &exported{in: toIn, out: json.NewDecoder(fromOut), end: cancel, done: make(chan struct{})}
	go func() {
		defer close(x.done)
		err := Export(ctx, in, toOut, zerolog.Nop())
		in.CloseWithError(io.ErrClosedPipe)
		toOut.CloseWithError(errors.Join(io.EOF, err))
	}()
	p.t.Cleanup(func() { toIn.Close(); <-x.done })
	spec := api.PullSpec{
		Disk: p.volumes[r.Volume].disk, Export: uuid.NewString(), Node: "node", Listen: "127.0.0.1", CA: p.files.CA, Cert: p.files.Cert, Key: p.files.Key,
	}
	p.exports[spec.Export] = x
	return x.ask(spec, out)
}

// kill ends all exports, as a daemon that is killed does.
func (p *puller) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, x := range p.exports {
		x.end()
		delete(p.exports, name)
	}
}

func (p *puller) pulled() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pulls
}

// reserveAt is of a host that is here.
func (r *rig) reserveAt() string {
	r.t.Helper()
	s, err := r.node.Reserve(r.t.Context(), api.ReserveRequest{Domain: "web", UUID: domain, Host: "hv1", Address: "127.0.0.1:16589"})
	if err != nil {
		r.t.Fatal(err)
	}
	return s.Job
}

func ended(s api.JobStatus) bool { return s.Ended != 0 }

// One disk is seen, a clone and a raw disk are not, and one's snapshot only is not.
func TestPulled(t *testing.T) {
	t.Parallel()
	w, p, _ := pulling(t)
	r := w.rig()
	job := r.reserveAt()
	a, b, c, d := raw(t, w.path("disks"), "a", 2<<20), clone(t, w.path("far"), "b", 3<<20), raw(t, w.path("far"), "c", 5<<20), clone(t, w.path("disks"), "d", 1<<20)
	c.disk.Target, d.disk.Target = "vdc", "vdd"
	a.cut(w.path("disks"), job)
	for _, v := range []*volume{b, c, d} {
		v.cut(w.path("far"), job)
	}
	for _, v := range []*volume{a, b, c, d} {
		v.overwrite(0)
		v.overwrite(9)
	}
	must(b.data.WriteAt(make([]byte, guestChunk), guestChunk))(t) // was the master's
	p.has(b, c, d)
	m := manifestOf(job, a, b, c, d)
	r.begin(&m)
	s := r.await(job, ended)
	if s.State != api.JobDone {
		t.Fatalf("%+v", s)
	}
	w.holds(s.Backup, a, b, c, d)
	for i, disk := range s.Disks {
		if far := i > 0; far != (disk.Via == "nbd") || far != strings.Contains(disk.Why, "not seen from here") || far != strings.Contains(disk.Why, "host 127.0.0.1:16589 reads it") {
			t.Errorf("%+v", disk)
		}
	}
	ar := must(archive.Open(t.Context(), w.archive))(t)
	defer ar.Close(context.Background())
	var kept api.Manifest
	must(0, json.Unmarshal(must(ar.Get(t.Context(), s.Backup))(t).Manifest, &kept))(t)
	if kept.Disks[0].Via != "lun" || kept.Disks[1].Via != "nbd" || kept.Disks[1].Why == "" {
		t.Errorf("%+v", kept.Disks)
	}
	if n := p.pulled(); n != 3 {
		t.Errorf("%d pulls", n)
	}
	r.awaitRemoved(&m)
}

// What is broken fails at once, before anything was read or at the end.
func TestPulledBroken(t *testing.T) {
	t.Parallel()
	for name, when := range map[string]string{"at once": "", "at the end": api.PathPeerPullLook} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, p, _ := pulling(t)
			r := w.rig()
			job := r.reserveAt()
			v := raw(t, w.path("far"), "a", 2<<20)
			v.cut(w.path("far"), job)
			p.has(v)
			if when == "" {
				v.state(cowfmt.StackBroken)
			} else {
				var once sync.Once
				r.config.Peers = hooked{p, func(path string) {
					if path == when {
						once.Do(func() { v.state(cowfmt.StackBroken) })
					}
				}}
				r.stop()
				r.start()
			}
			m := manifestOf(job, v)
			r.begin(&m)
			s := r.await(job, ended)
			if s.State != api.JobFailed || !strings.Contains(s.Error, "snapshot is broken") {
				t.Errorf("%+v", s)
			}
			if n := p.pulled(); n != 1 {
				t.Errorf("asked for %d times", n)
			}
			r.awaitRemoved(&m)
		})
	}
}

// hooked does something before each question.
type hooked struct {
	Peers
	before func(path string)
}

func (h hooked) Call(ctx context.Context, address, path string, in, out any) error {
	h.before(path)
	return h.Peers.Call(ctx, address, path, in, out)
}

// Exports that die, as with their daemon, are asked for again, and nothing is read twice.
func TestPulledAgain(t *testing.T) {
	t.Parallel()
	w, p, _ := pulling(t)
	w.config.Rate, w.config.Look = 4<<20, time.Millisecond
	r := w.rig()
	job := r.reserveAt()
	v := raw(t, w.path("far"), "a", 12<<20)
	v.cut(w.path("far"), job)
	v.overwrite(3)
	p.has(v)
	m := manifestOf(job, v)
	r.begin(&m)
	first := r.await(job, func(s api.JobStatus) bool { return s.Done > 2<<20 || ended(s) })
	p.kill()
	v.check(v.store.SetSnapshot(v.snapshot.Header().UUID, func(e *cowfmt.StackEntry) { e.Cursor = first.Done })) // as its owner was told
	v.overwrite(180)
	s := r.await(job, ended)
	if s.State != api.JobDone || ended(first) {
		t.Fatalf("%+v, then %+v", first, s)
	}
	w.holds(s.Backup, v)
	if n := p.pulled(); n < 2 {
		t.Errorf("%d pulls", n)
	}
	if read := s.Read; read > 12<<20 {
		t.Errorf("%d bytes were read", read)
	}
}

// Who is not believed gets nothing, and both sides say so.
func TestPulledRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(*whole, *puller)
		says  string
	}{
		"the node's CA":   {func(w *whole, _ *puller) { w.config.Identity = theirs(t, "node") }, "another CA"},
		"the node's name": {nil, "it refused this host's certificate"},
		"the host's name": {nil, "not for 127.0.0.1"},
		"no certificate": {func(w *whole, _ *puller) {
			w.config.Identity = peer.NewIdentity(peer.Files{CA: "/nonexistent", Cert: "/nonexistent", Key: "/nonexistent"}, zerolog.Nop())
		}, "no certificate to show"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, p, a := pulling(t)
			switch {
			case c.spoil != nil:
				c.spoil(w, p)
			case name == "the node's name":
				w.config.Identity = peer.NewIdentity(certificates(t, a, "other"), zerolog.Nop())
			default:
				p.files = certificates(t, a, "other")
			}
			r := w.rig()
			job := r.reserveAt()
			v := raw(t, w.path("far"), "a", 1<<20)
			v.cut(w.path("far"), job)
			p.has(v)
			m := manifestOf(job, v)
			r.begin(&m)
			s := r.await(job, func(s api.JobStatus) bool { return s.Waits != "" || ended(s) })
			if ended(s) || !strings.Contains(s.Waits, c.says) || !strings.Contains(s.Waits, "not seen from here") {
				t.Errorf("%+v", s)
			}
		})
	}
}

// What is another master here is pulled, and a host that does not answer at once is waited for.
func TestPulledOtherMaster(t *testing.T) {
	t.Parallel()
	w, p, a := pulling(t)
	right := p.files
	p.files = certificates(t, a, "other")
	r := w.rig()
	job := r.reserveAt()
	v := clone(t, w.path("disks"), "b", 1<<20)
	v.cut(w.path("disks"), job)
	p.has(v)
	m := manifestOf(job, v)
	other := create(t, w.path("disks/other"), 1<<20)
	m.Disks[0].Master = &api.Place{Address: other.Info().Name, Size: 1 << 20}
	r.begin(&m)
	s := r.await(job, func(s api.JobStatus) bool { return s.Waits != "" || ended(s) })
	if ended(s) || !strings.Contains(s.Waits, "wrong master") {
		t.Fatalf("%+v", s)
	}
	p.mu.Lock()
	p.files = right
	p.mu.Unlock()
	if s = r.await(job, ended); s.State != api.JobDone || s.Disks[0].Via != "nbd" {
		t.Fatalf("%+v", s)
	}
	w.holds(s.Backup, v)
}

func theirs(t *testing.T, name string) *peer.Identity {
	t.Helper()
	return peer.NewIdentity(certificates(t, must(pki.New("theirs"))(t), name), zerolog.Nop())
}

// What is asked ahead is what the disk says, wherever a question begins.
func TestPulledExtents(t *testing.T) {
	t.Parallel()
	f, err := os.Create(t.TempDir() + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 3*ahead + 1<<20
	must(0, f.Truncate(size))(t)
	for _, off := range []int64{0, 5 << 20, ahead - 4096, ahead, 2*ahead + 8192, size - 4096} {
		must(f.WriteAt([]byte("data"), off))(t)
	}
	dev := must(blockdev.OpenFile(t.Context(), f.Name(), blockdev.FileOptions{ReadOnly: true}))(t)
	defer dev.Close()
	asked := &counted{Device: dev}
	p := &pulled{Device: asked, disk: &api.ManifestDisk{Size: size}}
	for off := int64(0); off < size; off += 1 << 20 {
		length := min(int64(1<<20), size-off)
		got, want := must(p.Extents(off, length))(t), must(dev.Extents(off, length))(t)
		at := off
		for _, e := range got {
			if e.Offset != at || e.Length <= 0 {
				t.Fatalf("at %d: %+v", off, got)
			}
			at += e.Length
		}
		if at != off+length || zeroBytes(got) != zeroBytes(want) {
			t.Errorf("at %d: %+v, not %+v", off, got, want)
		}
	}
	if asked.n > size/ahead+1 {
		t.Errorf("asked %d times", asked.n)
	}
	must(p.Extents(ahead, 4096))(t) // back
	p.cursor = 1 << 20
	if _, err := p.Extents(0, 4096); !errors.Is(err, ErrGivenUp) {
		t.Error(err)
	}
	if _, err := p.ReadAt(make([]byte, 4096), 0); !errors.Is(err, ErrGivenUp) {
		t.Error(err)
	}
}

type counted struct {
	blockdev.Device
	n int64
}

func (c *counted) Extents(off, length int64) ([]blockdev.Extent, error) {
	c.n++
	return c.Device.Extents(off, length)
}

func zeroBytes(all []blockdev.Extent) (n int64) {
	for _, e := range all {
		if e.Zero {
			n += e.Length
		}
	}
	return n
}

// After the guest has moved the new owner is asked, also by the next process, and has the snapshot removed.
func TestPulledOwner(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	job := r.reserve()
	m := r.manifest(job, 3)
	d := &m.Disks[0]
	r.disks[d.UUID].look = errAway // the header is not seen
	r.disks[d.UUID].opens = ErrNotSeen
	r.hosts.answer = func(address, path string, _ api.PeerSnapshot) (any, error) {
		if path == api.PathPeerOwner {
			if address != "hv1:16589" {
				return nil, errAway
			}
			return api.PeerStanding{Owned: true, Address: "hv2:16589"}, nil
		}
		return nil, nil
	}
	r.begin(&m)
	r.await(job, func(s api.JobStatus) bool { return s.Waits != "" })
	j := must(r.node.find(job))(t)
	if got := j.hosts(d); len(got) != 1 || got[0] != "hv1:16589" {
		t.Error(got)
	}
	j.owner(d, Standing{Owned: true, Address: "hv2:16589"})
	j.owner(d, Standing{})
	if got := j.hosts(d); len(got) != 2 || got[0] != "hv2:16589" || got[1] != "hv1:16589" {
		t.Error(got)
	}
	if _, err := r.node.Cancel(t.Context(), api.JobRequest{Job: job}); err != nil {
		t.Fatal(err)
	}
	r.awaitRemoved(&m)
	r.hosts.mu.Lock()
	defer r.hosts.mu.Unlock()
	if asked := r.removed[d.Snapshot]; asked != "hv2:16589" {
		t.Errorf("%s was asked to remove the snapshot", asked)
	}
}
