package rpc

import (
	"context"
	"errors"
	"fmt"

	"github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

func (r *conn) Version(ctx context.Context) (v uint64, err error) {
	err = r.call(ctx, "version", func() error {
		v, err = r.l.ConnectGetLibVersion()
		return err
	})
	return v, err
}

func (r *conn) Domains(ctx context.Context) ([]libvirtx.Domain, error) {
	var list []libvirt.Domain
	err := r.call(ctx, "list domains", func() (err error) {
		list, _, err = r.l.ConnectListAllDomains(1, libvirt.ConnectListDomainsActive|libvirt.ConnectListDomainsInactive)
		return err
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
	var d libvirt.Domain
	err := r.call(ctx, "look up domain "+nameOrUUID, func() (err error) {
		d, err = r.l.DomainLookupByName(nameOrUUID)
		return err
	})
	if id, perr := uuid.Parse(nameOrUUID); errors.Is(err, libvirtx.ErrNoDomain) && perr == nil {
		err = r.call(ctx, "look up domain "+nameOrUUID, func() (err error) {
			d, err = r.l.DomainLookupByUUID(libvirt.UUID(id))
			return err
		})
	}
	return fromDomain(d), err
}

func (r *conn) State(ctx context.Context, d libvirtx.Domain) (libvirtx.State, error) {
	var state, reason int32
	err := r.call(ctx, "state of "+d.Name, func() (err error) {
		state, reason, err = r.l.DomainGetState(toDomain(d), 0)
		return err
	})
	if err != nil {
		return libvirtx.State{}, err
	}
	s := libvirtx.State{}
	switch libvirt.DomainState(state) {
	case libvirt.DomainRunning, libvirt.DomainBlocked, libvirt.DomainShutdown, libvirt.DomainPmsuspended:
		s.Active = true
	case libvirt.DomainPaused:
		s.Active, s.Paused = true, true
		s.IOError = libvirt.DomainPausedReason(reason) == libvirt.DomainPausedIoerror
	}
	return s, nil
}

func (r *conn) XML(ctx context.Context, d libvirtx.Domain) (xml string, err error) {
	err = r.call(ctx, "XML of "+d.Name, func() error {
		xml, err = r.l.DomainGetXMLDesc(toDomain(d), 0)
		return err
	})
	return xml, err
}

func (r *conn) Metadata(ctx context.Context, d libvirtx.Domain) (xml string, err error) {
	err = r.call(ctx, "metadata of "+d.Name, func() error {
		xml, err = r.l.DomainGetMetadata(toDomain(d), int32(libvirt.DomainMetadataElement),
			libvirt.OptString{libvirtx.Namespace}, libvirt.DomainAffectCurrent)
		return err
	})
	var le libvirt.Error
	if errors.As(err, &le) && libvirt.ErrorNumber(le.Code) == libvirt.ErrNoDomainMetadata {
		return "", nil
	}
	return xml, err
}

func (r *conn) SetMetadata(ctx context.Context, d libvirtx.Domain, xml string) error {
	var active, persistent int32
	err := r.call(ctx, "state of "+d.Name, func() (err error) {
		if active, err = r.l.DomainIsActive(toDomain(d)); err == nil {
			persistent, err = r.l.DomainIsPersistent(toDomain(d))
		}
		return err
	})
	if err != nil {
		return err
	}
	var flags libvirt.DomainModificationImpact
	if active != 0 {
		flags |= libvirt.DomainAffectLive
	}
	if persistent != 0 {
		flags |= libvirt.DomainAffectConfig
	}
	metadata := libvirt.OptString{}
	if xml != "" {
		metadata = libvirt.OptString{xml}
	}
	return r.call(ctx, "set metadata of "+d.Name, func() error {
		return r.l.DomainSetMetadata(toDomain(d), int32(libvirt.DomainMetadataElement), metadata,
			libvirt.OptString{libvirtx.Prefix}, libvirt.OptString{libvirtx.Namespace}, flags)
	})
}

func (r *conn) Attach(ctx context.Context, d libvirtx.Domain, xml string) error {
	return r.call(ctx, "attach disk to "+d.Name, func() error {
		return r.l.DomainAttachDeviceFlags(toDomain(d), xml, uint32(libvirt.DomainAffectLive))
	})
}

func (r *conn) Detach(ctx context.Context, d libvirtx.Domain, alias string) error {
	return r.call(ctx, fmt.Sprintf("detach %s from %s", alias, d.Name), func() error {
		return r.l.DomainDetachDeviceAlias(toDomain(d), alias, uint32(libvirt.DomainAffectLive))
	})
}

func (r *conn) Resume(ctx context.Context, d libvirtx.Domain) error {
	return r.call(ctx, "resume "+d.Name, func() error { return r.l.DomainResume(toDomain(d)) })
}
