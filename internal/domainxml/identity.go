package domainxml

import (
	"path/filepath"
	"strings"

	"github.com/beevik/etree"
	"github.com/google/uuid"
)

// newIdentity takes away or replaces what may be there only once.
func (d definition) newIdentity(old uuid.UUID) {
	set(d.root, "uuid", d.uuid.String())
	for _, info := range children(d.root, "sysinfo") {
		for _, entry := range info.FindElements(".//entry") { // the system's UUID must be the domain's, or libvirt refuses
			if id, err := uuid.Parse(textOf(entry)); err == nil && id == old {
				entry.SetText(d.uuid.String())
			}
		}
	}
	for _, nic := range d.devices("interface") {
		remove(nic, "mac") // libvirt makes one
	}
	for _, g := range d.devices("graphics") {
		newPorts(g)
	}
	for _, v := range d.devices("vsock") {
		if cid := child(v, "cid"); cid != nil {
			cid.CreateAttr("auto", "yes")
			cid.RemoveAttr("address")
		}
	}
	for _, tpm := range d.devices("tpm") { // else two guests would have one TPM
		if backend := child(tpm, "backend"); backend != nil && backend.SelectAttrValue("type", "") == "emulator" {
			remove(backend, "source")
		}
	}
}

// newPorts has libvirt choose where a guest's screen is to be seen.
func newPorts(g *etree.Element) {
	fixed := false
	for _, name := range []string{"port", "tlsPort", "websocket"} {
		if a := g.SelectAttr(name); a != nil {
			a.Value = "-1"
			fixed = true
		}
	}
	if fixed {
		g.CreateAttr("autoport", "yes")
	}
	g.RemoveAttr("socket")
	for _, l := range children(g, "listen") {
		l.RemoveAttr("socket")
	}
}

// renameNVRAM gives the NVRAM's file the domain's name, in the folder it was in.
func (d definition) renameNVRAM(oldName string) {
	os := child(d.root, "os")
	if os == nil || d.name == oldName {
		return
	}
	e := child(os, "nvram")
	if e == nil {
		return
	}
	path := nvramPath(e)
	if !absolute(path) || e.SelectAttrValue("type", "file") != "file" {
		return
	}
	renamed := filepath.Join(filepath.Dir(path), d.name+"_VARS"+filepath.Ext(path))
	if source := child(e, "source"); source != nil {
		source.CreateAttr("file", renamed)
	} else {
		e.SetText(renamed)
	}
}

// shared says what a copy has in common with its original and what libvirt does not keep apart.
func (d definition) shared() []string {
	var shared []string
	for _, tag := range []string{"serial", "parallel", "console", "channel"} {
		for _, e := range d.devices(tag) {
			kind, path := e.SelectAttrValue("type", ""), attr(e, "source", "path")
			if path != "" && (kind == "file" || kind == "unix" || kind == "pipe") && !strings.HasPrefix(path, "/var/lib/libvirt/qemu/channel/") {
				shared = append(shared, tag+" of type "+kind+" at "+path)
			}
		}
	}
	for _, e := range d.devices("hostdev") {
		shared = append(shared, "host device of type "+e.SelectAttrValue("type", "?"))
	}
	for _, e := range d.devices("filesystem") {
		shared = append(shared, "file system of the host at "+attr(e, "source", "dir"))
	}
	for _, e := range d.devices("interface") {
		if dev := attr(e, "target", "dev"); dev != "" && !strings.HasPrefix(dev, "vnet") {
			shared = append(shared, "network interface "+dev)
		}
	}
	if os := child(d.root, "os"); os != nil && attr(os, "nvram", "type") == "block" {
		shared = append(shared, "NVRAM on "+attr(child(os, "nvram"), "source", "dev"))
	}
	for _, e := range d.root.ChildElements() {
		if e.Tag == "commandline" {
			shared = append(shared, "what its <"+e.FullTag()+"> names")
		}
	}
	return shared
}
