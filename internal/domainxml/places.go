package domainxml

import (
	"path/filepath"

	"github.com/beevik/etree"
)

// Where libvirt's system daemon keeps what belongs to a domain.
const (
	nvramFolder = "/var/lib/libvirt/qemu/nvram"
	tpmFolder   = "/var/lib/libvirt/swtpm"
)

// Places are where a domain's state is that is on no disk of it. "" is none. The paths are clean and absolute.
type Places struct {
	NVRAM string // file, or block device, with the firmware's variables
	TPM   string // folder with the emulated TPM's state
	// Left says what is there and can't be kept, and why.
	Left []string
}

// PlacesOf are a domain's. What is there need not exist yet: a domain that never ran has neither.
func PlacesOf(text string) (Places, error) {
	d, err := parse(text)
	if err != nil {
		return Places{}, err
	}
	return d.places(), nil
}

func (d definition) places() Places {
	var p Places
	p.NVRAM, p.Left = d.nvram()
	for _, tpm := range d.devices("tpm") {
		backend := child(tpm, "backend")
		if backend == nil {
			continue
		}
		switch kind := backend.SelectAttrValue("type", ""); {
		case kind != "emulator":
			p.Left = append(p.Left, "the state of a TPM of type "+kind+" is not libvirt's")
		case has(backend, "source"):
			p.Left = append(p.Left, "the TPM's state is at a place of its own: "+attr(backend, "source", "path"))
		default:
			p.TPM = filepath.Join(tpmFolder, d.uuid.String(), tpmVersion(backend))
			if has(backend, "encryption") {
				p.Left = append(p.Left, "the TPM's state is encrypted with libvirt's secret "+attr(backend, "encryption", "secret")+": it is of no use without")
			}
		}
	}
	return p
}

// tpmVersion is the name of the folder of a TPM's state. Without a version libvirt makes a TPM 2.0.
func tpmVersion(backend *etree.Element) string {
	if backend.SelectAttrValue("version", "") == "1.2" {
		return "tpm1.2"
	}
	return "tpm2"
}

// nvram is the file of the firmware's variables.
func (d definition) nvram() (path string, left []string) {
	os := child(d.root, "os")
	if os == nil {
		return "", nil
	}
	e := child(os, "nvram")
	if e == nil {
		// libvirt fills it in when it defines or starts the domain.
		if os.SelectAttrValue("firmware", "") == "efi" || attr(os, "loader", "type") == "pflash" {
			return defaultNVRAM(d.name), nil
		}
		return "", nil
	}
	path = nvramPath(e)
	switch {
	case path == "" && e.SelectAttrValue("type", "file") == "file" && !has(e, "source"):
		return defaultNVRAM(d.name), nil
	case !absolute(path):
		return "", []string{"the NVRAM is neither a file nor a block device"}
	}
	return path, nil
}

// nvramPath is the file or block device of an <nvram>, "" if it says none.
func nvramPath(e *etree.Element) string {
	switch e.SelectAttrValue("type", "") {
	case "": // as before libvirt 8.5
		return textOf(e)
	case "file":
		return attr(e, "source", "file")
	case "block":
		return attr(e, "source", "dev")
	}
	return ""
}

func defaultNVRAM(name string) string { return filepath.Join(nvramFolder, name+"_VARS.fd") }
