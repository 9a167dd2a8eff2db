package rpc

import (
	"context"
	"errors"
	"fmt"

	"github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

func (r *conn) Version(ctx context.Context) (uint64, error) {
	return call(ctx, r, "version", r.l.ConnectGetLibVersion)
}

func (r *conn) Domains(ctx context.Context) ([]libvirtx.Domain, error) {
	list, err := call(ctx, r, "list domains", func() ([]libvirt.Domain, error) {
		list, _, err := r.l.ConnectListAllDomains(1, libvirt.ConnectListDomainsActive|libvirt.ConnectListDomainsInactive)
		return list, err
	})
	if err != nil {
		return nil, err
	}
	out := make([]libvirtx.Domain, len(list))
	for i, d := range list {
		out[i] = fromDomain(d)
	}
	return out, nil
}

func (r *conn) Lookup(ctx context.Context, nameOrUUID string) (libvirtx.Domain, error) {
	what := "look up domain " + nameOrUUID
	d, err := call(ctx, r, what, func() (libvirt.Domain, error) { return r.l.DomainLookupByName(nameOrUUID) })
	if id, perr := uuid.Parse(nameOrUUID); errors.Is(err, libvirtx.ErrNoDomain) && perr == nil {
		d, err = call(ctx, r, what, func() (libvirt.Domain, error) { return r.l.DomainLookupByUUID(libvirt.UUID(id)) })
	}
	if err != nil {
		return libvirtx.Domain{}, err
	}
	return fromDomain(d), nil
}

func (r *conn) State(ctx context.Context, d libvirtx.Domain) (libvirtx.State, error) {
	return call(ctx, r, "state of "+d.Name, func() (libvirtx.State, error) {
		state, reason, err := r.l.DomainGetState(toDomain(d), 0)
		return libvirtx.StateOf(int(state), int(reason)), err
	})
}

func (r *conn) XML(ctx context.Context, d libvirtx.Domain) (string, error) {
	return call(ctx, r, "XML of "+d.Name, func() (string, error) { return r.l.DomainGetXMLDesc(toDomain(d), 0) })
}

func (r *conn) InactiveXML(ctx context.Context, d libvirtx.Domain) (string, error) {
	return call(ctx, r, "stored XML of "+d.Name, func() (string, error) {
		return r.l.DomainGetXMLDesc(toDomain(d), libvirt.DomainXMLInactive)
	})
}

func (r *conn) SecretXML(ctx context.Context, d libvirtx.Domain) (string, error) {
	return call(ctx, r, "stored XML of "+d.Name, func() (string, error) {
		return r.l.DomainGetXMLDesc(toDomain(d), libvirt.DomainXMLInactive|libvirt.DomainXMLSecure)
	})
}

func (r *conn) Leaving(ctx context.Context, d libvirtx.Domain) (bool, error) {
	return call(ctx, r, "job of "+d.Name, func() (bool, error) {
		kind, params, err := r.l.DomainGetJobStats(toDomain(d), 0)
		if err != nil {
			return false, err
		}
		for _, p := range params {
			if operation, ok := p.Value.I.(int32); ok && p.Field == "operation" {
				return libvirtx.LeavingBy(int(kind), int(operation), true), nil
			}
		}
		return libvirtx.LeavingBy(int(kind), 0, false), nil
	})
}

func (r *conn) Saved(ctx context.Context, d libvirtx.Domain) (bool, error) {
	return call(ctx, r, "saved memory of "+d.Name, func() (bool, error) {
		if saved, err := r.l.DomainHasManagedSaveImage(toDomain(d), 0); err != nil || saved == 1 {
			return err == nil, err
		}
		state, reason, err := r.l.DomainGetState(toDomain(d), 0)
		return libvirtx.SavedBy(int(state), int(reason)), err
	})
}

func (r *conn) Metadata(ctx context.Context, d libvirtx.Domain) (string, error) {
	xml, err := call(ctx, r, "metadata of "+d.Name, func() (string, error) {
		return r.l.DomainGetMetadata(toDomain(d), int32(libvirt.DomainMetadataElement),
			libvirt.OptString{libvirtx.Namespace}, libvirt.DomainAffectCurrent)
	})
	if errors.Is(err, libvirtx.ErrNoMetadata) {
		return "", nil
	}
	return xml, err
}

func (r *conn) SetMetadata(ctx context.Context, d libvirtx.Domain, xml string) error {
	metadata := libvirt.OptString{}
	if xml != "" {
		metadata = libvirt.OptString{xml}
	}
	return libvirtx.SetEverywhere(func() (libvirtx.Places, error) {
		return call(ctx, r, "state of "+d.Name, func() (p libvirtx.Places, err error) {
			active, err := r.l.DomainIsActive(toDomain(d))
			if err != nil {
				return p, err
			}
			persistent, err := r.l.DomainIsPersistent(toDomain(d))
			return libvirtx.Places{Live: active == 1, Stored: persistent == 1}, err
		})
	}, func(p libvirtx.Places) error {
		var flags libvirt.DomainModificationImpact
		if p.Live {
			flags |= libvirt.DomainAffectLive
		}
		if p.Stored {
			flags |= libvirt.DomainAffectConfig
		}
		return do(ctx, r, "set metadata of "+d.Name, func() error {
			return r.l.DomainSetMetadata(toDomain(d), int32(libvirt.DomainMetadataElement), metadata,
				libvirt.OptString{libvirtx.Prefix}, libvirt.OptString{libvirtx.Namespace}, flags)
		})
	})
}

func (r *conn) Attach(ctx context.Context, d libvirtx.Domain, xml string) error {
	if err := libvirtx.CheckBus(ctx, r, d, xml); err != nil {
		return err
	}
	return do(ctx, r, "attach disk to "+d.Name, func() error {
		return r.l.DomainAttachDeviceFlags(toDomain(d), xml, uint32(libvirt.DomainAffectLive))
	})
}

func (r *conn) Detach(ctx context.Context, d libvirtx.Domain, alias string) error {
	return do(ctx, r, fmt.Sprintf("detach %s from %s", alias, d.Name), func() error {
		return r.l.DomainDetachDeviceAlias(toDomain(d), alias, uint32(libvirt.DomainAffectLive))
	})
}

func (r *conn) Resume(ctx context.Context, d libvirtx.Domain) error {
	return do(ctx, r, "resume "+d.Name, func() error { return r.l.DomainResume(toDomain(d)) })
}
