// Package domainxml is about whole definitions of domains, as a backup keeps them: which disks a backup holds and why it
// holds no others, what belongs to a domain beside its disks and where libvirt keeps it, and how a definition becomes that of
// a restored domain.
//
// What is not changed stays: unknown elements, other programs' metadata, comments, namespaces. So definitions are edited
// as trees of XML and never become types that know some elements and drop the others.
package domainxml

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/beevik/etree"
	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// maxDefinition is the size of the largest definition that is read, in bytes. libvirt itself takes no more over its protocol
// than a few times that.
const maxDefinition = 4 << 20

// definition is a domain's definition that is being read or edited.
type definition struct {
	doc  *etree.Document
	root *etree.Element
	name string
	uuid uuid.UUID
}

// parse reads a definition. Errors wrap libvirtx.ErrBadXML.
func parse(text string) (definition, error) {
	var d definition
	bad := func(format string, args ...any) (definition, error) {
		return d, fmt.Errorf("%w: %w", libvirtx.ErrBadXML, fmt.Errorf(format, args...))
	}
	if len(text) > maxDefinition {
		return bad("it has %d bytes, more than %d", len(text), maxDefinition)
	}
	d.doc = etree.NewDocument()
	d.doc.ReadSettings = etree.ReadSettings{PreserveCData: true}
	if err := d.doc.ReadFromString(text); err != nil {
		return bad("%w", err)
	}
	if d.root = d.doc.Root(); d.root == nil || d.root.FullTag() != "domain" || len(d.doc.ChildElements()) != 1 || textOf(&d.doc.Element) != "" {
		return bad("it is not one <domain>")
	}
	if d.name = childText(d.root, "name"); d.name == "" {
		return bad("it has no <name>")
	}
	if err := CheckName(d.name); err != nil {
		return bad("%w", err)
	}
	id, err := uuid.Parse(childText(d.root, "uuid"))
	if err != nil {
		return bad("its <uuid>: %w", err)
	}
	d.uuid = id
	return d, nil
}

// CheckName says what is wrong with the name of a domain. It becomes part of the names of files.
func CheckName(name string) error {
	const longest = 200 // bytes: libvirt makes names of files of it, of 255 at most
	switch {
	case name == "", name != strings.TrimSpace(name), len(name) > longest, strings.HasPrefix(name, "."), strings.HasPrefix(name, "-"),
		strings.ContainsFunc(name, func(r rune) bool { return r == '/' || r < ' ' || r == 0x7f || r == '\uFFFD' }):
		return fmt.Errorf("%q is no name for a domain: at most %d bytes, no / in it, no control characters, no . or - at its beginning", name, longest)
	}
	return nil
}

// devices are the domain's devices of this element's name.
func (d definition) devices(tag string) []*etree.Element {
	if devices := child(d.root, "devices"); devices != nil {
		return children(devices, tag)
	}
	return nil
}

// children are the children of this name that are libvirt's own: those of other namespaces have prefixes.
func children(e *etree.Element, tag string) []*etree.Element {
	return slices.DeleteFunc(e.SelectElements(tag), func(c *etree.Element) bool { return c.Space != "" })
}

// child is the first of children, nil if there is none.
func child(e *etree.Element, tag string) *etree.Element {
	if all := children(e, tag); len(all) > 0 {
		return all[0]
	}
	return nil
}

// childText is the trimmed text of a child, "" if there is none.
func childText(e *etree.Element, tag string) string {
	if c := child(e, tag); c != nil {
		return textOf(c)
	}
	return ""
}

// attr is the attribute of a child, "" if there is none.
func attr(e *etree.Element, tag, name string) string {
	if c := child(e, tag); c != nil {
		return c.SelectAttrValue(name, "")
	}
	return ""
}

// has says that there is a child.
func has(e *etree.Element, tag string) bool { return child(e, tag) != nil }

// remove removes all children of these names.
func remove(e *etree.Element, tags ...string) {
	for _, tag := range tags {
		for _, c := range children(e, tag) {
			removeWithSpace(c)
		}
	}
}

// removeWithSpace removes an element and the white space before it.
func removeWithSpace(e *etree.Element) {
	parent, i := e.Parent(), e.Index()
	if i > 0 {
		if space, ok := parent.Child[i-1].(*etree.CharData); ok && space.IsWhitespace() {
			parent.RemoveChildAt(i - 1)
		}
	}
	parent.RemoveChild(e)
}

// absolute says that a path of a definition can be used: it is clean and not relative.
func absolute(path string) bool { return filepath.IsAbs(path) && filepath.Clean(path) == path }

// textOf is the trimmed text of an element.
func textOf(e *etree.Element) string { return strings.TrimSpace(e.Text()) }
