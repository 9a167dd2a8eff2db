package inventory

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/catalogue"
)

func (r *rig) forget() {
	r.t.Helper()
	if err := errors.Join(r.Close(), os.RemoveAll(r.config.StateDir)); err != nil {
		r.t.Fatal(err)
	}
	r.open()
}

func (r *rig) move(from, to string) {
	r.t.Helper()
	if err := os.Rename(from, to); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) copy(from, to string) {
	r.t.Helper()
	if out, err := exec.Command("cp", "--sparse=always", from, to).CombinedOutput(); err != nil {
		r.t.Fatalf("%v: %s", err, out)
	}
}

func TestScanRestoresAll(t *testing.T) {
	r := newRig(t)
	raw := r.raw("m.raw", mib)
	r.create(api.CreateRequest{Name: "a", Master: raw})
	r.create(api.CreateRequest{Name: "b", From: "a"})
	r.create(api.CreateRequest{Name: "c", Size: 2 * mib})
	before := r.List()
	r.forget()
	if r.Len() != 0 {
		t.Fatal("not forgotten")
	}
	s := r.scan()
	wants(t, "found", s.Found, []string{"a", "b", "c"})
	if s.Examined < 3 || len(s.Moved)+len(s.Missing)+len(s.Refused) > 0 {
		t.Errorf("%+v", s)
	}
	r.reopen()
	if after := r.List(); !slices.Equal(before, after) {
		t.Errorf("%+v\n%+v", before, after)
	}
	if s := r.scan(); len(s.Found)+len(s.Moved)+len(s.Missing)+len(s.Refused) > 0 {
		t.Errorf("nothing changed: %+v", s)
	}
}

func TestScanMovedAndMissing(t *testing.T) {
	r := newRig(t)
	for _, name := range []string{"a", "b", "c", "d"} {
		r.create(api.CreateRequest{Name: name})
	}
	a, b, c, d := r.path("stores/a.vcow"), r.path("stores/b.vcow"), r.path("stores/c.vcow"), r.path("stores/d.vcow")
	r.move(a, r.path("stores/a2.vcow"))
	r.move(b, r.path("b.away"))
	r.move(c, r.path("tmp")) // c and d change places
	r.move(d, c)
	r.move(r.path("tmp"), d)
	s := r.scan()
	wants(t, "moved", s.Moved, []string{"a", "c", "d"})
	wants(t, "missing", s.Missing, []string{"b"})
	r.reopen()
	if e := ready(t, r, "c"); e.Store != d {
		t.Errorf("%+v", e)
	}
	if e := ready(t, r, "d"); e.Store != c {
		t.Errorf("%+v", e)
	}
	_, err := r.Lookup("b")
	refused(t, err, ErrNotReady, b, "volume scan")
	if v, err := r.Show(ctx, "b"); err != nil || v.State != api.StateMissing || v.Error == "" {
		t.Errorf("%+v %v", v, err)
	}
	_, err = r.Delete(ctx, "b", api.DeleteRequest{})
	refused(t, err, ErrNotReady, "--keep-store b")
	if s := r.scan(); len(s.Missing)+len(s.Moved)+len(s.Found) > 0 {
		t.Errorf("nothing new: %+v", s)
	}
	// A name that is missing is still taken.
	_, err = r.Create(ctx, api.CreateRequest{Name: "b", Size: mib})
	refused(t, err, ErrExists)
	wants(t, "found elsewhere", r.scan(r.path("b.away")).Moved, []string{"b"})
	if v, err := r.Show(ctx, "b"); err != nil || v.State != api.StateReady || v.Error != "" || v.Store != r.path("b.away") {
		t.Errorf("%+v %v", v, err)
	}
	r.move(r.path("b.away"), b)
	wants(t, "back", r.scan().Moved, []string{"b"})
	r.move(b, r.path("b.away"))
	wants(t, "away", r.scan().Missing, []string{"b"})
	r.move(r.path("b.away"), b)
	wants(t, "there again", r.scan().Found, []string{"b"})
	// A new store where a missing one's was.
	r.move(b, r.path("b.away"))
	r.scan()
	r.run("store", "create", "--size", "1M", "--name", "new", b)
	wants(t, "new one", r.scan().Found, []string{"new"})
	if e, ok := r.ByStore(b); !ok || e.Name != "new" {
		t.Errorf("%+v", e)
	}
}

func TestScanRefusesTwins(t *testing.T) {
	r := newRig(t)
	a := r.create(api.CreateRequest{Name: "a"})
	r.copy(a.Store, r.path("stores/copy.vcow"))
	r.run("store", "create", "--size", "1M", "--name", "x", r.path("stores/x1.vcow"))
	r.run("store", "create", "--size", "1M", "--name", "x", r.path("stores/x2.vcow"))
	r.run("store", "create", "--size", "1M", "--name", "a", r.path("stores/false-a.vcow"))
	s := r.scan()
	if len(s.Found)+len(s.Moved)+len(s.Missing) > 0 || len(s.Refused) != 3 {
		t.Fatalf("%+v", s)
	}
	all := strings.Join(s.Refused, "\n")
	for _, text := range []string{a.Store, "copy.vcow", "x1.vcow", "x2.vcow", "false-a.vcow", "the same UUID", "the same name"} {
		if !strings.Contains(all, text) {
			t.Errorf("does not say %s:\n%s", text, all)
		}
	}
	if got, err := r.Show(ctx, "a"); err != nil || got != a || r.Len() != 1 {
		t.Errorf("%+v %v", got, err)
	}
	// With the catalogue gone nobody knows which is the right one: none.
	r.forget()
	if s := r.scan(); len(s.Found) > 0 || r.Len() != 0 {
		t.Errorf("%+v", s)
	}
	// A copy that is there while the original can't be seen is a move as far as anybody can tell; but not while the
	// original's place can't be examined.
	if err := errors.Join(os.Remove(r.path("stores/copy.vcow")), os.Remove(r.path("stores/false-a.vcow"))); err != nil {
		t.Fatal(err)
	}
	wants(t, "found", r.scan().Found, []string{"a"})
	r.copy(a.Store, r.path("stores/copy.vcow"))
	f, err := os.OpenFile(a.Store, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{100, 1<<20 - 64<<10 + 100} { // both copies of the header
		if _, err := f.WriteAt([]byte("XXXXXXXX"), off); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	s = r.scan()
	if len(s.Moved)+len(s.Missing) > 0 || !strings.Contains(strings.Join(s.Refused, "\n"), "can't be found out") {
		t.Errorf("%+v", s)
	}
	if e := ready(t, r, "a"); e.Store != a.Store {
		t.Errorf("%+v", e)
	}
}

// A guest owns its raw disk and can write a header there.
func TestScanIgnoresWhatGuestsWrite(t *testing.T) {
	var guests []string
	r := newRig(t, func(c *Config) { c.GuestDisks = func(context.Context) ([]string, error) { return guests, nil } })
	forged := r.path("stores/x.vcow")
	r.file("stores/note", "")
	r.run("store", "create", "--size", "1M", "--name", "forged", forged)
	if err := os.Link(forged, r.path("disk.raw")); err != nil {
		t.Fatal(err)
	}
	guests = []string{r.path("disk.raw")}
	s := r.scan()
	if len(s.Found) > 0 || len(s.Refused) != 1 || !strings.Contains(s.Refused[0], forged) {
		t.Errorf("%+v", s)
	}
	// The same for what a volume has as its origin, or a master.
	guests = nil
	if err := r.cat.Add(catalogue.Entry{
		Name: "s", UUID: "3f2a9c1e-0000-4000-8000-000000000001", State: catalogue.Ready, Store: r.path("s"), Role: "state",
		Size: mib, ChunkSize: 4096, Origin: r.path("disk.raw"),
	}); err != nil {
		t.Fatal(err)
	}
	if s := r.scan(); len(s.Found) > 0 || len(s.Refused) != 1 {
		t.Errorf("%+v", s)
	}
	if _, err := r.Delete(ctx, "s", api.DeleteRequest{KeepStore: true}); err != nil {
		t.Fatal(err)
	}
	wants(t, "nobody's disk", r.scan().Found, []string{"forged"})
}

// What a guest, or a stranger, writes into a header makes no raw disk of a volume's store.
func TestScanForgedOrigin(t *testing.T) {
	for what, guests := range map[string][]string{"a guest's disk": {"disk.raw"}, "nobody's disk": nil} {
		t.Run(what, func(t *testing.T) {
			r := newRig(t)
			v := r.create(api.CreateRequest{Name: "v"})
			r.Inventory.config.GuestDisks = func(context.Context) (paths []string, err error) {
				for _, name := range guests {
					paths = append(paths, r.path(name))
				}
				return paths, nil
			}
			raw := r.raw("origin.raw", mib)
			forged := r.path("stores/forged.vcow")
			r.run("store", "create", "--raw", raw, "--name", "forged", forged)
			if err := errors.Join(os.Link(forged, r.path("disk.raw")), os.Remove(raw), os.Symlink(v.Store, raw)); err != nil {
				t.Fatal(err)
			}
			for range 2 { // at the second the forged one may be in the catalogue
				s := r.scan()
				ready(t, r, "v")
				if len(s.Missing) > 0 {
					t.Errorf("%+v", s)
				}
			}
		})
	}
}

// Two stores of a name are refused, also where one of them has a twin of another name.
func TestScanRefusesTwinsOfTwins(t *testing.T) {
	const a, b = "3f2a9c1e-0000-4000-8000-000000000001", "3f2a9c1e-0000-4000-8000-000000000002"
	r := newRig(t)
	r.file("stores/note", "")
	r.run("store", "create", "--size", "1M", "--uuid", a, "--name", "x", r.path("stores/1.vcow"))
	r.run("store", "create", "--size", "1M", "--uuid", a, "--name", "y", r.path("stores/2.vcow"))
	r.run("store", "create", "--size", "1M", "--uuid", b, "--name", "x", r.path("stores/3.vcow"))
	if s := r.scan(); len(s.Found) > 0 || len(s.Refused) != 2 {
		t.Errorf("%+v", s)
	}
}

// A volume of this name would have the daemon's socket.
func TestScanRefusesDaemonsName(t *testing.T) {
	r := newRig(t)
	r.file("stores/note", "")
	r.run("store", "create", "--size", "1M", "--name", "daemon", r.path("stores/x.vcow"))
	if s := r.scan(); len(s.Found) > 0 || len(s.Refused) != 1 {
		t.Errorf("%+v", s)
	}
}

func TestScanDevices(t *testing.T) {
	r := newRig(t)
	lun, kernel := r.loop("lun1", 16*mib)
	r.Inventory.config.ScanDevices = []string{r.path("dev/disk/by-id/*")}
	r.create(api.CreateRequest{Name: "l", Size: mib, Store: lun})
	e := ready(t, r, "l")
	if err := r.cat.Remove("l"); err != nil {
		t.Fatal(err)
	}
	wants(t, "found", r.scan().Found, []string{"l"})
	if got := ready(t, r, "l"); got.Store != lun || got.UUID != e.UUID {
		t.Errorf("%+v", got)
	}
	// Another name of the same device is no move.
	if s := r.scan(kernel); len(s.Moved)+len(s.Refused)+len(s.Missing) > 0 {
		t.Errorf("%+v", s)
	}
	if err := r.cat.Remove("l"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(lun); err != nil {
		t.Fatal(err)
	}
	s := r.scan(kernel)
	if len(s.Found) > 0 || len(s.Refused) != 1 || !strings.Contains(s.Refused[0], "after the next boot") {
		t.Errorf("%+v", s)
	}
}

func TestAdopt(t *testing.T) {
	r := newRig(t)
	path := r.path("old.vcow")
	r.run("store", "create", "--size", "1M", "--name", "old", path)
	for _, c := range []struct {
		request api.AdoptRequest
		kind    error
		says    string
	}{
		{api.AdoptRequest{Store: "old.vcow"}, ErrInvalid, "absolute"},
		{api.AdoptRequest{Store: r.path("none")}, ErrInvalid, "no such file"},
		{api.AdoptRequest{Store: r.raw("raw", mib)}, ErrInvalid, "--raw"},
		{api.AdoptRequest{Store: path, Name: "new"}, ErrInvalid, "volume old"},
		{api.AdoptRequest{Raw: r.path("raw")}, ErrInvalid, "volume name"},
		{api.AdoptRequest{Raw: "raw", Name: "r"}, ErrInvalid, "absolute"},
	} {
		_, err := r.Adopt(ctx, c.request)
		refused(t, err, c.kind, c.says)
	}
	v, err := r.Adopt(ctx, api.AdoptRequest{Store: path})
	if err != nil || v.Name != "old" || v.Store != path || v.State != api.StateReady {
		t.Fatalf("%+v %v", v, err)
	}
	_, err = r.Adopt(ctx, api.AdoptRequest{Store: path})
	refused(t, err, ErrExists, "volume old")
	r.copy(path, r.path("copy.vcow"))
	_, err = r.Adopt(ctx, api.AdoptRequest{Store: r.path("copy.vcow")})
	refused(t, err, ErrExists, "old")
	_, err = r.Adopt(ctx, api.AdoptRequest{Raw: path, Name: "r"})
	refused(t, err, ErrInvalid, "store of volume old")
	r.reopen()
	if got, err := r.Show(ctx, "old"); err != nil || got != v {
		t.Errorf("%+v %v", got, err)
	}
}

func TestAdoptRaw(t *testing.T) {
	r := newRig(t)
	raw := r.raw("disk.raw", mib)
	for _, path := range []string{raw, r.path("not-there-yet.raw")} {
		if _, err := r.Adopt(ctx, api.AdoptRequest{Raw: path, Name: "disk", Check: true}); err != nil {
			t.Error(err)
		}
	}
	if r.Len() != 0 {
		t.Error("a question made a volume")
	}
	v, err := r.Adopt(ctx, api.AdoptRequest{Raw: raw, Name: "disk"})
	if err != nil {
		t.Fatal(err)
	}
	if v.Role != "state" || v.Origin != raw || v.Size != mib || v.Store != r.path("stores/disk.vcow") || v.State != api.StateReady {
		t.Errorf("%+v", v)
	}
	_, err = r.Adopt(ctx, api.AdoptRequest{Raw: raw, Name: "again"})
	refused(t, err, ErrExists, "origin of volume disk")
	for path, says := range map[string]string{raw: "origin of volume disk", v.Store: "store of volume disk"} {
		_, err = r.Adopt(ctx, api.AdoptRequest{Raw: path, Name: "again", Check: true})
		refused(t, err, nil, says)
	}
	_, err = r.Adopt(ctx, api.AdoptRequest{Raw: r.path("new.raw"), Name: "disk", Check: true})
	refused(t, err, ErrExists, "disk")
	image := r.file("image", "QFI\xfb"+strings.Repeat("\x00", mib-4))
	_, err = r.Adopt(ctx, api.AdoptRequest{Raw: image, Name: "image"})
	refused(t, err, nil, "qcow2")
	if _, err = r.Adopt(ctx, api.AdoptRequest{Raw: image, Name: "image", ForceRaw: true}); err != nil {
		t.Error(err)
	}
	r.delete("image")
	c := r.create(api.CreateRequest{Name: "clone", From: "disk"})
	if c.Master != "raw:"+raw {
		t.Errorf("%+v", c)
	}
	before := r.List()
	r.forget()
	wants(t, "found", r.scan().Found, []string{"clone", "disk"})
	if after := r.List(); !slices.Equal(before, after) {
		t.Errorf("%+v\n%+v", before, after)
	}
	r.delete("disk")
	if b, err := os.ReadFile(raw); err != nil || len(b) != mib || string(b[:8]) != "abcdefgh" {
		t.Errorf("the raw disk: %v", err)
	}
}

// 10,000 volumes, of which a handful have a store: a scan tells the others missing, and all goes on.
func TestTenThousandVolumes(t *testing.T) {
	r := newRig(t)
	r.create(api.CreateRequest{Name: "real"})
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	const n = 10000
	for i := range n {
		name := fmt.Sprintf("v%05d", i)
		r.file("state/volumes/"+name+".json", fmt.Sprintf(`{"version":1,"name":"%s","uuid":"3f2a9c1e-0000-4000-8000-%012d","state":"ready",`+
			`"store":"/nowhere/%s.vcow","role":"clone","size":1048576,"chunkSize":4096}`, name, i, name))
	}
	begin := time.Now()
	r.open()
	t.Logf("opened in %v", time.Since(begin))
	if r.Len() != n+1 {
		t.Fatalf("%d volumes", r.Len())
	}
	begin = time.Now()
	if e, ok := r.ByStore(r.path("stores/../stores/real.vcow")); !ok || e.Name != "real" {
		t.Errorf("%+v", e)
	}
	t.Logf("by store, under another name: %v", time.Since(begin))
	begin = time.Now()
	s := r.scan()
	t.Logf("scanned in %v", time.Since(begin))
	if len(s.Missing) != n || len(s.Refused) > 0 {
		t.Errorf("%d missing, %q", len(s.Missing), s.Refused)
	}
	r.create(api.CreateRequest{Name: "next", From: "real"})
	r.delete("next")
}
