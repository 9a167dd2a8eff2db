package domainxml

import (
	"fmt"
	"slices"
	"strings"

	"github.com/beevik/etree"
	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// Volume is what a disk of a restored domain is to be.
type Volume struct {
	Volume string
	UUID   uuid.UUID // of the volume
	Store  string    // its address, for the metadata element
	Socket string    // of its engine, absolute path
}

// Plan says what becomes of a definition.
type Plan struct {
	RunDir string            // where the sockets of the definition's volumes are
	Disks  map[string]Volume // by target: the disks that were restored
	Keep   []string          // targets of other disks that stay in the definition

	Name         string    // "" for the old one
	KeepIdentity bool      // UUID, MAC addresses and whatever else must be there once on a host or in a network
	UUID         uuid.UUID // of the domain without KeepIdentity, zero for any
}

// Restored is a definition for libvirt to define, and what is to be known of it.
type Restored struct {
	XML    string
	Domain libvirtx.Domain
	Places Places // of the restored domain
	// Dropped are disks that are no longer in the definition: they were not restored, and what is on them is still the
	// other domain's. Unplaced are targets that were restored and that the definition has no disk for.
	Dropped  []Disk
	Unplaced []string
	// Shared says in words what the definition has in common with the one it was made of.
	Shared []string
}

// Restore makes of a domain's stored definition (Conn.InactiveXML) that of a restored one. Disks that were restored are
// pointed at their new volumes. Others are taken out unless nothing can be written to them, as CD-ROMs: two domains
// with one disk destroy it. Everything else stays, byte for byte where XML lets it, but for what must differ:
//
//   - the generation ID is always new: the guest went back in time and has to be told;
//   - without KeepIdentity UUID (also in sysinfo), MAC addresses, vsock's CID, the ports of VNC and SPICE and the TPM's
//     own place are new;
//   - the NVRAM's file is named as the domain is.
//
// Errors wrap libvirtx.ErrBadXML if the definition is none.
func Restore(text string, plan Plan) (Restored, error) {
	d, err := parse(text)
	if err != nil {
		return Restored{}, err
	}
	if err := plan.check(); err != nil {
		return Restored{}, err
	}
	old := d
	if plan.Name != "" {
		d.name = plan.Name
		set(d.root, "name", d.name)
	}
	if !plan.KeepIdentity {
		if d.uuid = plan.UUID; d.uuid == uuid.Nil {
			d.uuid = uuid.New()
		}
		d.newIdentity(old.uuid)
	}
	d.root.RemoveAttr("id") // of a domain that runs
	for _, e := range children(d.root, "genid") {
		e.SetText("") // libvirt makes one
	}
	r := Restored{Domain: libvirtx.Domain{Name: d.name, UUID: d.uuid}}
	placed := map[string]bool{}
	d.disks(plan, &r, placed)
	d.wants(plan, &r, placed)
	for target := range plan.Disks {
		if !placed[target] {
			r.Unplaced = append(r.Unplaced, target)
		}
	}
	slices.Sort(r.Unplaced)
	d.renameNVRAM(old.name)
	r.Places = d.places()
	if !plan.KeepIdentity {
		r.Shared = d.shared()
	}
	r.XML, err = d.doc.WriteToString()
	return r, err
}

func (p Plan) check() error {
	if p.Name != "" {
		if err := CheckName(p.Name); err != nil {
			return err
		}
	}
	for target, v := range p.Disks {
		if v.Volume == "" || v.UUID == uuid.Nil || v.Store == "" || !absolute(v.Socket) {
			return fmt.Errorf("disk %s: a restored disk needs volume, UUID, store and socket: it has %+v", target, v)
		}
	}
	return nil
}

// set sets the text of a child, which is made if there is none.
func set(e *etree.Element, tag, text string) {
	c := child(e, tag)
	if c == nil {
		c = e.CreateElement(tag)
	}
	c.SetText(text)
}

// disks points each disk that was restored at its volume and takes out those that another domain still has.
func (d definition) disks(plan Plan, r *Restored, placed map[string]bool) {
	for _, e := range d.devices("disk") {
		disk := classify(e, plan.RunDir)
		v, restored := plan.Disks[disk.Target]
		switch {
		case restored:
			point(e, v)
			placed[disk.Target] = true
		case disk.Kind == CDROM || disk.Kind == Floppy || disk.Kind == Empty || slices.Contains(plan.Keep, disk.Target):
		case disk.Kind == ReadOnly && disk.Volume == "":
		default:
			r.Dropped = append(r.Dropped, disk)
			removeWithSpace(e)
		}
	}
}

// point makes a <disk> that of a volume. What it says of driver, bus, address and tuning stays.
func point(e *etree.Element, v Volume) {
	e.CreateAttr("type", "network")
	remove(e, "backingStore", "mirror", "auth")
	driver := child(e, "driver")
	if driver == nil {
		driver = e.CreateElement("driver")
		driver.CreateAttr("name", "qemu")
	}
	driver.CreateAttr("type", "raw")
	source := child(e, "source")
	if source == nil || source.SelectAttrValue("protocol", "") != "nbd" {
		remove(e, "source")
		source = e.CreateElement("source")
	}
	source.RemoveAttr("index")
	source.CreateAttr("protocol", "nbd")
	source.CreateAttr("name", v.Volume)
	remove(source, "host")
	host := etree.NewElement("host")
	host.CreateAttr("transport", "unix")
	host.CreateAttr("socket", v.Socket)
	source.InsertChildAt(0, host)
	if has(e, "serial") {
		set(e, "serial", libvirtx.Serial(v.UUID))
	}
	if alias := child(e, "alias"); alias != nil && strings.HasPrefix(alias.SelectAttrValue("name", ""), libvirtx.Alias("")) {
		alias.CreateAttr("name", libvirtx.Alias(v.Volume))
	}
}

// wants has virt-cow's metadata element speak of the new volumes, and of no others.
func (d definition) wants(plan Plan, r *Restored, placed map[string]bool) {
	metadata := child(d.root, "metadata")
	if metadata == nil {
		return
	}
	for _, disks := range metadata.ChildElements() {
		if disks.Tag != "disks" || disks.NamespaceURI() != libvirtx.Namespace {
			continue
		}
		for _, e := range disks.ChildElements() {
			target := e.SelectAttrValue("target", "")
			v, restored := plan.Disks[target]
			switch {
			case e.Tag != "disk":
			case restored:
				e.CreateAttr("volume", v.Volume)
				e.CreateAttr("store", v.Store)
				placed[target] = true
			default:
				r.Dropped = append(r.Dropped, Disk{Target: target, Kind: Ours, Volume: e.SelectAttrValue("volume", "")})
				removeWithSpace(e)
			}
		}
		if len(disks.ChildElements()) == 0 {
			removeWithSpace(disks)
		}
	}
}
