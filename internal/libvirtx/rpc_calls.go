package libvirtx

import (
	"context"
	"errors"
	"fmt"

	"github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"
)

func (r *rpc) Version(ctx context.Context) (v uint64, err error) {
	err = r.call(ctx, "version", func() error {
		v, err = r.l.ConnectGetLibVersion()
		return err
	})
	return v, err
}

func (r *rpc) Domains(ctx context.Context) ([]Domain, error) {
	var list []libvirt.Domain
	err := r.call(ctx, "list domains", func() (err error) {
		list, _, err = r.l.ConnectListAllDomains(1, libvirt.ConnectListDomainsActive|libvirt.ConnectListDomainsInactive)
		return err
	})
	if err != nil {
		return nil, err
	}
	out := make([]Domain, len(list))
	for i, d := range list {
		out[i] = fromDomain(d)
	}
	return out, nil
}

func (r *rpc) Lookup(ctx context.Context, nameOrUUID string) (Domain, error) {
	var d libvirt.Domain
	err := r.call(ctx, "look up domain "+nameOrUUID, func() (err error) {
		d, err = r.l.DomainLookupByName(nameOrUUID)
		return err
	})
	if id, perr := uuid.Parse(nameOrUUID); errors.Is(err, ErrNoDomain) && perr == nil {
		err = r.call(ctx, "look up domain "+nameOrUUID, func() (err error) {
			d, err = r.l.DomainLookupByUUID(libvirt.UUID(id))
			return err
		})
	}
	return fromDomain(d), err
}

func (r *rpc) State(ctx context.Context, d Domain) (State, error) {
	var state, reason int32
	err := r.call(ctx, "state of "+d.Name, func() (err error) {
		state, reason, err = r.l.DomainGetState(toDomain(d), 0)
		return err
	})
	if err != nil {
		return State{}, err
	}
	s := State{}
	switch libvirt.DomainState(state) {
	case libvirt.DomainRunning, libvirt.DomainBlocked, libvirt.DomainShutdown, libvirt.DomainPmsuspended:
		s.Active = true
	case libvirt.DomainPaused:
		s.Active, s.Paused = true, true
		s.IOError = libvirt.DomainPausedReason(reason) == libvirt.DomainPausedIoerror
	}
	return s, nil
}

func (r *rpc) XML(ctx context.Context, d Domain) (xml string, err error) {
	err = r.call(ctx, "XML of "+d.Name, func() error {
		xml, err = r.l.DomainGetXMLDesc(toDomain(d), 0)
		return err
	})
	return xml, err
}

func (r *rpc) Metadata(ctx context.Context, d Domain) (xml string, err error) {
	err = r.call(ctx, "metadata of "+d.Name, func() error {
		xml, err = r.l.DomainGetMetadata(toDomain(d), int32(libvirt.DomainMetadataElement),
			libvirt.OptString{Namespace}, libvirt.DomainAffectCurrent)
		return err
	})
	var le libvirt.Error
	if errors.As(err, &le) && libvirt.ErrorNumber(le.Code) == libvirt.ErrNoDomainMetadata {
		return "", nil
	}
	return xml, err
}

func (r *rpc) SetMetadata(ctx context.Context, d Domain, xml string) error {
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
			libvirt.OptString{prefix}, libvirt.OptString{Namespace}, flags)
	})
}

func (r *rpc) Attach(ctx context.Context, d Domain, xml string) error {
	return r.call(ctx, "attach disk to "+d.Name, func() error {
		return r.l.DomainAttachDeviceFlags(toDomain(d), xml, uint32(libvirt.DomainAffectLive))
	})
}

func (r *rpc) Detach(ctx context.Context, d Domain, alias string) error {
	return r.call(ctx, fmt.Sprintf("detach %s from %s", alias, d.Name), func() error {
		return r.l.DomainDetachDeviceAlias(toDomain(d), alias, uint32(libvirt.DomainAffectLive))
	})
}

func (r *rpc) Resume(ctx context.Context, d Domain) error {
	return r.call(ctx, "resume "+d.Name, func() error { return r.l.DomainResume(toDomain(d)) })
}
