package domainxml

import (
	"encoding/xml"
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

const runDir = "/run/virt-cow"

var richUUID = uuid.MustParse("11111111-2222-3333-4444-555555555555")

// rich has a bit of everything.
const rich = `<?xml version='1.0'?>
<!-- kept by hand -->
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>rich</name>
  <uuid>11111111-2222-3333-4444-555555555555</uuid>
  <genid>99999999-2222-3333-4444-555555555555</genid>
  <title>R&amp;D "box" 'x'</title>
  <description><![CDATA[a <b> & c]]></description>
  <metadata>
    <nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1"><nova:name>web</nova:name><nova:disks><nova:disk target="vda"/></nova:disks></nova:instance>
    <other:disks xmlns:other="urn:other"><other:disk target="vdb"/></other:disks>
    <virtcow:disks xmlns:virtcow="http://virt-cow.org/xmlns/libvirt/domain/1.0"><virtcow:disk volume="later" store="/dev/lun9" target="vdx" hydrate="no"/><virtcow:disk volume="gone" store="/dev/lun8" target="vdy"/></virtcow:disks>
  </metadata>
  <memory unit='MiB'>64</memory>
  <vcpu>2</vcpu>
  <sysinfo type='smbios'>
    <system><entry name='manufacturer'>us</entry><entry name='serial'>11111111-2222-3333-4444-555555555555</entry><entry name='uuid'>11111111-2222-3333-4444-555555555555</entry></system>
  </sysinfo>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/var/lib/libvirt/qemu/nvram/rich_VARS.fd</nvram>
    <boot dev='hd'/>
    <smbios mode='sysinfo'/>
  </os>
  <features><acpi/></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw' cache='none' discard='unmap' error_policy='stop' rerror_policy='stop'/>
      <source protocol='nbd' name='root'><host transport='unix' socket='/run/virt-cow/root.sock'/></source>
      <target dev='vda' bus='virtio'/>
      <iotune><total_iops_sec>500</total_iops_sec></iotune>
      <serial>0123456789abcdef0123</serial>
      <alias name='ua-virt-cow-root'/>
      <address type='pci' domain='0x0000' bus='0x06' slot='0x00' function='0x0'/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='nbd' name=''><host transport='unix' socket='/var/run/virt-cow/left.sock'/></source>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'><source file='/iso/install.iso'/><target dev='sda' bus='sata'/><readonly/></disk>
    <disk type='file' device='cdrom'><target dev='sdb' bus='sata'/><readonly/></disk>
    <disk type='file' device='floppy'><target dev='fda' bus='fdc'/></disk>
    <disk type='block' device='disk'><source dev='/dev/vg/data'/><target dev='vdc' bus='virtio'/></disk>
    <disk type='file' device='disk'><source file='/img/ro.raw'/><target dev='vdd' bus='virtio'/><readonly/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/><source file='/img/shared.raw'/><target dev='vde' bus='virtio'/><shareable/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/img/over.qcow2'/><backingStore type='file'><format type='raw'/><source file='/img/base.raw'/><backingStore/></backingStore><target dev='vdf' bus='virtio'/></disk>
    <disk type='network' device='disk'><source protocol='nbd' name='e'><host name='h' port='10809'/></source><target dev='vdg' bus='virtio'/></disk>
    <disk type='block' device='lun'><source dev='/dev/sdz'/><target dev='sdc' bus='scsi'/></disk>
    <controller type='scsi' model='virtio-scsi'/>
    <controller type='usb' model='none'/>
    <interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/><model type='virtio'/></interface>
    <interface type='bridge'><mac address='52:54:00:00:00:02'/><source bridge='br0'/><target dev='web-tap'/><model type='virtio'/><filterref filter='clean-traffic'/></interface>
    <serial type='file'><source path='/var/log/rich.log'/><target port='0'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
    <graphics type='vnc' port='5901' autoport='no' listen='127.0.0.1' passwd='secret'/>
    <video><model type='vga'/></video>
    <hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0x0000' bus='0x00' slot='0x1f' function='0x2'/></source></hostdev>
    <memballoon model='none'/>
    <vsock model='virtio'><cid auto='no' address='4'/></vsock>
  </devices>
  <qemu:commandline><qemu:env name='RICH' value='1'/></qemu:commandline>
</domain>
`

var newRoot = Volume{Volume: "root.2", UUID: uuid.MustParse("aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"), Store: "/dev/lun1", Socket: "/run/virt-cow/root.2.sock"}

// richPlan restores vda, vdc and the volume of the metadata.
func richPlan(name string) Plan {
	return Plan{Name: name, RunDir: runDir, Keep: []string{"vde"}, Disks: map[string]Volume{
		"vda": newRoot,
		"vdc": {Volume: "data2", UUID: uuid.New(), Store: "/dev/lun2", Socket: "/run/virt-cow/data2.sock"},
		"vdx": {Volume: "later2", UUID: uuid.New(), Store: "/dev/lun3", Socket: "/run/virt-cow/later2.sock"},
	}}
}

// checkCopy checks what must be so in a copy of rich.
func checkCopy(t *testing.T, text string, r Restored) {
	t.Helper()
	text = strings.ReplaceAll(text, "'", `"`)
	for _, want := range []string{
		"<name>copy</name>", "<uuid>" + r.Domain.UUID.String() + "</uuid>", `name="uuid">` + r.Domain.UUID.String(), `name="serial">` + r.Domain.UUID.String(),
		`<source protocol="nbd" name="root.2"`, `socket="/run/virt-cow/root.2.sock"`, `<serial>` + libvirtx.Serial(newRoot.UUID) + `</serial>`,
		`name="` + libvirtx.Alias("root.2") + `"`, `<total_iops_sec>500<`, `bus="0x06"`, `error_policy="stop"`, `socket="/run/virt-cow/data2.sock"`, `dev="vdc"`,
		`volume="later2" store="/dev/lun3" target="vdx" hydrate="no"`, "/var/lib/libvirt/qemu/nvram/copy_VARS.fd", "/iso/install.iso", "/img/ro.raw", "/img/shared.raw",
		`nova:name>web<`, `<nova:disk target="vda"/>`, `<other:disk target="vdb"/>`, `filter="clean-traffic"`, `passwd="secret"`, `name="RICH" value="1"`, `slot="0x1f"`, `R&amp;D`, `<cid auto="yes"`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in the copy", want)
		}
	}
	for _, gone := range []string{richUUID.String(), "/run/virt-cow/root.sock", "left.sock", "over.qcow2", "base.raw", "/dev/vg/data", "/dev/sdz", "52:54:00:00:00:0", "5901",
		"rich_VARS", `"gone"`, "10809", "0123456789abcdef0123", "99999999-"} {
		if strings.Contains(text, gone) {
			t.Errorf("%s is still in the copy", gone)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

func TestRestoreACopy(t *testing.T) {
	r, err := Restore(rich, richPlan("copy"))
	if err != nil {
		t.Fatal(err)
	}
	checkCopy(t, r.XML, r)
	var dropped []string
	for _, d := range r.Dropped {
		dropped = append(dropped, d.Target)
	}
	if want := []string{"vdb", "vdf", "vdg", "sdc", "vdy"}; !slices.Equal(dropped, want) {
		t.Errorf("dropped %v", dropped)
	}
	if len(r.Unplaced) != 0 {
		t.Error(r.Unplaced)
	}
	want := Places{NVRAM: "/var/lib/libvirt/qemu/nvram/copy_VARS.fd", TPM: "/var/lib/libvirt/swtpm/" + r.Domain.UUID.String() + "/tpm2"}
	if !reflect.DeepEqual(r.Places, want) {
		t.Errorf("%+v", r.Places)
	}
	if shared := strings.Join(r.Shared, "; "); shared != "serial of type file at /var/log/rich.log; host device of type pci; network interface web-tap; what its <qemu:commandline> names" {
		t.Error(shared)
	}
	if !strings.Contains(r.XML, "<![CDATA[a <b> & c]]>") || !strings.Contains(r.XML, "<!-- kept by hand -->") {
		t.Error("lost what people wrote")
	}
}

// TestNothingElseChanges compares all tokens of a definition with those of a restored one that keeps all it can.
func TestNothingElseChanges(t *testing.T) {
	r, err := Restore(rich, Plan{RunDir: runDir, KeepIdentity: true, Keep: []string{"vda", "vdb", "vdc", "vde", "vdf", "vdg", "sdc"}})
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(rich, "<genid>99999999-2222-3333-4444-555555555555</genid>", "<genid/>", 1)
	from := strings.Index(want, "<virtcow:disks")
	to := strings.Index(want, "</virtcow:disks>") + len("</virtcow:disks>")
	from = strings.LastIndex(want[:from], "\n")
	want = want[:from] + want[to:]
	if a, b := tokens(t, want), tokens(t, r.XML); !reflect.DeepEqual(a, b) {
		for i := range min(len(a), len(b)) {
			if !reflect.DeepEqual(a[i], b[i]) {
				t.Fatalf("token %d: %v is %v now", i, a[i], b[i])
			}
		}
		t.Fatal(len(a), len(b))
	}
}

func tokens(t *testing.T, text string) (all []xml.Token) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		token, err := d.RawToken()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, xml.CopyToken(token))
	}
}

func TestDisksAndWhyNot(t *testing.T) {
	disks, err := Disks(rich, runDir)
	if err != nil {
		t.Fatal(err)
	}
	want := []Disk{
		{Target: "vda", Kind: Ours, Volume: "root", Plugged: true},
		{Target: "vdb", Kind: Ours, Volume: "left", Plugged: true},
		{Target: "sda", Kind: CDROM, Source: "file /iso/install.iso", Plugged: true},
		{Target: "sdb", Kind: CDROM, Plugged: true},
		{Target: "fda", Kind: Floppy, Plugged: true},
		{Target: "vdc", Kind: Foreign, Source: "block /dev/vg/data", Plugged: true},
		{Target: "vdd", Kind: ReadOnly, Source: "file /img/ro.raw", Plugged: true},
		{Target: "vde", Kind: Shareable, Source: "file /img/shared.raw", Plugged: true},
		{Target: "vdf", Kind: Foreign, Source: "file /img/over.qcow2", Plugged: true},
		{Target: "vdg", Kind: Foreign, Source: "nbd e", Plugged: true},
		{Target: "sdc", Kind: Passthrough, Source: "block /dev/sdz", Plugged: true},
		{Target: "vdx", Kind: Ours, Volume: "later"},
		{Target: "vdy", Kind: Ours, Volume: "gone"},
	}
	if !slices.Equal(disks, want) {
		t.Fatalf("%+v", disks)
	}
	for _, d := range disks {
		if (d.Why() == "") != (d.Kind == Ours) || d.Source != "" && d.Kind != CDROM && !strings.Contains(d.Why(), d.Source) {
			t.Errorf("%+v: %q", d, d.Why())
		}
		if lost := d.Kind == Foreign || d.Kind == Shareable || d.Kind == Passthrough || d.Kind == Ours; d.Harmless() == lost {
			t.Errorf("%+v: harmless %v", d, d.Harmless())
		}
	}
}

func domain(inside string) string {
	return "<domain><name>d</name><uuid>" + richUUID.String() + "</uuid>" + inside + "</domain>"
}

func TestOddDisks(t *testing.T) {
	for x, want := range map[string]Disk{
		`<disk><target dev='a'/></disk>`: {Target: "a", Kind: Empty},
		`<disk type='network'><source protocol='rbd' name='pool/image'/><target dev='a'/></disk>`: {Target: "a", Kind: Foreign, Source: "rbd pool/image"},
		`<disk type='volume'><source pool='p' volume='v'/><target dev='a'/></disk>`:               {Target: "a", Kind: Foreign, Source: "volume v of pool p"},
		`<disk type='nvme'><source type='pci'/><target dev='a'/></disk>`:                          {Target: "a", Kind: Foreign, Source: "a disk of type nvme"},
		`<disk type='file'><source file='/x'/><target dev='a'/><transient/></disk>`:               {Target: "a", Kind: Transient, Source: "file /x"},
		`<disk type='network'><source protocol='nbd'><host transport='unix' socket='/run/virt-cow/../x.sock'/></source><target dev='a'/></disk>`: {
			Target: "a", Kind: Foreign, Source: "nbd /run/virt-cow/../x.sock"},
		`<disk type='network'><source protocol='nbd'><host transport='unix' socket='/run/virt-cow/v.sock'/></source><target dev='a'/><shareable/></disk>`: {
			Target: "a", Kind: Shareable, Volume: "v"},
	} {
		want.Plugged = true
		disks, err := Disks(domain("<devices>"+x+"</devices>"), runDir)
		if err != nil || len(disks) != 1 || disks[0] != want {
			t.Errorf("%s: %+v %v", x, disks, err)
		}
	}
}

func TestPlacesOf(t *testing.T) {
	id := richUUID.String()
	for x, want := range map[string]Places{
		``:                          {},
		`<os><type>hvm</type></os>`: {},
		`<os firmware='efi'/>`:      {NVRAM: "/var/lib/libvirt/qemu/nvram/d_VARS.fd"},
		`<os><loader type='pflash'>/l</loader></os>`:                                           {NVRAM: "/var/lib/libvirt/qemu/nvram/d_VARS.fd"},
		`<os><nvram> /n.fd </nvram></os>`:                                                      {NVRAM: "/n.fd"},
		`<os><nvram template='/t'/></os>`:                                                      {NVRAM: "/var/lib/libvirt/qemu/nvram/d_VARS.fd"},
		`<os><nvram type='file'><source file='/n.fd'/></nvram></os>`:                           {NVRAM: "/n.fd"},
		`<os><nvram type='block'><source dev='/dev/n'/></nvram></os>`:                          {NVRAM: "/dev/n"},
		`<os><nvram type='network'><source protocol='iscsi'/></nvram></os>`:                    {Left: []string{"the NVRAM is neither a file nor a block device"}},
		`<os><nvram>../n.fd</nvram></os>`:                                                      {Left: []string{"the NVRAM is neither a file nor a block device"}},
		`<devices><tpm><backend type='emulator' version='1.2'/></tpm></devices>`:               {TPM: "/var/lib/libvirt/swtpm/" + id + "/tpm1.2"},
		`<devices><tpm><backend type='passthrough'/></tpm></devices>`:                          {Left: []string{"the state of a TPM of type passthrough is not libvirt's"}},
		`<devices><tpm><backend type='emulator'><source path='/t'/></backend></tpm></devices>`: {Left: []string{"the TPM's state is at a place of its own: /t"}},
		`<devices><tpm><backend type='emulator' version='2.0'><encryption secret='s'/></backend></tpm></devices>`: {
			TPM: "/var/lib/libvirt/swtpm/" + id + "/tpm2", Left: []string{"the TPM's state is encrypted with libvirt's secret s: it is of no use without"}},
	} {
		if got, err := PlacesOf(domain(x)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v %v", x, got, err)
		}
	}
}

func TestBadDefinitions(t *testing.T) {
	for _, x := range []string{"", "x", "<domain>", "<domain/>", "<network><name>n</name></network>", "<domain><name>a/b</name><uuid>" + richUUID.String() + "</uuid></domain>",
		"<domain><name>..</name><uuid>" + richUUID.String() + "</uuid></domain>", "<domain><name>d</name></domain>", "<domain><name>d</name><uuid>no</uuid></domain>",
		domain("") + domain(""), domain("<a></b>"), strings.Repeat(" ", maxDefinition+1)} {
		if _, err := Restore(x, Plan{}); !errors.Is(err, libvirtx.ErrBadXML) {
			t.Errorf("%.80q: %v", x, err)
		}
		if _, err := Disks(x, runDir); !errors.Is(err, libvirtx.ErrBadXML) {
			t.Errorf("%.80q: %v", x, err)
		}
	}
}

func TestBadPlans(t *testing.T) {
	for _, p := range []Plan{{Name: "a/b"}, {Name: " a"}, {Name: "."}, {Name: "-a"}, {Name: "a\nb"}, {Name: strings.Repeat("a", 201)},
		{Disks: map[string]Volume{"vda": {}}}, {Disks: map[string]Volume{"vda": {Volume: "v", UUID: uuid.New(), Store: "/s", Socket: "rel.sock"}}}} {
		if _, err := Restore(rich, p); err == nil {
			t.Errorf("%+v", p)
		}
	}
}

func TestARestoredDiskWithoutAPlace(t *testing.T) {
	r, err := Restore(domain(""), Plan{RunDir: runDir, Disks: map[string]Volume{"vdq": newRoot, "vda": newRoot}})
	if err != nil || !slices.Equal(r.Unplaced, []string{"vda", "vdq"}) {
		t.Fatal(r.Unplaced, err)
	}
}

// FuzzRestore: whatever the definition, what comes out is a definition of the new domain that restores to itself, in which
// no disk is left that was not restored and can be written to.
func FuzzRestore(f *testing.F) {
	f.Add(rich)
	f.Add(domain("<devices><disk><source/><target dev='vda'/></disk></devices>"))
	f.Add(domain("<os><nvram/></os><metadata/><devices><tpm/><graphics port='1'/></devices>"))
	f.Fuzz(func(t *testing.T, text string) {
		r, err := Restore(text, richPlan("copy"))
		if err != nil {
			return
		}
		d, err := parse(r.XML)
		if err != nil {
			t.Fatalf("%v: %s", err, r.XML)
		}
		if d.name != "copy" || d.uuid != r.Domain.UUID {
			t.Fatal(d.name, d.uuid)
		}
		for _, e := range d.devices("disk") {
			disk := classify(e, runDir)
			if !disk.Harmless() && disk.Target != "vde" && richPlan("").Disks[disk.Target].Volume != disk.Volume {
				t.Fatalf("%+v is still there: %s", disk, r.XML)
			}
		}
		again := richPlan("copy")
		again.KeepIdentity = true
		if r2, err := Restore(r.XML, again); err != nil || len(r2.Dropped) != 0 && len(r.Dropped) == 0 {
			t.Fatal(r2.Dropped, err)
		}
	})
}
