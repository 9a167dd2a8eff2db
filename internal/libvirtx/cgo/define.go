//go:build libvirt_cgo

package cgo

import (
	"context"

	"libvirt.org/go/libvirt"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

func (r *conn) Define(ctx context.Context, xml string) (libvirtx.Domain, error) {
	return call(ctx, r, "define a domain", func(c *libvirt.Connect) (x libvirtx.Domain, err error) {
		d, err := c.DomainDefineXMLFlags(xml, 0)
		if err != nil {
			return x, err
		}
		defer d.Free()
		return fromDomain(d)
	})
}

func (r *conn) Undefine(ctx context.Context, x libvirtx.Domain) error {
	version, err := r.Version(ctx)
	if err != nil {
		return err
	}
	return doOn(ctx, r, "undefine", x, func(d *libvirt.Domain) error {
		return d.UndefineFlags(libvirt.DomainUndefineFlagsValues(libvirtx.UndefineFlags(version)))
	})
}
