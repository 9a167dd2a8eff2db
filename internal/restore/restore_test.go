package restore

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// known are volumes that are there, by name.
type known map[string]api.VolumeInfo

func (k known) Volume(_ context.Context, name string) (*api.VolumeInfo, error) {
	if v, ok := k[name]; ok {
		return &v, nil
	}
	return nil, &api.RemoteError{Code: http.StatusNotFound, Message: "no volume " + name}
}

func (k known) Adopt(context.Context, api.AdoptRequest) (*api.VolumeInfo, error) {
	return nil, errors.New("not here")
}

func (k known) Delete(_ context.Context, name string, _ api.DeleteRequest) (*api.VolumeInfo, error) {
	v := k[name]
	delete(k, name)
	return &v, nil
}

func TestNamesOfVolumes(t *testing.T) {
	there := known{"web-vda": {}, "web-vda-2": {}}
	long := strings.Repeat("x", 200)
	for domain, want := range map[string]string{
		"web": "web-vda-3", "db": "db-vda", "my guest": "my-guest-vda", "_x": "x-vda", "größe": "gr--e-vda", "日本": "--" + "-vda", long: long[:cowfmt.MaxName-4] + "-vda",
	} {
		want = strings.TrimLeft(want, "-")
		if want == "vda" {
			want = "restored-vda"
		}
		if got, err := freeName(t.Context(), there, domain, "vda"); err != nil || got != want {
			t.Errorf("%q: %q %v, want %q", domain, got, err, want)
		}
	}
}

// Only one restores a domain at a time, and whoever looks for what was cut off does not take one that goes on for it.
func TestJournal(t *testing.T) {
	j := JournalIn(t.TempDir())
	cutOff := func(want int) {
		t.Helper()
		if all, err := j.CutOff(); err != nil || len(all) != want {
			t.Errorf("%v %v", all, err)
		}
	}
	cutOff(0)
	e, err := j.Hold(t.Context(), "g 1")
	if err != nil || e.Version != 0 {
		t.Fatal(e, err)
	}
	e.Intent = Intent{Version: intentVersion, Domain: "g 1", Backup: "b"}
	if err := e.save(); err != nil {
		t.Fatal(err)
	}
	cutOff(0)
	if _, err := j.Hold(t.Context(), "g 1"); !errors.Is(err, ErrGoesOn) {
		t.Error(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	cutOff(1)
	if e, err = j.Hold(t.Context(), "g 1"); err != nil || e.Backup != "b" {
		t.Fatal(e, err)
	}
	if err := errors.Join(e.end(), e.Close()); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(j.Dir); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
	if _, err := j.Hold(t.Context(), "../x"); err == nil {
		t.Error("a name became a path")
	}
	for _, text := range []string{"{", `{"version":2}`} {
		if err := os.WriteFile(filepath.Join(j.Dir, "g.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := j.Hold(t.Context(), "g"); err == nil {
			t.Errorf("took %q", text)
		}
	}
}

// What has the name of something that a restore made, and is something else, stays.
func TestOnlyOwnIsRemoved(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) (path string, dev, ino uint64) {
		path = filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		x := st.Sys().(*syscall.Stat_t)
		return path, x.Dev, x.Ino
	}
	ours, dev, ino := file("ours", "x")
	foreign, _, _ := file("foreign", "x")
	part, partDev, partIno := file("half.part", "x")
	empty, _, _ := file("empty.part", "")
	full, _, _ := file("full.part", "x")
	device, _, _ := file("device", "x")
	half := strings.TrimSuffix(part, PartSuffix)
	for path, c := range map[string]struct {
		disk IntentDisk
		gone bool
	}{
		ours:    {IntentDisk{Path: ours, Dev: dev, Ino: ino}, true},
		foreign: {IntentDisk{Path: foreign, Dev: dev, Ino: ino}, false},
		part:    {IntentDisk{Path: half, Dev: partDev, Ino: partIno}, true},
		empty:   {IntentDisk{Path: strings.TrimSuffix(empty, PartSuffix)}, true}, // made, not noted yet
		full:    {IntentDisk{Path: strings.TrimSuffix(full, PartSuffix)}, false},
		device:  {IntentDisk{Path: device, Device: true}, false},
	} {
		u := &Undone{}
		if err := c.disk.remove(u, ""); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) != c.gone || len(u.Removed) > 0 != c.gone {
			t.Errorf("%s: gone %v, %+v", path, err, u)
		}
	}
	volumes := known{"mine": {Origin: "/a"}, "other": {Origin: "/b"}}
	for _, name := range []string{"mine", "other", "none"} {
		if err := (&IntentDisk{Volume: name, Path: "/a"}).forget(t.Context(), volumes, &Undone{}); err != nil {
			t.Error(err)
		}
	}
	if _, there := volumes["other"]; len(volumes) != 1 || !there {
		t.Error(volumes)
	}
}

// host is a libvirt that has one domain.
type host struct {
	libvirtx.Conn
	domain libvirtx.Domain
	xml    string
}

func (h host) Domains(context.Context) ([]libvirtx.Domain, error) {
	return []libvirtx.Domain{h.domain}, nil
}

func (h host) Lookup(_ context.Context, by string) (libvirtx.Domain, error) {
	if by == h.domain.Name || by == h.domain.UUID.String() {
		return h.domain, nil
	}
	return libvirtx.Domain{}, libvirtx.ErrNoDomain
}

func (h host) XML(context.Context, libvirtx.Domain) (string, error) { return h.xml, nil }

func (h host) InactiveXML(context.Context, libvirtx.Domain) (string, error) { return h.xml, nil }

func (h host) FindVolume(_ context.Context, pool, name string) (string, int64, error) {
	if pool == "gone" {
		return "", 0, libvirtx.ErrNoPool
	}
	return filepath.Join(pool, name), 0, nil
}

// A disk of a storage pool is a domain's too, though its definition does not say where it is.
func TestDiskOfPoolIsInUse(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "x.raw")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h := host{domain: libvirtx.Domain{Name: "g", UUID: uuid.New()}}
	for pool, used := range map[string]bool{filepath.Dir(disk): true, "/elsewhere": false, "gone": false} {
		h.xml = "<domain type='kvm'><name>g</name><uuid>" + h.domain.UUID.String() + "</uuid><devices><disk type='volume'><source pool='" + pool +
			"' volume='x.raw'/><target dev='vda'/></disk></devices></domain>"
		p := &Plan{Disks: []Disk{{Target: "vda", Path: disk}}}
		if err := p.others(t.Context(), h); errors.Is(err, ErrInUse) != used || !used && err != nil {
			t.Errorf("pool %s: %v", pool, err)
		}
	}
}

// A guest that was made by hand after a restore was cut off has its name, and so its NVRAM, but not its UUID; and perhaps its disk.
func TestUndoLeavesWhatOthersHave(t *testing.T) {
	dir := t.TempDir()
	nvram, disk := filepath.Join(dir, "g_VARS.fd"), filepath.Join(dir, "g-vda.raw")
	for end, stays := range map[string]bool{"": true, ".other": false} {
		for _, path := range []string{nvram, disk} {
			if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		st, err := os.Stat(disk)
		if err != nil {
			t.Fatal(err)
		}
		x := st.Sys().(*syscall.Stat_t)
		e, err := JournalIn(t.TempDir()).Hold(t.Context(), "g")
		if err != nil {
			t.Fatal(err)
		}
		e.Intent = Intent{
			Version: intentVersion, Domain: "g", UUID: uuid.NewString(), NVRAM: nvram, Disks: []IntentDisk{{Path: disk, Volume: "v", Dev: x.Dev, Ino: x.Ino}},
		}
		h := host{domain: libvirtx.Domain{Name: "g", UUID: uuid.New()}}
		h.xml = "<domain type='kvm'><name>g</name><uuid>" + h.domain.UUID.String() + "</uuid><os><type>hvm</type><nvram>" + nvram + end + "</nvram></os>" +
			"<devices><disk type='file'><source file='" + disk + end + "'/><target dev='vda'/></disk></devices></domain>"
		u, err := e.Undo(t.Context(), h, known{})
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{nvram, disk} {
			if _, err := os.Lstat(path); (err == nil) != stays {
				t.Errorf("the domain has %s%s: %v, %+v", path, end, err, u)
			}
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}
