//go:build libvirt_cgo

package cgo

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"libvirt.org/go/libvirt"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// on runs a call on a domain, whose handle the library wants to be looked up.
func on[T any](ctx context.Context, r *conn, what string, x libvirtx.Domain, f func(*libvirt.Domain) (T, error)) (T, error) {
	return call(ctx, r, what+" "+x.Name, func(c *libvirt.Connect) (none T, err error) {
		d, err := c.LookupDomainByUUID(x.UUID[:])
		if err != nil {
			return none, err
		}
		defer d.Free()
		return f(d)
	})
}

// doOn is on for what returns nothing.
func doOn(ctx context.Context, r *conn, what string, x libvirtx.Domain, f func(*libvirt.Domain) error) error {
	_, err := on(ctx, r, what, x, func(d *libvirt.Domain) (none struct{}, err error) { return none, f(d) })
	return err
}

func (r *conn) Version(ctx context.Context) (uint64, error) {
	return call(ctx, r, "version", func(c *libvirt.Connect) (uint64, error) {
		v, err := c.GetLibVersion()
		return uint64(v), err
	})
}

func (r *conn) Domains(ctx context.Context) ([]libvirtx.Domain, error) {
	return call(ctx, r, "list domains", func(c *libvirt.Connect) (out []libvirtx.Domain, err error) {
		list, err := c.ListAllDomains(libvirt.CONNECT_LIST_DOMAINS_ACTIVE | libvirt.CONNECT_LIST_DOMAINS_INACTIVE)
		for i := range list {
			x, derr := fromDomain(&list[i])
			out, err = append(out, x), errors.Join(err, derr)
			list[i].Free()
		}
		return out, err
	})
}

func (r *conn) Lookup(ctx context.Context, nameOrUUID string) (libvirtx.Domain, error) {
	lookup := func(f func(*libvirt.Connect) (*libvirt.Domain, error)) (libvirtx.Domain, error) {
		return call(ctx, r, "look up domain "+nameOrUUID, func(c *libvirt.Connect) (x libvirtx.Domain, err error) {
			d, err := f(c)
			if err != nil {
				return x, err
			}
			defer d.Free()
			return fromDomain(d)
		})
	}
	x, err := lookup(func(c *libvirt.Connect) (*libvirt.Domain, error) { return c.LookupDomainByName(nameOrUUID) })
	if id, perr := uuid.Parse(nameOrUUID); errors.Is(err, libvirtx.ErrNoDomain) && perr == nil {
		x, err = lookup(func(c *libvirt.Connect) (*libvirt.Domain, error) { return c.LookupDomainByUUID(id[:]) })
	}
	return x, err
}

func (r *conn) State(ctx context.Context, x libvirtx.Domain) (libvirtx.State, error) {
	return on(ctx, r, "state of", x, func(d *libvirt.Domain) (libvirtx.State, error) {
		state, reason, err := d.GetState()
		return libvirtx.StateOf(int(state), reason), err
	})
}

func (r *conn) XML(ctx context.Context, x libvirtx.Domain) (string, error) {
	return on(ctx, r, "XML of", x, func(d *libvirt.Domain) (string, error) { return d.GetXMLDesc(0) })
}

func (r *conn) InactiveXML(ctx context.Context, x libvirtx.Domain) (string, error) {
	return on(ctx, r, "stored XML of", x, func(d *libvirt.Domain) (string, error) { return d.GetXMLDesc(libvirt.DOMAIN_XML_INACTIVE) })
}

func (r *conn) SecretXML(ctx context.Context, x libvirtx.Domain) (string, error) {
	return on(ctx, r, "stored XML of", x, func(d *libvirt.Domain) (string, error) {
		return d.GetXMLDesc(libvirt.DOMAIN_XML_INACTIVE | libvirt.DOMAIN_XML_SECURE)
	})
}

func (r *conn) Leaving(ctx context.Context, x libvirtx.Domain) (bool, error) {
	return on(ctx, r, "job of", x, func(d *libvirt.Domain) (bool, error) {
		job, err := d.GetJobStats(0)
		if err != nil {
			return false, err
		}
		return libvirtx.LeavingBy(int(job.Type), int(job.Operation), job.OperationSet), nil
	})
}

func (r *conn) Saved(ctx context.Context, x libvirtx.Domain) (bool, error) {
	return on(ctx, r, "saved memory of", x, func(d *libvirt.Domain) (bool, error) {
		if saved, err := d.HasManagedSaveImage(0); err != nil || saved {
			return saved, err
		}
		state, reason, err := d.GetState()
		return libvirtx.SavedBy(int(state), reason), err
	})
}

func (r *conn) Metadata(ctx context.Context, x libvirtx.Domain) (string, error) {
	xml, err := on(ctx, r, "metadata of", x, func(d *libvirt.Domain) (string, error) {
		return d.GetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, libvirtx.Namespace, libvirt.DOMAIN_AFFECT_CURRENT)
	})
	if errors.Is(err, libvirtx.ErrNoMetadata) {
		return "", nil
	}
	return xml, err
}

func (r *conn) SetMetadata(ctx context.Context, x libvirtx.Domain, xml string) error {
	return libvirtx.SetEverywhere(func() (libvirtx.Places, error) {
		return on(ctx, r, "state of", x, func(d *libvirt.Domain) (p libvirtx.Places, err error) {
			if p.Live, err = d.IsActive(); err == nil {
				p.Stored, err = d.IsPersistent()
			}
			return p, err
		})
	}, func(p libvirtx.Places) error {
		var flags libvirt.DomainModificationImpact
		if p.Live {
			flags |= libvirt.DOMAIN_AFFECT_LIVE
		}
		if p.Stored {
			flags |= libvirt.DOMAIN_AFFECT_CONFIG
		}
		return doOn(ctx, r, "set metadata of", x, func(d *libvirt.Domain) error {
			return d.SetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, xml, libvirtx.Prefix, libvirtx.Namespace, flags)
		})
	})
}

func (r *conn) Attach(ctx context.Context, x libvirtx.Domain, xml string) error {
	if err := libvirtx.CheckBus(ctx, r, x, xml); err != nil {
		return err
	}
	return doOn(ctx, r, "attach disk to", x, func(d *libvirt.Domain) error {
		return d.AttachDeviceFlags(xml, libvirt.DOMAIN_DEVICE_MODIFY_LIVE)
	})
}

func (r *conn) Detach(ctx context.Context, x libvirtx.Domain, alias string) error {
	return doOn(ctx, r, fmt.Sprintf("detach %s from", alias), x, func(d *libvirt.Domain) error {
		return d.DetachDeviceAlias(alias, libvirt.DOMAIN_DEVICE_MODIFY_LIVE)
	})
}

func (r *conn) Resume(ctx context.Context, x libvirtx.Domain) error {
	return doOn(ctx, r, "resume", x, func(d *libvirt.Domain) error { return d.Resume() })
}
