package domainxml

import (
	"cmp"
	"fmt"

	"github.com/beevik/etree"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// Kind says what a disk is to a backup.
type Kind string

// The kinds. A backup holds disks of kind Ours.
const (
	Ours        Kind = "ours"        // a volume
	Foreign     Kind = "foreign"     // a disk that virt-cow knows nothing of
	CDROM       Kind = "cdrom"       // a drive, with a medium or without
	Floppy      Kind = "floppy"      // the same
	Passthrough Kind = "passthrough" // device='lun': the guest speaks SCSI to it, past everybody
	ReadOnly    Kind = "readonly"
	Shareable   Kind = "shareable"
	Transient   Kind = "transient"
	Empty       Kind = "empty" // a disk without a source
)

// Disk is one disk of a domain.
type Disk struct {
	Target string // such as vda
	Kind   Kind
	Volume string // whose it is; "" if it is none of ours
	Source string // what it is otherwise, in words; "" for nothing
	// Plugged is false for a volume that stands in the metadata element only: the daemon plugs it in when the domain runs.
	Plugged bool
}

// Why says why a backup does not hold the disk, "" if it does.
func (d Disk) Why() string {
	source := cmp.Or(d.Source, "volume "+d.Volume)
	switch d.Kind {
	case Ours:
		return ""
	case CDROM:
		return "a CD-ROM drive"
	case Floppy:
		return "a floppy drive"
	case Passthrough:
		return source + " is passed through to the guest (device='lun'): nobody sees what is written to it"
	case ReadOnly:
		return source + " is read-only"
	case Shareable:
		return source + " is shareable: other guests may write to it, and this one's cut is not theirs"
	case Transient:
		return source + " is transient: what is written to it is gone when the guest ends"
	case Empty:
		return "it has no source"
	}
	return source + " is no volume of virt-cow: `virt-cow volume adopt` makes it one"
}

// Harmless says that leaving the disk out loses nothing that the guest wrote.
func (d Disk) Harmless() bool {
	switch d.Kind {
	case CDROM, Floppy, ReadOnly, Transient, Empty:
		return true
	}
	return false
}

// Disks are the disks of a domain: those of its definition in their order, then those its metadata element speaks of
// and that are not plugged in. Sockets of volumes are in runDir. Of a running domain give the live definition.
func Disks(text, runDir string) ([]Disk, error) {
	d, err := parse(text)
	if err != nil {
		return nil, err
	}
	plugged := map[string]bool{}
	var disks []Disk
	for _, e := range d.devices("disk") {
		disk := classify(e, runDir)
		plugged[disk.Volume] = true
		disks = append(disks, disk)
	}
	wants, err := libvirtx.WantsIn([]byte(text))
	if err != nil {
		return nil, err
	}
	for _, w := range wants {
		if !plugged[w.Volume] {
			disks = append(disks, Disk{Target: w.Target, Kind: Ours, Volume: w.Volume})
		}
	}
	return disks, nil
}

// classify judges a <disk>.
func classify(e *etree.Element, runDir string) Disk {
	d := Disk{Target: attr(e, "target", "dev"), Volume: volume(e, runDir), Plugged: true}
	if d.Volume == "" {
		d.Source = source(e)
	}
	switch device := e.SelectAttrValue("device", "disk"); {
	case device == "cdrom":
		d.Kind = CDROM
	case device == "floppy":
		d.Kind = Floppy
	case device != "disk":
		d.Kind = Passthrough
	case d.Volume == "" && d.Source == "":
		d.Kind = Empty
	case has(e, "readonly"):
		d.Kind = ReadOnly
	case has(e, "shareable"):
		d.Kind = Shareable
	case has(e, "transient"):
		d.Kind = Transient
	case d.Volume == "":
		d.Kind = Foreign
	default:
		d.Kind = Ours
	}
	return d
}

// volume is the volume whose socket is the source of a <disk>.
func volume(e *etree.Element, runDir string) string {
	s := child(e, "source")
	if s == nil || e.SelectAttrValue("type", "") != "network" || s.SelectAttrValue("protocol", "") != "nbd" {
		return ""
	}
	for _, h := range children(s, "host") {
		if h.SelectAttrValue("transport", "") == "unix" {
			return libvirtx.VolumeOf(h.SelectAttrValue("socket", ""), runDir)
		}
	}
	return ""
}

// source is what is behind a <disk>, for people.
func source(e *etree.Element) string {
	kind, s := e.SelectAttrValue("type", "file"), child(e, "source")
	if s == nil {
		return ""
	}
	switch kind {
	case "file", "dir":
		return named(kind, s.SelectAttrValue(kind, ""))
	case "block":
		return named(kind, s.SelectAttrValue("dev", ""))
	case "volume":
		return fmt.Sprintf("volume %s of pool %s", s.SelectAttrValue("volume", ""), s.SelectAttrValue("pool", ""))
	case "network":
		return named(s.SelectAttrValue("protocol", "network"), cmp.Or(s.SelectAttrValue("name", ""), attr(s, "host", "name"), attr(s, "host", "socket"), "without a name"))
	}
	return "a disk of type " + kind
}

func named(kind, name string) string {
	if name == "" {
		return ""
	}
	return kind + " " + name
}
