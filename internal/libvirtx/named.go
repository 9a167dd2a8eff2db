package libvirtx

import (
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"libvirt.org/go/libvirtxml"
)

// Named is the domain of an XML and the volumes it names.
func Named(domainXML []byte, runDir string) (Domain, []string, error) {
	var x libvirtxml.Domain
	if err := x.Unmarshal(string(domainXML)); err != nil {
		return Domain{}, nil, err
	}
	id, err := uuid.Parse(x.UUID)
	if err != nil {
		return Domain{}, nil, err
	}
	disks, err := Disks(string(domainXML))
	if err != nil {
		return Domain{}, nil, err
	}
	var v []string
	for _, d := range disks {
		if d.Socket == "" || filepath.Dir(filepath.Clean(d.Socket)) != filepath.Clean(runDir) {
			continue
		}
		if n, ok := strings.CutSuffix(filepath.Base(d.Socket), ".sock"); ok {
			v = append(v, n)
		}
	}
	return Domain{x.Name, id}, v, nil
}
