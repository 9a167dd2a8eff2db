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

// NamedDisk is a disk of ours in a domain's XML.
type NamedDisk struct {
	Volume string
	Serial string // "" if it has none
}

// Named reads a domain's name and UUID from its XML, and its disks with volumes: those whose sources are sockets in runDir,
// each volume once, in the order of the disks. A disk of ours in the metadata element alone is not
// among them. Of XML that speaks of no NBD disk only the beginning is read, so a foreign domain costs microseconds.
// The UUID is zero if the XML has none. Errors wrap ErrBadXML.
func Named(domainXML []byte, runDir string) (Domain, []NamedDisk, error) {
	var disks []NamedDisk
	var disk func(libvirtxml.DomainDisk)
	// A reference such as &#110; could spell nbd; libvirt writes none.
	if bytes.Contains(domainXML, []byte("nbd")) || bytes.Contains(domainXML, []byte("&#")) {
		disk = func(x libvirtxml.DomainDisk) {
			v := VolumeOf(nbdSocket(x), runDir)
			if v != "" && !slices.ContainsFunc(disks, func(n NamedDisk) bool { return n.Volume == v }) {
				disks = append(disks, NamedDisk{Volume: v, Serial: strings.TrimSpace(x.Serial)})
			}
		}
	}
	d, err := walk(domainXML, disk)
	if err != nil {
		return Domain{}, nil, err
	}
	return d, disks, nil
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

// WantsIn reads the virt-cow element out of a domain's whole XML; none is no disks.
func WantsIn(domainXML []byte) ([]Want, error) {
	if !bytes.Contains(domainXML, []byte(Namespace)) {
		return nil, nil
	}
	dec := xml.NewDecoder(bytes.NewReader(domainXML))
	for {
		token, err := dec.Token()
		if err == io.EOF {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBadXML, err)
		}
		start, is := token.(xml.StartElement)
		if !is || start.Name.Local != "disks" || start.Name.Space != Namespace {
			continue
		}
		var w wants
		if err := dec.DecodeElement(&w, &start); err != nil {
			return nil, fmt.Errorf("%w: metadata element %s disks: %w", ErrBadXML, Prefix, err)
		}
		return w.Disks, checkWants(w.Disks)
	}
}
