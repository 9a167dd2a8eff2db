package libvirtx

import (
	"strings"

	"github.com/google/uuid"
	"libvirt.org/go/libvirtxml"
)

// reconnectSince is the libvirt version that knows <reconnect> for NBD; older ones drop it without a word.
const reconnectSince = 9002000

// reconnectDelay is how long QEMU holds requests while the engine process is being started again.
const reconnectDelay = "30"

// Spec is a disk to attach.
type Spec struct {
	Volume string
	UUID   uuid.UUID
	Socket string // of the engine, absolute path
	Target string
	Bus    string // "" for virtio
}

// DiskXML is the disk's XML for a libvirt of this version. Requests are never answered with an error of ours
// to the guest: QEMU stops it, and goes on once the volume is served again.
func DiskXML(s Spec, version uint64) (string, error) {
	d := libvirtxml.DomainDisk{
		Device: "disk",
		Driver: &libvirtxml.DomainDiskDriver{
			Name: "qemu", Type: "raw", Cache: "none", Discard: "unmap", ErrorPolicy: "stop", RErrorPolicy: "stop",
		},
		Source: &libvirtxml.DomainDiskSource{Network: &libvirtxml.DomainDiskSourceNetwork{
			Protocol: "nbd",
			Name:     s.Volume, // libvirt 9.0 loses the I/O error events of a source without a name
			Hosts:    []libvirtxml.DomainDiskSourceHost{{Transport: "unix", Socket: s.Socket}},
		}},
		Target: &libvirtxml.DomainDiskTarget{Dev: s.Target, Bus: s.Bus},
		Serial: Serial(s.UUID),
		Alias:  &libvirtxml.DomainAlias{Name: Alias(s.Volume)},
	}
	if s.Bus == "" {
		d.Target.Bus = "virtio"
	}
	if version >= reconnectSince {
		d.Source.Network.Reconnect = &libvirtxml.DomainDiskSourceNetworkReconnect{Delay: reconnectDelay}
	}
	return d.Marshal()
}

// Alias is the user alias of a volume's disk. libvirt drops one with anything but A-Z a-z 0-9 _ - in it
// without a word, so the dot a volume's name may have is escaped.
func Alias(volume string) string {
	return "ua-virt-cow-" + strings.NewReplacer("_", "__", ".", "_d").Replace(volume)
}

// Serial is the serial number a guest sees: what of the UUID fits in the 20 bytes virtio-blk has.
func Serial(id uuid.UUID) string { return strings.ReplaceAll(id.String(), "-", "")[:20] }

// Disk is a disk a domain has.
type Disk struct {
	Target string
	Socket string // of its NBD server, clean and under /run; "" for any other kind
	Source string // file or block device, "" for any other kind
	Alias  string // "" for one without, as in a stored definition

	Pool, Volume string // the storage pool that has it, and its name there; "" for any other kind
}

// Disks reads the disks of a domain from its XML, ours and others.
func Disks(domainXML string) ([]Disk, error) {
	var disks []Disk
	_, err := walk([]byte(domainXML), func(x libvirtxml.DomainDisk) {
		disk := Disk{Socket: nbdSocket(x), Source: localSource(x)}
		if x.Source != nil && x.Source.Volume != nil {
			disk.Pool, disk.Volume = x.Source.Volume.Pool, x.Source.Volume.Volume
		}
		if x.Target != nil {
			disk.Target = x.Target.Dev
		}
		if x.Alias != nil {
			disk.Alias = x.Alias.Name
		}
		disks = append(disks, disk)
	})
	if err != nil {
		return nil, err
	}
	return disks, nil
}

func nbdSocket(x libvirtxml.DomainDisk) string {
	if x.Source == nil || x.Source.Network == nil || x.Source.Network.Protocol != "nbd" {
		return ""
	}
	for _, h := range x.Source.Network.Hosts {
		if h.Transport == "unix" {
			return cleanPath(h.Socket)
		}
	}
	return ""
}

// localSource is the file or block device behind a disk.
func localSource(x libvirtxml.DomainDisk) string {
	switch {
	case x.Source == nil:
	case x.Source.File != nil:
		return x.Source.File.File
	case x.Source.Block != nil:
		return x.Source.Block.Dev
	}
	return ""
}
