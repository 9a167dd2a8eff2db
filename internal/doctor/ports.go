package doctor

import (
	"path/filepath"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// ports counts the places of a domain where a virtio disk can be plugged in while it runs.
type ports struct {
	q35   bool // others have room on their PCI bus
	roots int
	taken int
}

func (p ports) free() int { return p.roots - p.taken }

// portsOf reads a running domain's XML: there every device has its address.
func portsOf(domainXML string) (ports, error) {
	var d libvirtxml.Domain
	if err := d.Unmarshal(domainXML); err != nil {
		return ports{}, err
	}
	var p ports
	if d.OS != nil && d.OS.Type != nil {
		p.q35 = strings.Contains(d.OS.Type.Machine, "q35")
	}
	if d.Devices == nil {
		return p, nil
	}
	root := map[uint]bool{} // buses behind root ports
	for _, c := range d.Devices.Controllers {
		if c.Type == "pci" && c.Model == "pcie-root-port" && c.Index != nil {
			root[*c.Index] = true
		}
	}
	p.roots = len(root)
	taken := map[uint]bool{}
	for _, bus := range busesIn(domainXML) {
		if root[bus] {
			taken[bus] = true
		}
	}
	p.taken = len(taken)
	return p, nil
}

// within says whether a path is directly in a folder.
func within(path, dir string) bool { return path != "" && filepath.Dir(path) == filepath.Clean(dir) }
