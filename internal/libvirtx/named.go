package libvirtx

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"
	"libvirt.org/go/libvirtxml"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// ErrBadXML says that a text is no domain XML.
var ErrBadXML = errors.New("not a domain's XML")

// Named reads a domain's name and UUID from its XML, and the volumes it names: those whose sockets in runDir are
// sources of its disks, each once, in the order of the disks. A disk of ours in the metadata element alone is not
// among them. Of XML that speaks of no NBD disk only the beginning is read, so a foreign domain costs microseconds.
// The UUID is zero if the XML has none. Errors wrap ErrBadXML.
func Named(domainXML []byte, runDir string) (Domain, []string, error) {
	var volumes []string
	var disk func(libvirtxml.DomainDisk)
	// A reference such as &#110; could spell nbd; libvirt writes none.
	if bytes.Contains(domainXML, []byte("nbd")) || bytes.Contains(domainXML, []byte("&#")) {
		disk = func(x libvirtxml.DomainDisk) {
			if v := VolumeOf(nbdSocket(x), runDir); v != "" && !slices.Contains(volumes, v) {
				volumes = append(volumes, v)
			}
		}
	}
	d, err := walk(domainXML, disk)
	if err != nil {
		return Domain{}, nil, err
	}
	return d, volumes, nil
}

// VolumeOf is the volume whose engine serves this socket in runDir, "" if it is none of ours.
func VolumeOf(socket, runDir string) string {
	if !filepath.IsAbs(socket) {
		return ""
	}
	dir, file := filepath.Split(cleanPath(socket))
	name, ok := strings.CutSuffix(file, ".sock")
	if !ok || filepath.Clean(dir) != cleanPath(runDir) || cowfmt.ValidName(name) != nil {
		return ""
	}
	return name
}

// cleanPath gives two names of one socket the same form: /var/run is a link to /run wherever libvirt runs.
func cleanPath(path string) string {
	if path == "" {
		return ""
	}
	path = filepath.Clean(path)
	if rest, ok := strings.CutPrefix(path, "/var/run"); ok && (rest == "" || rest[0] == '/') {
		return "/run" + rest
	}
	return path
}

// walk reads a domain's XML piece by piece: what libvirtxml makes nothing of elsewhere in it does no harm. It ends as
// soon as it knows name and UUID if disk is nil.
func walk(domainXML []byte, disk func(libvirtxml.DomainDisk)) (Domain, error) {
	var d Domain
	dec := xml.NewDecoder(bytes.NewReader(domainXML))
	var path []string
	for {
		token, err := dec.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			return d, fmt.Errorf("%w: %w", ErrBadXML, err)
		}
		switch t := token.(type) {
		case xml.StartElement:
			path = append(path, t.Name.Local)
			read, err := element(dec, t, strings.Join(path, "/"), &d, disk)
			if err != nil {
				return d, fmt.Errorf("%w: %s: %w", ErrBadXML, strings.Join(path, "/"), err)
			}
			if read {
				path = path[:len(path)-1]
			}
		case xml.EndElement:
			path = path[:len(path)-1]
		}
		if disk == nil && d.Name != "" && d.UUID != uuid.Nil {
			return d, nil
		}
	}
	if d.Name == "" {
		return d, fmt.Errorf("%w: it has no <domain> with a <name>", ErrBadXML)
	}
	return d, nil
}

// element takes what is wanted of the element at path; read says that it went to its end.
func element(dec *xml.Decoder, t xml.StartElement, path string, d *Domain, disk func(libvirtxml.DomainDisk)) (read bool, err error) {
	switch path {
	case "domain", "domain/devices":
		return false, nil
	case "domain/name":
		return true, dec.DecodeElement(&d.Name, &t)
	case "domain/uuid":
		var text string
		if err := dec.DecodeElement(&text, &t); err != nil {
			return true, err
		}
		d.UUID, err = uuid.Parse(strings.TrimSpace(text))
		return true, err
	case "domain/devices/disk":
		if disk != nil {
			var x libvirtxml.DomainDisk
			if err := dec.DecodeElement(&x, &t); err != nil {
				return true, err
			}
			disk(x)
			return true, nil
		}
	}
	if !strings.Contains(path, "/") {
		return false, fmt.Errorf("it begins with <%s>", t.Name.Local)
	}
	return true, dec.Skip()
}
