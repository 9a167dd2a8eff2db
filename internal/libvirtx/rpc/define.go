package rpc

import (
	"context"

	"github.com/digitalocean/go-libvirt"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

func (r *conn) Define(ctx context.Context, xml string) (libvirtx.Domain, error) {
	d, err := call(ctx, r, "define a domain", func() (libvirt.Domain, error) { return r.l.DomainDefineXMLFlags(xml, 0) })
	if err != nil {
		return libvirtx.Domain{}, err
	}
	return fromDomain(d), nil
}

func (r *conn) Undefine(ctx context.Context, d libvirtx.Domain) error {
	version, err := r.Version(ctx)
	if err != nil {
		return err
	}
	return do(ctx, r, "undefine "+d.Name, func() error {
		return r.l.DomainUndefineFlags(toDomain(d), libvirt.DomainUndefineFlagsValues(libvirtx.UndefineFlags(version)))
	})
}
