package daemon

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cut"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/nbd"
	"github.com/virt-cow/virt-cow/internal/peer"
)

// agent is a libvirt whose one domain has an agent in its guest.
type agent struct {
	*said
	id libvirtx.Domain

	mu     sync.Mutex
	frozen bool
	calls  []string
	freeze error // after it was done
	thaw   error // instead of it
	saved  bool  // while it is off
}

func (a *agent) Saved(context.Context, libvirtx.Domain) (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.saved, nil
}

func (a *agent) Lookup(_ context.Context, name string) (libvirtx.Domain, error) {
	if name != a.id.Name {
		return a.id, libvirtx.ErrNoDomain
	}
	return a.id, nil
}

func (a *agent) State(ctx context.Context, d libvirtx.Domain) (libvirtx.State, error) {
	if d.UUID != a.id.UUID {
		return libvirtx.State{}, libvirtx.ErrNoDomain
	}
	return a.said.State(ctx, d)
}

func (a *agent) XML(context.Context, libvirtx.Domain) (string, error) {
	a.said.mu.Lock()
	defer a.said.mu.Unlock()
	return "<domain type='kvm'><name>" + a.id.Name + "</name><uuid>" + a.id.UUID.String() + "</uuid><devices>" + a.xml + "</devices></domain>", nil
}

func (a *agent) SecretXML(ctx context.Context, d libvirtx.Domain) (string, error) {
	return a.XML(ctx, d)
}

func (a *agent) Frozen(context.Context, libvirtx.Domain) (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.frozen, nil
}

func (a *agent) Freeze(context.Context, libvirtx.Domain) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls, a.frozen = append(a.calls, "freeze"), true
	return 1, a.freeze
}

func (a *agent) Thaw(context.Context, libvirtx.Domain) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = append(a.calls, "thaw")
	if a.thaw != nil || !a.frozen {
		return 0, a.thaw
	}
	a.frozen = false
	return 1, nil
}

// node is an image node.
type node struct {
	*others
	mu      sync.Mutex
	jobs    map[string]*api.JobStatus
	started []api.StartRequest
	refuse  error // Start
}

func newNode() *node {
	n := &node{others: &others{}, jobs: map[string]*api.JobStatus{}}
	n.answer(api.PathNodeReserve, func(in any) (any, error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		r := in.(api.ReserveRequest)
		for _, j := range n.jobs {
			if j.UUID == r.UUID && !jobEnded(j.State) {
				return nil, &api.RemoteError{Code: http.StatusConflict, Reason: api.ErrorBusy, Message: "domain " + r.Domain + " has job " + j.Job}
			}
		}
		j := &api.JobStatus{Job: uuid.NewString(), Domain: r.Domain, UUID: r.UUID, State: api.JobReserved}
		n.jobs[j.Job] = j
		return *j, nil
	})
	n.answer(api.PathNodeStart, func(in any) (any, error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		r := in.(api.StartRequest)
		if n.refuse != nil {
			return nil, n.refuse
		}
		n.started = append(n.started, r)
		n.jobs[r.Job].State = api.JobCopying
		return *n.jobs[r.Job], nil
	})
	n.answer(api.PathNodeJob, func(in any) (any, error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		if j := n.jobs[in.(api.JobRequest).Job]; j != nil {
			return *j, nil
		}
		return nil, &api.RemoteError{Code: http.StatusNotFound, Message: "no such job"}
	})
	n.answer(api.PathNodeCancel, func(in any) (any, error) {
		n.end(in.(api.JobRequest).Job, api.JobCancelled)
		return api.JobStatus{}, nil
	})
	return n
}

func (n *node) end(job, state string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.jobs[job].State, n.jobs[job].Ended = state, 1700000000
}

func (n *node) state(job string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.jobs[job].State
}

// newBackupDaemon has an image node, and a guest that runs with two volumes and a CD-ROM drive.
func newBackupDaemon(t *testing.T) (*Daemon, *node, *agent) {
	d, n, a := idleBackupDaemon(t)
	d.tasks.Go(func() { d.cutter.Run(d.root) })
	d.tasks.Go(func() { d.watchSnapshots(d.root) })
	return d, n, a
}

// idleBackupDaemon is one that does nothing by itself.
func idleBackupDaemon(t *testing.T) (*Daemon, *node, *agent) {
	t.Helper()
	d := newRealDaemon(t)
	n := newNode()
	d.config.Peers = n
	d.config.Backup = BackupConfig{Node: "node:16590", Hold: 30 * time.Second, FreezeTimeout: 30 * time.Second, FrozenFor: 60 * time.Second}
	a := &agent{said: &said{state: libvirtx.State{Active: true}}, id: libvirtx.Domain{Name: "g", UUID: uuid.New()}}
	for _, v := range []struct{ name, target string }{{"one", "vda"}, {"two", "vdb"}} {
		d.create(t, v.name)
		if _, err := d.Start(t.Context(), v.name); err != nil {
			t.Fatal(err)
		}
		a.xml += d.disk(v.name, v.target, "ua-"+v.name)
	}
	a.xml += `<disk type='file' device='cdrom'><target dev='sda'/></disk>`
	d.mu.Lock()
	d.conn = a
	d.mu.Unlock()
	return d, n, a
}

// snapshotsNow are how many the stacks have, and how many stores there are. An engine that is busy is asked again.
func (d *Daemon) snapshotsNow(t *testing.T) (listed, stores int) {
	t.Helper()
	for _, name := range []string{"one", "two"} {
		var s *api.EngineStatus
		eventually(t, "the engine answers", func() bool {
			var err error
			s, err = d.engineStatus(t.Context(), d.volumeNamed(name))
			return err == nil
		})
		for _, e := range s.Stack {
			if e.State == api.SnapshotActive {
				listed++
			}
		}
	}
	return listed, len(d.stores.All())
}

// clean waits until nothing is left of a backup.
func (d *Daemon) clean(t *testing.T) {
	t.Helper()
	eventually(t, "nothing is left of the backup", func() bool {
		listed, stores := d.snapshotsNow(t)
		journal, err := os.ReadDir(filepath.Join(d.config.Inventory.StateDir, "cuts"))
		return listed == 0 && stores == 0 && err == nil && len(journal) == 0
	})
}

func TestBackup(t *testing.T) {
	t.Parallel()
	d, n, a := newBackupDaemon(t)
	d.writeTo(t, "one", 3)
	s, err := d.Backup(t.Context(), api.BackupRequest{Domain: "g", Quiesce: api.QuiesceRequire})
	if err != nil || s.State != api.JobCopying {
		t.Fatalf("%+v, %v", s, err)
	}
	m := n.started[0].Manifest
	if m.Cut != s.Job || m.Grade != api.GradeFS || m.Domain != "g" || m.UUID != a.id.UUID.String() || len(m.Disks) != 2 || m.HeldMicros <= 0 ||
		!strings.Contains(m.XML, "<name>g</name>") || m.InactiveXML == "" || len(m.Left) != 1 || m.Left[0].Target != "sda" {
		t.Errorf("%+v", m)
	}
	for i, disk := range m.Disks {
		one, err := d.Volume(t.Context(), []string{"one", "two"}[i])
		if err != nil {
			t.Fatal(err)
		}
		h, err := d.inventory.Header(t.Context(), disk.Saves.Address)
		if disk.Volume != one.Name || disk.UUID != one.UUID || disk.Store.Address != one.Store || disk.Size != one.Size || disk.ChunkSize == 0 ||
			err != nil || h.UUID != disk.Snapshot || disk.Saves.UUID != disk.Snapshot || disk.Target != []string{"vda", "vdb"}[i] {
			t.Errorf("%+v, %v", disk, err)
		}
	}
	if !slices.Equal(a.calls, []string{"freeze", "thaw"}) {
		t.Error(a.calls)
	}
	if listed, stores := d.snapshotsNow(t); listed != 2 || stores != 2 {
		t.Errorf("%d snapshots, %d stores", listed, stores)
	}
	if _, err := d.Backup(t.Context(), api.BackupRequest{Domain: "g"}); httpStatus(err) != http.StatusConflict || code(err) != api.ErrorBusy {
		t.Errorf("a second one: %v", err)
	}
	if b := d.backupStatuses(); len(b) != 1 || b[0].Job != s.Job || b[0].Grade != api.GradeFS || b[0].LastSuccess != 0 {
		t.Errorf("%+v", b)
	}
	d.lookAtSnapshots()
	eventually(t, "the snapshots are looked at", func() bool { return len(d.Status(t.Context()).Snapshots) == 2 })
	for _, note := range d.Status(t.Context()).Snapshots {
		if note.Stale || note.Job != s.Job || note.State != api.SnapshotActive {
			t.Errorf("%+v", note)
		}
	}
	d.writeTo(t, "one", 2)
	d.writeTo(t, "two", 5)
	n.end(s.Job, api.JobDone)
	d.clean(t)
	eventually(t, "the success is noted", func() bool { return d.backupStatuses()[0].LastSuccess == 1700000000 })
	if b := d.backupStatuses()[0]; b.WritesBefore.Writes != 3 || b.WritesDuring.Writes != 7 || b.WritesDuring.MeanMicros == 0 || b.WritesDuring.P99Micros == 0 {
		t.Errorf("the guest's writes: %+v, then %+v", b.WritesBefore, b.WritesDuring)
	}
	// The next daemon knows it too.
	if err := d.loadBackups(); err != nil || d.backupStatuses()[0].LastSuccess != 1700000000 {
		t.Errorf("%+v, %v", d.backupStatuses(), err)
	}
}

// writeTo writes to a volume that many times.
func (d *Daemon) writeTo(t *testing.T, volume string, times int) {
	t.Helper()
	c, err := nbd.Dial(t.Context(), "nbd+unix:///"+volume+"?socket="+d.socketPath(volume), nbd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range times {
		if _, err := c.WriteAt(make([]byte, 4096), int64(i)*4096); err != nil {
			t.Fatal(err)
		}
	}
}

// Whatever goes wrong, nothing is left: no snapshot, no store, no job, and no guest frozen.
func TestBackupFails(t *testing.T) {
	t.Parallel()
	d, n, a := newBackupDaemon(t)
	request := api.BackupRequest{Domain: "g", Quiesce: api.QuiesceRequire}
	fails := func(what, says string) {
		t.Helper()
		jobs := len(n.jobs)
		_, err := d.Backup(t.Context(), request)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", what, err)
		}
		ended := func() bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			for _, j := range n.jobs {
				if !jobEnded(j.State) {
					return false
				}
			}
			return len(n.jobs) == jobs+1
		}
		if n.refuse == nil && !ended() {
			t.Errorf("%s: who asks again now is refused", what)
		}
		d.clean(t)
		eventually(t, what+": the guest is thawed", func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return !a.frozen
		})
		eventually(t, what+": its job is cancelled", ended)
		if b := d.backupStatuses()[0]; b.State != api.JobFailed || b.Error == "" || b.LastSuccess != 0 {
			t.Errorf("%s: %+v", what, b)
		}
	}
	a.freeze = libvirtx.ErrAgentHangs
	fails("a freeze that was not answered", "--quiesce=require wants")
	a.freeze = libvirtx.ErrHook // nothing is frozen, and hooks before the one that failed have done their part
	fails("a freeze hook that failed", "freeze hook failed")
	a.freeze = nil

	n.refuse = &api.RemoteError{Code: http.StatusConflict, Message: "it is failed"}
	fails("an image node that does not take it", "it is failed")
	n.refuse = nil

	d.config.Backup.Folder = filepath.Join(t.TempDir(), "not", "there")
	fails("no place for the stores", "not/there")
	d.config.Backup.Folder = ""

	// A thaw that fails spoils the grade, and goes on.
	a.thaw = libvirtx.ErrAgentHangs
	d.config.Backup.FrozenFor = time.Second
	request.Quiesce = api.QuiesceTry
	s, err := d.Backup(t.Context(), request)
	if err != nil || n.started[0].Manifest.Grade != api.GradeCrash || !d.backupStatuses()[0].MaybeFrozen {
		t.Fatalf("%+v, %v", s, err)
	}
	a.mu.Lock()
	a.thaw = nil
	a.mu.Unlock()
	n.end(s.Job, api.JobFailed)
	d.clean(t)
	if frozen, _ := a.Frozen(t.Context(), a.id); frozen || d.cutter.MaybeFrozen(a.id.UUID.String()) {
		t.Error("frozen still")
	}
}

// A backup that begins at the end of another one does not take its success away.
func TestSuccessOfTheOneBefore(t *testing.T) {
	t.Parallel()
	d := newRealDaemon(t)
	x := d.domainHere("g").ident()
	d.newBackup(x, api.BackupStatus{Job: "one", State: api.JobCopying})
	d.newBackup(x, api.BackupStatus{Job: "two", State: api.JobReserved})
	for ended, want := range []int64{0, 1, 2} {
		d.noteJob(x.UUID, &api.JobStatus{Job: "one", State: api.JobDone, Ended: int64(ended)})
		if b := d.backupStatuses()[0]; b.LastSuccess != want || b.Job != "two" || b.State != api.JobReserved {
			t.Errorf("%+v", b)
		}
	}
	d.noteJob(x.UUID, &api.JobStatus{Job: "one", State: api.JobFailed, Ended: 3})
	if b := d.backupStatuses()[0]; b.LastSuccess != 2 || b.State != api.JobReserved {
		t.Errorf("%+v", b)
	}
}

// A guest that was saved before it could be thawed is thawed once it goes on; one that is off has nothing to thaw.
func TestThawOfSaved(t *testing.T) {
	t.Parallel()
	for _, saved := range []bool{true, false} {
		d := newRealDaemon(t)
		a := &agent{said: &said{}, id: d.domainHere("g").ident(), frozen: true, thaw: libvirtx.ErrNotRunning, saved: saved}
		d.conn = a
		if _, err := (cutGuests{d}).Thaw(t.Context(), a.id); err == nil || errors.Is(err, cut.ErrNotFrozen) == saved {
			t.Errorf("saved %t: %v", saved, err)
		}
	}
}

func TestBackupRefused(t *testing.T) {
	t.Parallel()
	d, n, a := newBackupDaemon(t)
	a.xml += `<disk type='file' device='disk'><source file='/x.img'/><target dev='vdc'/></disk>` +
		`<disk type='block' device='disk'><source dev='/dev/x'/><target dev='vdd'/><shareable/></disk>`
	for _, c := range []struct {
		r    api.BackupRequest
		code int
		says []string
	}{
		{api.BackupRequest{Domain: "g"}, 422, []string{"disk vdc: file /x.img", "disk vdd: block /dev/x is shareable", "--exclude"}},
		{api.BackupRequest{Domain: "h"}, 404, []string{"h"}},
		{api.BackupRequest{Domain: "g", Exclude: []string{"vdz"}}, 400, []string{"vdz"}},
		{api.BackupRequest{}, 400, []string{"a domain or a volume"}},
		{api.BackupRequest{Domain: "g", Volume: "one"}, 400, []string{"a domain or a volume"}},
		{api.BackupRequest{Domain: "g", Quiesce: "maybe"}, 400, []string{"maybe"}},
		{api.BackupRequest{Domain: "g", OnError: "panic"}, 400, []string{"panic"}},
		{api.BackupRequest{Domain: "g", Rate: -1}, 400, []string{"-1"}},
		{api.BackupRequest{Domain: "g", Pool: "a", Folder: "/b"}, 400, []string{"one of them"}},
		{api.BackupRequest{Volume: "three"}, 404, []string{"three"}},
		{api.BackupRequest{Volume: "../three"}, 400, []string{"three"}},
		{api.BackupRequest{Domain: "g", Exclude: []string{"vda", "vdb", "vdc", "vdd"}}, 422, []string{"no disk of virt-cow"}},
	} {
		_, err := d.Backup(t.Context(), c.r)
		if err == nil || httpStatus(err) != c.code {
			t.Errorf("%+v: %d, %v", c.r, httpStatus(err), err)
			continue
		}
		for _, says := range c.says {
			if !strings.Contains(err.Error(), says) {
				t.Errorf("%+v: %v", c.r, err)
			}
		}
	}
	if len(n.jobs) != 0 {
		t.Errorf("%d jobs", len(n.jobs))
	}
	s, err := d.Backup(t.Context(), api.BackupRequest{Domain: "g", Exclude: []string{"vdb"}, LeaveForeign: true, Quiesce: api.QuiesceOff})
	if err != nil {
		t.Fatal(err)
	}
	if m := n.started[0].Manifest; len(m.Disks) != 1 || m.Disks[0].Target != "vda" || len(m.Left) != 4 || m.Grade != api.GradeCrash || len(a.calls) != 0 {
		t.Errorf("%+v, %v", m, a.calls)
	}
	n.end(s.Job, api.JobDone)
	d.clean(t)
	d.config.Backup.Node = ""
	if _, err := d.Backup(t.Context(), api.BackupRequest{Domain: "g"}); !errors.Is(err, errNoBackups) {
		t.Error(err)
	}
}

// A volume that no domain has is opened for its cut, and closed again with its snapshot in the stack; that is taken out without an
// engine, which would not open the volume when the snapshot's store is lost.
func TestBackupOfAVolume(t *testing.T) {
	t.Parallel()
	d, n, _ := newBackupDaemon(t)
	d.create(t, "alone")
	s, err := d.Backup(t.Context(), api.BackupRequest{Volume: "alone", OnError: api.BreakGuestWrite})
	if err != nil {
		t.Fatal(err)
	}
	m := n.started[0].Manifest
	if m.Grade != api.GradeOff || len(m.Disks) != 1 || m.XML != "" {
		t.Errorf("%+v", m)
	}
	eventually(t, "its engine is gone", func() bool { return d.volumeNamed("alone") == nil })
	h, err := d.inventory.Header(t.Context(), m.Disks[0].Store.Address)
	if err != nil || h.Owner != nil || len(h.Stack) != 1 || h.Stack[0].State != api.SnapshotActive {
		t.Fatalf("%+v, %v", h, err)
	}
	if err := os.Remove(m.Disks[0].Saves.Address); err != nil {
		t.Fatal(err)
	}
	n.end(s.Job, api.JobDone)
	eventually(t, "its snapshot is gone", func() bool {
		h, err := d.inventory.Header(t.Context(), m.Disks[0].Store.Address)
		return err == nil && len(h.Stack) == 0 && len(d.stores.All()) == 0 && d.volumeNamed("alone") == nil
	})
}

// What the image node may ask, and nobody else; and that it may ask nothing else.
func TestImageNodeAsks(t *testing.T) {
	t.Parallel()
	d, n, _ := newBackupDaemon(t)
	s, err := d.Backup(t.Context(), api.BackupRequest{Domain: "g"})
	if err != nil {
		t.Fatal(err)
	}
	disk := n.started[0].Manifest.Disks[0]
	r := api.PeerSnapshot{Volume: disk.UUID, Snapshot: disk.Snapshot, Cut: s.Job, Job: s.Job, Cursor: 4096}
	as := func(host string) context.Context { return peer.With(t.Context(), peer.Names{DNS: []string{host}}) }
	attest, cursor, remove := ofNode(d, d.attest), ofNode(d, d.cursor), ofNode(d, d.removeSnapshot)
	for _, host := range []string{"hv2", "", "*.node"} {
		_, e1 := attest(as(host), r)
		_, e2 := cursor(as(host), r)
		_, e3 := remove(as(host), r)
		for _, err := range []error{e1, e2, e3} {
			if httpStatus(err) != http.StatusForbidden {
				t.Errorf("%q: %v", host, err)
			}
		}
	}
	bad := r
	bad.Snapshot = "../" + r.Snapshot
	if _, err := remove(as("node"), bad); httpStatus(err) != http.StatusBadRequest {
		t.Error(err)
	}
	if a, err := attest(as("node"), r); err != nil || !a.Unbroken || !a.Open || a.Epoch != disk.Epoch {
		t.Errorf("%+v, %v", a, err)
	}
	other := r
	other.Snapshot = s.Job
	if a, err := attest(as("node"), other); err != nil || a.Unbroken || !a.Open || a.Why == "" {
		t.Errorf("no such snapshot: %+v, %v", a, err)
	}
	other = r
	other.Volume = s.Job
	if a, err := attest(as("node"), other); err != nil || a.Unbroken || a.Open {
		t.Errorf("no such volume: %+v, %v", a, err)
	}
	if _, err := cursor(as("node"), r); err != nil {
		t.Error(err)
	}
	if e, err := d.engineStatus(t.Context(), d.volumeNamed("one")); err != nil || e.Stack[0].Cursor != 4096 {
		t.Errorf("%+v, %v", e, err)
	}
	for range 2 { // the second finds nothing
		if _, err := remove(as("node"), r); err != nil {
			t.Error(err)
		}
	}
	if listed, stores := d.snapshotsNow(t); listed != 1 || stores != 1 {
		t.Errorf("%d snapshots, %d stores", listed, stores)
	}
	n.end(s.Job, api.JobFailed)
	d.clean(t)

	ask := func(ctx context.Context, path string) int {
		w := httptest.NewRecorder()
		d.peerHandler().ServeHTTP(w, httptest.NewRequest("POST", path, strings.NewReader("{}")).WithContext(ctx))
		return w.Code
	}
	if code := ask(as("node"), api.PathPeerHello); code != http.StatusForbidden {
		t.Errorf("the image node says hello: %d", code)
	}
	h, err := peer.ParseHost("node")
	if err != nil {
		t.Fatal(err)
	}
	d.config.Backup.Hosts = []peer.Host{h}
	for _, host := range []string{"node", "hv2"} {
		if code := ask(as(host), api.PathPeerHello); code != http.StatusOK {
			t.Errorf("%s says hello: %d", host, code)
		}
	}
	if code := ask(as("node"), api.PathPeerAttest); code != http.StatusBadRequest {
		t.Errorf("attest of nothing: %d", code)
	}
}

// While the image node does not answer, or does not know what it is asked, snapshots stay.
func TestStaleSnapshots(t *testing.T) {
	t.Parallel()
	d, n, _ := newBackupDaemon(t)
	s, err := d.Backup(t.Context(), api.BackupRequest{Domain: "g"})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		peer.ErrUnreachable, &api.RemoteError{Code: 500, Message: "oh"}, &api.RemoteError{Code: 404, Older: true, Message: "404 page not found"},
		&api.RemoteError{Code: 403, Message: "who are you"},
	} {
		n.answer(api.PathNodeJob, func(any) (any, error) { return nil, err })
		left, stale := d.reapSnapshots(t.Context())
		if len(left) != 2 || stale != 0 || left[0].Stale || !strings.Contains(left[0].Why, err.Error()) {
			t.Errorf("%v: %+v", err, left)
		}
	}
	if listed, stores := d.snapshotsNow(t); listed != 2 || stores != 2 {
		t.Errorf("%d snapshots, %d stores", listed, stores)
	}
	n.answer(api.PathNodeJob, func(any) (any, error) { return nil, &api.RemoteError{Code: 404, Message: "no job " + s.Job} })
	d.lookAtSnapshots()
	d.clean(t)
}

// A cut that was made and not handed over is handed over by the next daemon; one that was not made is the image node's to forget.
func TestNextDaemonHandsOver(t *testing.T) {
	t.Parallel()
	d, n, a := idleBackupDaemon(t)
	job := uuid.NewString()
	n.jobs[job] = &api.JobStatus{Job: job, UUID: a.id.UUID.String(), State: api.JobReserved}
	record := `{"version":1,"cut":"` + job + `","phase":"made","domain":{"Name":"g","UUID":"` + a.id.UUID.String() + `"},"snapshots":null,"payload":{"job":"` + job + `"}}`
	if err := os.WriteFile(filepath.Join(d.config.Inventory.StateDir, "cuts", job+".json"), []byte(record), 0o600); err != nil {
		t.Fatal(err)
	}
	lost := uuid.New()
	gone := uuid.NewString()
	n.jobs[gone] = &api.JobStatus{Job: gone, UUID: lost.String(), State: api.JobReserved}
	d.newBackup(a.id, api.BackupStatus{Job: job, State: api.JobReserved, Begun: time.Now().Unix()})
	d.newBackup(libvirtx.Domain{Name: "x", UUID: lost}, api.BackupStatus{Job: gone, State: api.JobReserved, Begun: time.Now().Unix()})
	n.refuse = peer.ErrUnreachable
	if err := d.openCuts(); err != nil {
		t.Fatal(err)
	}
	d.tasks.Go(func() { d.cutter.Run(d.root) })
	d.goOnWithBackups(d.root)
	eventually(t, "the one that was not made is cancelled", func() bool { return n.state(gone) == api.JobCancelled })
	n.mu.Lock()
	n.refuse = nil
	n.mu.Unlock()
	eventually(t, "the other is handed over", func() bool { return n.state(job) == api.JobCopying && !d.cutter.Has(job) })
	n.end(job, api.JobDone)
	eventually(t, "its success is noted", func() bool {
		return slices.ContainsFunc(d.backupStatuses(), func(s api.BackupStatus) bool { return s.Job == job && s.State == api.JobDone && s.LastSuccess > 0 })
	})
}

// A job that the image node has taken is not cancelled by the next daemon, even if this one has not heard of it since.
func TestTakenJobIsNotCancelled(t *testing.T) {
	t.Parallel()
	d, n, a := idleBackupDaemon(t)
	job := uuid.NewString()
	n.jobs[job] = &api.JobStatus{Job: job, UUID: a.id.UUID.String(), State: api.JobReserved}
	n.answer(api.PathNodeJob, func(any) (any, error) { return nil, peer.ErrUnreachable })
	record := `{"version":1,"cut":"` + job + `","phase":"made","domain":{"Name":"g","UUID":"` + a.id.UUID.String() + `"},"snapshots":null,"payload":{"job":"` + job + `"}}`
	if err := os.WriteFile(filepath.Join(d.config.Inventory.StateDir, "cuts", job+".json"), []byte(record), 0o600); err != nil {
		t.Fatal(err)
	}
	d.newBackup(a.id, api.BackupStatus{Job: job, State: api.JobReserved, Begun: time.Now().Unix()})
	if err := d.openCuts(); err != nil {
		t.Fatal(err)
	}
	d.tasks.Go(func() { d.cutter.Run(d.root) })
	d.goOnWithBackups(d.root)
	eventually(t, "the cut is handed over", func() bool { return n.state(job) == api.JobCopying && !d.cutter.Has(job) })
	if err := d.loadBackups(); err != nil {
		t.Fatal(err)
	}
	d.goOnWithBackups(d.root)
	if all := d.backupStatuses(); len(all) != 1 || jobEnded(all[0].State) {
		t.Errorf("%+v", all)
	}
}

// An engine that is started finds its snapshots' stores: where the header says, or where they were moved to.
func TestSnapshotsAreFoundAgain(t *testing.T) {
	t.Parallel()
	d, n, _ := newBackupDaemon(t)
	d.create(t, "alone")
	s, err := d.Backup(t.Context(), api.BackupRequest{Volume: "alone", OnError: api.BreakGuestWrite})
	if err != nil {
		t.Fatal(err)
	}
	disk := n.started[0].Manifest.Disks[0]
	eventually(t, "its engine is gone", func() bool { return d.volumeNamed("alone") == nil })
	v := &volume{name: "alone"}
	w := libvirtx.Want{Volume: "alone", Store: disk.Store.Address}
	is := func(what, want string) {
		t.Helper()
		if d.findSnapshots(t.Context(), v, w); v.snapshots[disk.Snapshot] != want {
			t.Errorf("%s: %v", what, v.snapshots)
		}
		if missing := slices.Equal(v.missing, []string{disk.Snapshot}); missing != (want == "") {
			t.Errorf("%s: missing: %q", what, v.missing)
		}
	}
	is("at its place", disk.Saves.Address)
	// Another snapshot's store is there, as on a host that calls it something else; the catalogue knows better.
	elsewhere := filepath.Join(t.TempDir(), "moved")
	if err := os.Rename(disk.Saves.Address, elsewhere); err != nil {
		t.Fatal(err)
	}
	stores := d.stores
	d.stores = movedStores{stores, elsewhere}
	is("moved", elsewhere)
	d.stores = movedStores{stores, ""}
	is("nowhere", "")
	d.stores = stores
	if err := os.Rename(elsewhere, disk.Saves.Address); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Start(t.Context(), "alone"); err != nil {
		t.Fatal(err)
	}
	if e, err := d.engineStatus(t.Context(), d.volumeNamed("alone")); err != nil || len(e.Stack) != 1 || e.Stack[0].State != api.SnapshotActive {
		t.Errorf("%+v, %v", e, err)
	}
	n.end(s.Job, api.JobDone)
	eventually(t, "its snapshot is gone", func() bool { return len(d.stores.All()) == 0 })
}

// movedStores has every store at one path.
type movedStores struct {
	snapshotStores
	path string
}

func (m movedStores) Path(string) string { return m.path }

// A migration waits for a cut, and hears of it when that takes too long; a guest that comes frozen is thawed here.
func TestMigrationAndCut(t *testing.T) {
	t.Parallel()
	d, n, a := idleBackupDaemon(t)
	held := make(chan struct{})
	n.answer(api.PathNodeStart, func(any) (any, error) { return nil, peer.ErrUnreachable })
	d.stores = slowStores{d.stores, held}
	if err := d.openCuts(); err != nil {
		t.Fatal(err)
	}
	d.tasks.Go(func() { d.cutter.Run(d.root) })
	d.tasks.Go(func() { d.watchSnapshots(d.root) })
	begun := make(chan error, 1)
	go func() {
		_, err := d.Backup(d.root, api.BackupRequest{Domain: "g", Quiesce: api.QuiesceOff})
		begun <- err
	}()
	id := a.id.UUID.String()
	eventually(t, "the cut is at work", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		return d.cutter.Await(ctx, id) != nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := d.afterCut(ctx, id); err == nil || !strings.Contains(err.Error(), "a backup's cut is being made") {
		t.Error(err)
	}
	if err := d.afterCut(t.Context(), uuid.NewString()); err != nil {
		t.Errorf("another domain: %v", err)
	}
	close(held)
	if err := d.afterCut(t.Context(), id); err != nil {
		t.Error(err)
	}
	eventually(t, "the cut is made", func() bool { return len(d.cutter.Handovers()) == 1 })
	n.answer(api.PathNodeStart, func(in any) (any, error) {
		n.end(in.(api.StartRequest).Job, api.JobDone)
		return api.JobStatus{}, nil
	})
	if err := <-begun; err != nil {
		t.Error(err)
	}
	d.clean(t)

	a.mu.Lock()
	a.frozen = true
	a.mu.Unlock()
	v := d.volumeNamed("one")
	d.mu.Lock()
	v.frozen, v.domain = true, d.domainFor(a.id)
	d.mu.Unlock()
	d.arrived(v)
	eventually(t, "the guest is thawed", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return !a.frozen
	})
}

// slowStores takes its time to make one.
type slowStores struct {
	snapshotStores
	held chan struct{}
}

func (s slowStores) Make(ctx context.Context, x cut.Snapshot) (string, error) {
	<-s.held
	return s.snapshotStores.Make(ctx, x)
}
