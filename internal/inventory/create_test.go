package inventory

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/catalogue"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/plugin"
)

var ctx = context.Background()

func TestCreateShowDelete(t *testing.T) {
	r := newRig(t)
	raw := r.raw("m.raw", mib)
	v := r.create(api.CreateRequest{Name: "web1", Master: raw, ChunkSize: 64 << 10})
	if v.State != api.StateReady || v.Store != r.path("stores/web1.vcow") || v.Size != mib || v.ChunkSize != 64<<10 ||
		v.Master != "raw:"+raw || v.Role != "clone" || v.Created == 0 || v.UUID == "" {
		t.Errorf("%+v", v)
	}
	r.create(api.CreateRequest{Name: "data", Size: 8 * mib, Store: r.path("elsewhere.vcow")})
	r.reopen()
	if got, err := r.Show(ctx, "web1"); err != nil || got != v {
		t.Errorf("%+v, %v", got, err)
	}
	if l := r.List(); len(l) != 2 || l[0].Name != "data" || l[1] != v {
		t.Errorf("%+v", l)
	}
	if e, ok := r.ByStore(r.path("stores/../stores/web1.vcow")); !ok || e.Name != "web1" {
		t.Errorf("by store: %+v", e)
	}
	r.delete("web1")
	if _, err := r.Lookup("web1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted: %v", err)
	}
	if _, err := r.Delete(ctx, "data", api.DeleteRequest{KeepStore: true}); err != nil {
		t.Error(err)
	}
	wants(t, "left", tree(t, r.path("stores")), nil)
	if _, err := os.Stat(r.path("elsewhere.vcow")); err != nil {
		t.Errorf("was to be kept: %v", err)
	}
	if _, err := os.Stat(raw); err != nil {
		t.Error(err)
	}
	wants(t, "records left", tree(t, r.path("state/volumes")), nil)
	wants(t, "locks left", tree(t, r.path("run")), nil)
}

func TestCreateRefuses(t *testing.T) {
	r := newRig(t)
	raw := r.raw("m.raw", mib)
	r.create(api.CreateRequest{Name: "v"})
	there := r.file("there", "precious")
	before := tree(t, r.dir)
	for _, c := range []struct {
		request api.CreateRequest
		kind    error
		says    string
	}{
		{api.CreateRequest{Name: "../x", Size: mib}, ErrInvalid, "volume name"},
		{api.CreateRequest{Name: "", Size: mib}, ErrInvalid, "volume name"},
		{api.CreateRequest{Name: "v", Size: mib}, ErrExists, "v"},
		{api.CreateRequest{Name: "x"}, ErrInvalid, "say what to make"},
		{api.CreateRequest{Name: "x", Size: 1000}, ErrInvalid, "multiple of 512"},
		{api.CreateRequest{Name: "x", Size: -512}, ErrInvalid, "negative"},
		{api.CreateRequest{Name: "x", Size: mib, ChunkSize: 3000}, ErrInvalid, "power of two"},
		{api.CreateRequest{Name: "x", Size: mib, Store: "relative"}, ErrInvalid, "absolute"},
		{api.CreateRequest{Name: "x", Master: "m.raw"}, ErrInvalid, "absolute"},
		{api.CreateRequest{Name: "x", Master: r.path("nothing")}, nil, "no such file"},
		{api.CreateRequest{Name: "x", Master: raw, Size: 512}, ErrInvalid, "less than the master's"},
		{api.CreateRequest{Name: "x", Master: raw, From: "v"}, ErrInvalid, "one master"},
		{api.CreateRequest{Name: "x", From: "nobody"}, ErrNotFound, "nobody"},
		{api.CreateRequest{Name: "x", Master: "http://h/d"}, nil, "http://"},
		{api.CreateRequest{Name: "x", Size: mib, Store: there}, ErrExists, "adopt"},
		{api.CreateRequest{Name: "x", Size: mib, Store: there, Force: true}, ErrExists, "adopt"},
		{api.CreateRequest{Name: "x", Size: mib, Store: r.path("no/folder/x")}, nil, "no such file"},
		{api.CreateRequest{Name: "x", Size: mib, Store: "/a", Pool: "p"}, ErrInvalid, "choose one"},
		{api.CreateRequest{Name: "x", Size: mib, LUN: "unit:0:0:1"}, ErrInvalid, "without the pool"},
		{api.CreateRequest{Name: "x", Size: mib, Pool: "p"}, ErrInvalid, "no libvirt storage pools"},
		{api.CreateRequest{Name: "x", Size: mib, Provider: "p"}, ErrInvalid, "no provider"},
	} {
		_, err := r.Create(ctx, c.request)
		refused(t, err, c.kind, c.says)
	}
	wants(t, "files", tree(t, r.dir), before)
	if r.Len() != 1 {
		t.Errorf("%+v", r.List())
	}
}

func TestTwoAtOnce(t *testing.T) {
	r := newRig(t)
	r.create(api.CreateRequest{Name: "m"})
	var group sync.WaitGroup
	var mu sync.Mutex
	made := map[string]int{}
	for i := range 12 {
		group.Go(func() {
			name := fmt.Sprintf("v%d", i%4)
			_, err := r.Create(ctx, api.CreateRequest{Name: name, From: "m"})
			switch {
			case err == nil:
				mu.Lock()
				made[name]++
				mu.Unlock()
			case !errors.Is(err, ErrExists) && !errors.Is(err, ErrInUse):
				t.Error(err)
			}
		})
	}
	group.Wait()
	for name, n := range made {
		if n != 1 {
			t.Errorf("%s was made %d times", name, n)
		}
	}
	if len(made) != 4 || len(tree(t, r.path("stores"))) != 5 {
		t.Errorf("%v", made)
	}
	wants(t, "holds", keys(r.holds.names), nil)
}

func keys(m map[string]int) (all []string) {
	for k := range m {
		all = append(all, k)
	}
	return all
}

func TestClonesKeepTheirMaster(t *testing.T) {
	r := newRig(t)
	m := r.create(api.CreateRequest{Name: "golden"})
	if v := r.create(api.CreateRequest{Name: "a", From: "golden"}); v.Master != "store:"+m.Store || v.Size != m.Size {
		t.Errorf("%+v", v)
	}
	r.create(api.CreateRequest{Name: "b", Master: "store:" + m.Store})
	_, err := r.Delete(ctx, "golden", api.DeleteRequest{})
	refused(t, err, ErrInUse, "volumes a, b are clones of it")
	r.delete("a")
	_, err = r.Delete(ctx, "golden", api.DeleteRequest{})
	refused(t, err, ErrInUse, "volume b is a clone of it")
	if got := r.Clones("golden"); len(got) != 1 || got[0] != "b" {
		t.Errorf("clones: %v", got)
	}
	// Cut loose by an engine while nobody told the inventory.
	hydrate(t, r, "b")
	if e := ready(t, r, "b"); e.CutLoose {
		t.Error("known already: the test shows nothing")
	}
	r.delete("golden")
	if e := ready(t, r, "b"); !e.CutLoose {
		t.Error("not recorded")
	}
}

// hydrate serves a volume until it is cut loose.
func hydrate(t *testing.T, r *rig, name string) {
	t.Helper()
	s := serve(t, r, name, "--hydrate")
	s.until(func(e *api.EngineStatus) bool { return e.Hydration != nil && e.Hydration.State == api.HydrationDone })
	s.stop()
}

func TestDeleteRefuses(t *testing.T) {
	domain, used, veto := "", false, error(nil)
	var asked []string
	r := newRig(t, func(c *Config) {
		c.InUse = func(string) (string, bool) { return domain, used }
		c.Veto = func(_ context.Context, event string, v api.VolumeInfo) error {
			asked = append(asked, event+" "+v.Name)
			return veto
		}
	})
	v := r.create(api.CreateRequest{Name: "v"})
	refuse := func(kind error, says ...string) {
		t.Helper()
		_, err := r.Delete(ctx, "v", api.DeleteRequest{})
		refused(t, err, kind, says...)
		if e, err := r.Lookup("v"); err != nil || info(e) != v {
			t.Errorf("%+v %v", e, err)
		}
	}
	domain, used = "guest1", true
	refuse(ErrInUse, "guest1", "virt-cow detach guest1 v")
	domain = ""
	refuse(ErrInUse, "virt-cow volume stop v")
	used, veto = false, errors.New("backup first")
	refuse(ErrVetoed, "backup first")
	veto = nil
	wants(t, "asked", asked, []string{plugin.EventDelete + " v"})
	s := serve(t, r, "v")
	refuse(ErrInUse)
	s.stop()
	// Another store at its place: neither is touched.
	if err := os.Rename(v.Store, r.path("away")); err != nil {
		t.Fatal(err)
	}
	refuse(ErrNotReady, "volume scan", "--keep-store v")
	r.run("store", "create", "--size", "2M", "--name", "other", v.Store)
	refuse(nil, "other")
	if err := errors.Join(os.Remove(v.Store), os.Rename(r.path("away"), v.Store)); err != nil {
		t.Fatal(err)
	}
	r.delete("v")
	_, err := r.Delete(ctx, "v", api.DeleteRequest{})
	refused(t, err, ErrNotFound)
}

// Whoever takes a volume into use while it is being deleted finds it gone, or Delete finds the use.
func TestDeleteAgainstUse(t *testing.T) {
	var mu sync.Mutex
	used := map[string]bool{}
	r := newRig(t, func(c *Config) {
		c.InUse = func(v string) (string, bool) {
			mu.Lock()
			defer mu.Unlock()
			return "guest", used[v]
		}
	})
	for i := range 10 {
		name := fmt.Sprintf("v%d", i)
		r.create(api.CreateRequest{Name: name})
		var group sync.WaitGroup
		var taken, deleted error
		group.Go(func() {
			mu.Lock()
			used[name] = true
			mu.Unlock()
			_, taken = r.Lookup(name)
		})
		group.Go(func() { _, deleted = r.Delete(ctx, name, api.DeleteRequest{}) })
		group.Wait()
		if taken == nil && deleted == nil {
			t.Errorf("%s: taken into use and deleted", name)
		}
		if _, err := os.Stat(r.path("stores", name+".vcow")); (err == nil) != (deleted != nil) {
			t.Errorf("%s: %v, but %v", name, deleted, err)
		}
	}
}

func TestPool(t *testing.T) {
	pools := &folderPools{fail: map[string]error{}}
	r := newRig(t, pools.use)
	pools.dir = r.path("pool")
	v := r.create(api.CreateRequest{Name: "p1", Pool: "default"})
	if v.Store != r.path("pool/p1-"+v.UUID[:8]+".vcow") || v.Pool != "default" || v.State != api.StateReady {
		t.Errorf("%+v", v)
	}
	r.reopen()
	if got, err := r.Show(ctx, "p1"); err != nil || got != v {
		t.Errorf("%+v %v", got, err)
	}
	r.delete("p1")
	wants(t, "in the pool", tree(t, r.path("pool")), nil)

	_, err := r.Create(ctx, api.CreateRequest{Name: "p2", Size: mib, Pool: "nopool"})
	refused(t, err, libvirtx.ErrNoPool, "nopool")
	_, err = r.Create(ctx, api.CreateRequest{Name: "p2", Size: mib, Pool: "default", LUN: "unit:0:0:9"})
	refused(t, err, ErrInvalid, "virsh vol-list default")
	for _, call := range []string{"find", "create"} {
		pools.fail[call] = errors.New("no power")
		_, err = r.Create(ctx, api.CreateRequest{Name: "p2", Size: mib, Pool: "default"})
		refused(t, err, nil, "no power")
		delete(pools.fail, call)
		r.Recover(ctx) // of a failed create the undoing could not ask the pool either
	}
	if r.Len() != 0 {
		t.Errorf("%+v", r.List())
	}
	// The pool fails when its volume is to be deleted: the volume stays in the catalogue, as being deleted.
	r.create(api.CreateRequest{Name: "p3", Pool: "default"})
	pools.fail["find"] = errors.New("no power")
	_, err = r.Delete(ctx, "p3", api.DeleteRequest{})
	refused(t, err, nil, "no power", "virt-cow volume delete p3` tries again")
	if l := r.List(); len(l) != 1 || l[0].State != api.StateDeleting || !strings.Contains(l[0].Error, "no power") {
		t.Errorf("%+v", l)
	}
	_, err = r.Lookup("p3")
	refused(t, err, ErrNotReady, "deleting")
	r.reopen()
	if l := r.List(); len(l) != 1 {
		t.Errorf("%+v", l)
	}
	delete(pools.fail, "find")
	r.delete("p3")
	wants(t, "in the pool", tree(t, r.path("pool")), nil)
}

// A LUN of a pool was there before: it is given back, not deleted.
func TestLUN(t *testing.T) {
	pools := &folderPools{}
	r := newRig(t, pools.use)
	lun, kernel := r.loop("lun1", 16*mib)
	pools.dir = r.path("dev/disk/by-id")
	v := r.create(api.CreateRequest{Name: "l", Size: 4 * mib, Pool: "san", LUN: "scsi-lun1"})
	if v.Store != lun || v.Pool != "san" {
		t.Errorf("%+v", v)
	}
	if e, ok := r.ByStore(kernel); !ok || e.Name != "l" {
		t.Errorf("by the kernel's name: %+v", e)
	}
	if d := r.Devices(ready(t, r, "l")); len(d) != 1 || d[0] != lun {
		t.Errorf("devices: %v", d)
	}
	// Under no name and by no force.
	alias := r.path("dev/disk/by-id/wwn-lun1")
	if err := os.Symlink(kernel, alias); err != nil {
		t.Fatal(err)
	}
	_, err := r.Create(ctx, api.CreateRequest{Name: "l2", Size: mib, Store: alias, Force: true})
	refused(t, err, ErrExists, "it is the store of volume l")
	disk, _ := r.loop("lun2", 16*mib)
	r.create(api.CreateRequest{Name: "c", Master: disk})
	_, err = r.Create(ctx, api.CreateRequest{Name: "l2", Size: mib, Store: disk, Force: true})
	refused(t, err, ErrExists, "it is the master of volume c")
	r.delete("c")
	r.delete("l")
	if _, err := os.Lstat(lun); err != nil {
		t.Error(err)
	}
	there, err := r.look(ctx, lun)
	if err != nil || there != nil {
		t.Errorf("still on it: %+v %v", there, err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", kernel).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	_, err = r.Create(ctx, api.CreateRequest{Name: "l", Size: 4 * mib, Store: lun})
	refused(t, err, nil, "ext2/3/4")
	_, err = r.Create(ctx, api.CreateRequest{Name: "l", Size: 64 * mib, Store: lun, Force: true})
	refused(t, err, nil, "16777216")
	if r.Len() != 0 {
		t.Errorf("%+v", r.List())
	}
	r.create(api.CreateRequest{Name: "l", Size: 4 * mib, Store: lun, Force: true})
}

func TestUnstableNames(t *testing.T) {
	r := newRig(t)
	lun, kernel := r.loop("lun1", 16*mib)
	link := r.path("mine")
	if err := os.Symlink(lun, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{kernel, link, r.path("dev/../mine")} {
		for _, c := range []api.CreateRequest{
			{Name: "x", Size: mib, Store: path}, {Name: "x", Master: path}, {Name: "x", Master: "raw:" + path}, {Name: "x", Master: "store:" + path},
		} {
			_, err := r.Create(ctx, c)
			refused(t, err, ErrInvalid, path, "after the next boot", "use "+lun)
		}
		_, err := r.Adopt(ctx, api.AdoptRequest{Store: path})
		refused(t, err, ErrInvalid, "use "+lun)
		_, err = r.Adopt(ctx, api.AdoptRequest{Raw: path, Name: "x"})
		refused(t, err, ErrInvalid, "use "+lun)
	}
	if err := os.Remove(lun); err != nil {
		t.Fatal(err)
	}
	_, err := r.Create(ctx, api.CreateRequest{Name: "x", Size: mib, Store: kernel})
	refused(t, err, ErrInvalid, "it has no other", "disk/by-id")

	lv := r.path("dev/vg0/root")
	dm := r.path("dev/dm-7")
	if err := errors.Join(os.MkdirAll(r.path("dev/vg0"), 0o700), os.Symlink("../dm-7", lv), os.Symlink(kernel, dm)); err != nil {
		t.Fatal(err)
	}
	if err := r.devices.stable(lv); err != nil {
		t.Error(err)
	}
	refused(t, r.devices.stable(dm), ErrInvalid, "use "+lv)
	if err := r.devices.stable(r.file("plain", "x")); err != nil {
		t.Error(err)
	}
}

func TestProvider(t *testing.T) {
	p := &folderProvider{}
	r := newRig(t, func(c *Config) {
		c.Provider = func(name string) (Provider, error) {
			if name != "san" {
				return nil, plugin.ErrNoProvider
			}
			return p, nil
		}
	})
	p.dir = r.path("san")
	_, err := r.Create(ctx, api.CreateRequest{Name: "v", Size: mib, Provider: "nas"})
	refused(t, err, plugin.ErrNoProvider)
	v := r.create(api.CreateRequest{Name: "v", Provider: "san"})
	if v.Provider != "san" || v.Store != r.path("san/v") {
		t.Errorf("%+v", v)
	}
	r.delete("v")
	// One that is there already is not taken, and above all not deleted.
	r.file("san/v", "precious")
	_, err = r.Create(ctx, api.CreateRequest{Name: "v", Size: mib, Provider: "san"})
	refused(t, err, ErrExists, r.path("san/v"))
	wants(t, "the provider's", tree(t, r.path("san")), []string{"v"})
	if r.Len() != 0 {
		t.Errorf("%+v", r.List())
	}
}

// folderProvider creates what exists, as a real one: which may be repeated.
type folderProvider struct{ dir string }

func (p *folderProvider) Create(_ context.Context, name string, size int64) (string, error) {
	path := p.dir + "/" + name
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(p.dir, 0o700); err != nil {
			return "", err
		}
		f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	}
	if err != nil {
		return "", err
	}
	return path, errors.Join(f.Truncate(size), f.Close())
}

func (p *folderProvider) Delete(_ context.Context, name, path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (p *folderProvider) Resolve(_ context.Context, name string) (string, error) {
	if _, err := os.Lstat(p.dir + "/" + name); err != nil {
		return "", plugin.ErrNotFound
	}
	return p.dir + "/" + name, nil
}

// An ended context ends a create, and it is undone all the same.
func TestCancelled(t *testing.T) {
	pools := &folderPools{}
	r := newRig(t, pools.use)
	pools.dir = r.path("pool")
	cancelled, cancel := context.WithCancel(ctx)
	defer cancel()
	pools.after = func(call string) {
		if call == "create" {
			cancel()
		}
	}
	_, err := r.Create(cancelled, api.CreateRequest{Name: "v", Size: mib, Pool: "default"})
	refused(t, err, context.Canceled)
	wants(t, "in the pool", tree(t, pools.dir), nil)
	if r.Len() != 0 {
		t.Errorf("%+v", r.List())
	}
}

func TestDamagedRecordIsListedAndKeepsItsName(t *testing.T) {
	r := newRig(t)
	r.create(api.CreateRequest{Name: "good"})
	v := r.create(api.CreateRequest{Name: "bad"})
	r.file("state/volumes/bad.json", "{")
	r.reopen()
	l := r.List()
	if len(l) != 2 || l[0].Name != "bad" || !strings.Contains(l[0].Error, "bad.json") || l[1].Error != "" {
		t.Errorf("%+v", l)
	}
	_, err := r.Create(ctx, api.CreateRequest{Name: "bad", Size: mib})
	refused(t, err, ErrExists, "bad.json")
	_, err = r.Lookup("bad")
	refused(t, err, catalogue.ErrDamaged, "bad.json")
	if s := r.scan(); len(s.Found) != 1 || s.Found[0] != "bad" {
		t.Errorf("%+v", s)
	}
	if got, err := r.Show(ctx, "bad"); err != nil || got != v {
		t.Errorf("%+v\n%+v %v", got, v, err)
	}
}

// The program hangs, as it does on a dead LUN: who waits goes on when its time is over.
func TestHangingProgram(t *testing.T) {
	r := newRig(t)
	r.create(api.CreateRequest{Name: "v"})
	hang := r.file("hang", "#!/bin/sh\nexec sleep 1000\n")
	if err := os.Chmod(hang, 0o700); err != nil {
		t.Fatal(err)
	}
	r.program.path = hang
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	v, err := r.Show(short, "v")
	if err != nil || v.Name != "v" || !strings.Contains(v.Error, "deadline") {
		t.Errorf("%+v %v", v, err)
	}
	_, err = r.Delete(short, "v", api.DeleteRequest{})
	refused(t, err, context.DeadlineExceeded)
	if _, err := r.Lookup("v"); err != nil { // nothing was deleted
		t.Error(err)
	}
	// Nobody waits for ever behind a scan.
	if !r.ops.TryAcquire(everything) {
		t.Fatal("held")
	}
	soon, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err = r.Create(soon, api.CreateRequest{Name: "w", Size: mib})
	refused(t, err, ErrInUse, "a scan is running")
	_, err = r.Scan(soon, api.ScanRequest{})
	refused(t, err, ErrInUse, "another scan")
	r.ops.Release(everything)
	r.program.path = testProgram
	r.delete("v")
}

// A raw disk has clones too: the volume that writes to it must not be served before they are cut loose. Its state store
// is not what they need, so it may go.
func TestClonesOfARawDisk(t *testing.T) {
	r := newRig(t)
	raw := r.raw("disk.raw", mib)
	if _, err := r.Adopt(ctx, api.AdoptRequest{Raw: raw, Name: "disk"}); err != nil {
		t.Fatal(err)
	}
	r.create(api.CreateRequest{Name: "a", From: "disk"})
	r.create(api.CreateRequest{Name: "b", Master: raw})
	wants(t, "clones", r.Clones("disk"), []string{"a", "b"})
	hydrate(t, r, "a")
	if err := r.CutLoose("a"); err != nil {
		t.Fatal(err)
	}
	wants(t, "clones", r.Clones("disk"), []string{"b"})
	r.delete("disk")
}

// A master that hangs, of any volume, holds up no other volume for long, nor does it cost a thread each time.
func TestClonesWithAMasterThatHangs(t *testing.T) {
	r := newRig(t)
	v := r.create(api.CreateRequest{Name: "v"})
	r.create(api.CreateRequest{Name: "a", From: "v"})
	dead := r.create(api.CreateRequest{Name: "dead"})
	r.create(api.CreateRequest{Name: "b", From: "dead"})
	r.create(api.CreateRequest{Name: "c", From: "dead"})
	link := r.path("link.vcow")
	if err := os.Symlink(v.Store, link); err != nil {
		t.Fatal(err)
	}
	r.create(api.CreateRequest{Name: "d", Master: "store:" + link})
	hang := make(chan struct{})
	var stuck atomic.Int32
	r.looks.at = func(path string) (thing, bool) {
		if path == dead.Store {
			stuck.Add(1)
			<-hang
		}
		return thingAt(path)
	}
	for range 3 {
		wants(t, "clones", r.Clones("v"), []string{"a", "d"})
	}
	if n := stuck.Load(); n != 1 {
		t.Errorf("%d goroutines hang", n)
	}
	close(hang)
}

// What a crash interrupted may need a disk that does not answer: Open, and with it the start of the daemon and of every
// guest, does not wait for it.
func TestOpenLeavesIntents(t *testing.T) {
	r := newRig(t)
	e := catalogue.Entry{Name: "v", UUID: uuid.NewString(), State: catalogue.Creating, Store: r.path("stores/v.vcow")}
	if err := errors.Join(r.cat.Add(e), r.Close()); err != nil {
		t.Fatal(err)
	}
	inv, err := Open(r.config)
	if err != nil {
		t.Fatal(err)
	}
	r.Inventory = inv
	if len(r.List()) != 1 {
		t.Error(r.List())
	}
	r.Recover(ctx)
	if len(r.List()) != 0 {
		t.Error(r.List())
	}
}

func TestProgramsOwnNames(t *testing.T) {
	r := newRig(t)
	_, err := r.Create(ctx, api.CreateRequest{Name: "daemon", Size: mib})
	refused(t, err, ErrInvalid, "daemon")
	_, err = r.Create(ctx, api.CreateRequest{Name: "image-node", Size: mib})
	refused(t, err, ErrInvalid, "image-node")
}

// A guest that writes a store's header to its raw disk gets no volume of it, whatever a domain's metadata says.
func TestAdoptGuestsDisk(t *testing.T) {
	var guests []string
	r := newRig(t, func(c *Config) {
		c.GuestDisks = func(context.Context) ([]string, error) { return guests, nil }
	})
	forged := r.path("forged.raw")
	r.run("store", "create", "--size", "1M", "--name", "evil", forged)
	link := r.path("link")
	if err := os.Symlink(forged, link); err != nil {
		t.Fatal(err)
	}
	guests = []string{"/nowhere", link}
	_, err := r.AdoptNamed(ctx, forged, "evil")
	refused(t, err, ErrInvalid, "raw disk")
	guests = nil
	if _, err := r.AdoptNamed(ctx, forged, "evil"); err != nil {
		t.Error(err)
	}

	disk := r.raw("disk.raw", 4*mib)
	if _, err := r.Adopt(ctx, api.AdoptRequest{Raw: disk, Name: "disk"}); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(r.path("forged.raw"), disk); err != nil { // its guest wrote that
		t.Fatal(err)
	}
	_, err = r.Adopt(ctx, api.AdoptRequest{Store: disk})
	refused(t, err, ErrInvalid, "raw disk", "volume disk")
}

// A store that was moved, with a link left in its place, is not deleted half: the link would be, and the volume be lost.
func TestDeleteBehindLink(t *testing.T) {
	r := newRig(t)
	v := r.create(api.CreateRequest{Name: "v"})
	moved := r.path("moved.vcow")
	r.move(v.Store, moved)
	if err := os.Symlink(moved, v.Store); err != nil {
		t.Fatal(err)
	}
	_, err := r.Delete(ctx, "v", api.DeleteRequest{})
	refused(t, err, nil, moved)
	ready(t, r, "v")
	if _, err := os.Stat(v.Store); err != nil {
		t.Error(err)
	}
}
