package libvirtx

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
)

func TestDiskXMLByLibvirtVersion(t *testing.T) {
	s := Spec{Volume: "web1", UUID: uuid.MustParse("01234567-89ab-cdef-0123-456789abcdef"), Socket: "/run/virt-cow/web1.sock", Target: "vdc"}
	for version, reconnect := range map[uint64]bool{9000000: false, 9001999: false, 9002000: true, 11003000: true} {
		x, err := DiskXML(s, version)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(x, `<reconnect delay="30">`) != reconnect {
			t.Errorf("libvirt %d: reconnect should be there: %v\n%s", version, reconnect, x)
		}
		for _, want := range []string{`error_policy="stop"`, `rerror_policy="stop"`, `cache="none"`, `discard="unmap"`, `type="raw"`,
			`protocol="nbd" name="web1"`, `socket="/run/virt-cow/web1.sock"`, `dev="vdc" bus="virtio"`, `<serial>0123456789abcdef0123</serial>`, `name="ua-virt-cow-web1"`} {
			if !strings.Contains(x, want) {
				t.Errorf("no %s in %s", want, x)
			}
		}
	}
}

func TestAliasesAreDistinctAndLegal(t *testing.T) {
	seen := map[string]string{}
	for _, v := range []string{"a.b", "a_b", "a__b", "a_db", "a-b", "ab", "a_.b", "a._b"} {
		a := Alias(v)
		if strings.Trim(a, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "" {
			t.Errorf("%s: libvirt would drop the alias %s", v, a)
		}
		if other := seen[a]; other != "" {
			t.Errorf("%s and %s share the alias %s", v, other, a)
		}
		seen[a] = v
	}
}

func TestWantsRoundTrip(t *testing.T) {
	want := []Want{{Volume: "a", Store: "/x/<&\"'>", Target: "vdb"}, {Volume: "b", Store: "/y", Target: "sda", Bus: "scsi", Hydrate: "no", Rate: 1 << 20}}
	x, err := FormatWants(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseWants(x)
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("%v %v from %s", got, err, x)
	}
	if x, err := FormatWants(nil); x != "" || err != nil {
		t.Fatal("no disks are no element", x, err)
	}
}

func TestParseWantsInEveryFormOfNamespace(t *testing.T) {
	for _, x := range []string{
		`<disks><disk volume="v" store="/s" target="vdb"/></disks>`,
		`<virtcow:disks xmlns:virtcow="` + Namespace + `"><virtcow:disk volume="v" store="/s" target="vdb"/></virtcow:disks>`,
		`<disks xmlns="` + Namespace + `"><disk volume="v" store="/s" target="vdb"/></disks>`,
		`<disks><virtcow:disk volume="v" store="/s" target="vdb"/></disks>`,
	} {
		if w, err := ParseWants(x); err != nil || len(w) != 1 || w[0].Volume != "v" {
			t.Errorf("%s: %v %v", x, w, err)
		}
	}
}

func TestParseWantsRefuses(t *testing.T) {
	for x, want := range map[string]string{
		`<disks><disk store="/s" target="vdb"/></disks>`:                                                      "needs volume",
		`<disks><disk volume="v" target="vdb"/></disks>`:                                                      "needs volume, store",
		`<disks><disk volume="v" store="/s"/></disks>`:                                                        "and target",
		`<disks><disk volume="v" store="/s" target="vdb"/><disk volume="v" store="/t" target="vdc"/></disks>`: "volume v is there twice",
		`<disks><disk volume="v" store="/s" target="vdb"/><disk volume="w" store="/t" target="vdb"/></disks>`: "target vdb is there twice",
		`<disks><disk volume="v" store="/s" target="vdb" rate="fast"/></disks>`:                               "fast",
		`<disks`: "metadata element",
	} {
		if _, err := ParseWants(x); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: want an error with %q, got %v", x, want, err)
		}
	}
}

func TestDisksOfADomain(t *testing.T) {
	got, err := Disks(`<domain type='qemu'><name>x</name><devices>
	 <disk type='file' device='disk'><source file='/a'/><target dev='vda' bus='virtio'/></disk>
	 <disk type='network' device='disk'><source protocol='nbd' name=''><host transport='unix' socket='/run/a.sock'/></source><target dev='vdb' bus='virtio'/><alias name='ua-virt-cow-a'/></disk>
	 <disk type='network' device='disk'><source protocol='nbd' name='e'><host name='h' port='10809'/></source><target dev='vdc' bus='virtio'/></disk>
	</devices></domain>`)
	want := []Disk{{Target: "vda", Source: "/a"}, {Target: "vdb", Socket: "/run/a.sock", Alias: "ua-virt-cow-a"}, {Target: "vdc"}}
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("%v %v", got, err)
	}
}

// Disks as users write them for booting: no alias, a socket by another of its names; and disks of other kinds.
func TestDisksOfAStoredDefinition(t *testing.T) {
	x := namedXML(
		`<disk type='network' device='disk'><source protocol='nbd'><host transport='unix' socket='/var/run//virt-cow/a.sock'/></source><target dev='vda'/></disk>`,
		`<disk type='file' device='cdrom'><target dev='sda'/><alias name='ua-x'/></disk>`,
		`<disk type='network' device='disk'><source protocol='rbd' name='p/i'><host name='h' port='1'/></source><target dev='vdc'/></disk>`,
	)
	want := []Disk{{Target: "vda", Socket: "/run/virt-cow/a.sock"}, {Target: "sda", Alias: "ua-x"}, {Target: "vdc"}}
	if got, err := Disks(x); err != nil || !slices.Equal(got, want) {
		t.Fatal(got, err)
	}
	if _, err := Disks("<domain"); !errors.Is(err, ErrBadXML) {
		t.Fatal(err)
	}
}
