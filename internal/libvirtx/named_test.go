package libvirtx

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

const namedUUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"

func namedXML(disks ...string) string {
	return `<?xml version="1.0" encoding="UTF-8"?>
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>g &amp; 1</name><uuid>` + namedUUID + `</uuid>
  <metadata><virtcow:disks xmlns:virtcow="` + Namespace + `"><virtcow:disk volume="m" store="/s" target="vdb"/></virtcow:disks>
    <x:name xmlns:x='urn:x'>no</x:name></metadata>
  <memory unit='KiB'>not a number</memory>
  <devices>` + strings.Join(disks, "") + `<interface type='bridge'><name>no</name></interface></devices>
</domain>`
}

func nbdXML(socket string) string {
	return `<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd' name=''><host transport='unix' socket='` +
		socket + `'/></source><target dev='vdb' bus='virtio'/></disk>`
}

func volumesOf(disks []NamedDisk) []string {
	var names []string
	for _, d := range disks {
		names = append(names, d.Volume)
	}
	return names
}

func TestNamedSerial(t *testing.T) {
	disk := strings.Replace(nbdXML("/run/virt-cow/a.sock"), "</disk>", "<serial> 0123 </serial></disk>", 1)
	_, got, err := Named([]byte(namedXML(disk, nbdXML("/run/virt-cow/b.sock"))), "/run/virt-cow")
	if err != nil || !slices.Equal(got, []NamedDisk{{"a", "0123"}, {"b", ""}}) {
		t.Errorf("%v %v", got, err)
	}
}

func TestWantsIn(t *testing.T) {
	got, err := WantsIn([]byte(namedXML()))
	if err != nil || !slices.Equal(got, []Want{{Volume: "m", Store: "/s", Target: "vdb"}}) {
		t.Errorf("%v %v", got, err)
	}
	if got, err := WantsIn([]byte("<domain><metadata><disks><disk volume='m'/></disks></metadata></domain>")); got != nil || err != nil {
		t.Errorf("another namespace's: %v %v", got, err)
	}
	if _, err := WantsIn([]byte("<domain><d:disks xmlns:d='" + Namespace + "'><d:disk volume='m'/></d:disks></domain>")); err == nil {
		t.Error("a disk without store and target was taken")
	}
	if _, err := WantsIn([]byte("<domain xmlns:d='" + Namespace + "'><d:disks>")); !errors.Is(err, ErrBadXML) {
		t.Error(err)
	}
}

func TestNamed(t *testing.T) {
	for name, c := range map[string]struct {
		disks  []string
		runDir string
		want   []string
	}{
		"no disk":          {nil, "/run/virt-cow", nil},
		"file":             {[]string{`<disk type='file'><source file='/run/virt-cow/a.sock'/><target dev='vda'/></disk>`}, "/run/virt-cow", nil},
		"ours":             {[]string{nbdXML("/run/virt-cow/a.sock"), nbdXML("/run/virt-cow/b.c.sock")}, "/run/virt-cow", []string{"a", "b.c"}},
		"twice":            {[]string{nbdXML("/run/virt-cow/a.sock"), nbdXML("/run/virt-cow/./a.sock")}, "/run/virt-cow", []string{"a"}},
		"unclean":          {[]string{nbdXML("/run//virt-cow/../virt-cow/a.sock")}, "/run/virt-cow/", []string{"a"}},
		"var run in XML":   {[]string{nbdXML("/var/run/virt-cow/a.sock")}, "/run/virt-cow", []string{"a"}},
		"var run is ours":  {[]string{nbdXML("/run/virt-cow/a.sock")}, "/var/run/virt-cow", []string{"a"}},
		"var runs":         {[]string{nbdXML("/var/runs/virt-cow/a.sock")}, "/runs/virt-cow", nil},
		"elsewhere":        {[]string{nbdXML("/run/virt-cow/sub/a.sock"), nbdXML("/run/a.sock"), nbdXML("/run/virt-cow.sock")}, "/run/virt-cow", nil},
		"no volume's name": {[]string{nbdXML("/run/virt-cow/.sock"), nbdXML("/run/virt-cow/a"), nbdXML("/run/virt-cow/-a.sock")}, "/run/virt-cow", nil},
		"over TCP":         {[]string{`<disk type='network'><source protocol='nbd' name='/run/virt-cow/a.sock'><host name='h' port='1'/></source></disk>`}, "/run/virt-cow", nil},
		"spelt oddly":      {[]string{strings.Replace(nbdXML("/run/virt-cow/a.sock"), "nbd", "&#110;bd", 1)}, "/run/virt-cow", []string{"a"}},
		"no source":        {[]string{`<disk type='network' device='cdrom'><target dev='sda'/></disk>`, nbdXML("/run/virt-cow/a.sock")}, "/run/virt-cow", []string{"a"}},
	} {
		d, got, err := Named([]byte(namedXML(c.disks...)), c.runDir)
		if err != nil || d != (Domain{Name: "g & 1", UUID: uuid.MustParse(namedUUID)}) || !slices.Equal(volumesOf(got), c.want) {
			t.Errorf("%s: %v %q %v, want %q", name, d, got, err, c.want)
		}
	}
}

func TestNamedRefuses(t *testing.T) {
	for _, x := range []string{
		"", "hello", "<domain", "<domain/>", "<network><name>n</name></network>", "<domain><name></name></domain>",
		"<domain><name>g</name><uuid>0</uuid></domain>", "<domain><name>g</name><!-- nbd --><devices><disk>",
		"<a/><domain><name>g</name></domain>",
	} {
		if d, v, err := Named([]byte(x), "/run/virt-cow"); !errors.Is(err, ErrBadXML) {
			t.Errorf("%s: %v %v %v", x, d, v, err)
		}
	}
}

func FuzzNamed(f *testing.F) {
	f.Add([]byte(namedXML(nbdXML("/run/virt-cow/a.sock"))))
	f.Add([]byte(namedXML(nbdXML("/var/run/virt-cow/b.sock"), `<disk type='vhostuser'><source type='unix' path='/x'/></disk>`)))
	f.Add([]byte(`<domain><name>g</name><devices><disk type='network'><source protocol="&#110;bd"/></disk></devices></domain>`))
	f.Fuzz(func(t *testing.T, x []byte) {
		d, volumes, err := Named(x, "/run/virt-cow")
		if err != nil {
			if !errors.Is(err, ErrBadXML) || d != (Domain{}) || volumes != nil {
				t.Fatal(d, volumes, err)
			}
			return
		}
		if d.Name == "" {
			t.Fatal("no name")
		}
		for _, v := range volumes {
			if err := cowfmt.ValidName(v.Volume); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func BenchmarkNamedForeign(b *testing.B) {
	x := []byte(namedXML(slices.Repeat([]string{`<disk type='file'><source file='/a.qcow2'/><target dev='vda'/></disk>`}, 200)...))
	for b.Loop() {
		if _, v, err := Named(x, "/run/virt-cow"); err != nil || v != nil {
			b.Fatal(v, err)
		}
	}
}
