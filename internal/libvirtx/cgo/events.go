//go:build libvirt_cgo

package cgo

import (
	"github.com/google/uuid"
	"libvirt.org/go/libvirt"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// subscribe asks for the events. The callbacks run on the library's event loop, which must not wait.
func (r *conn) subscribe() error {
	for _, register := range []func() (int, error){
		func() (int, error) {
			return r.main.DomainEventLifecycleRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, e *libvirt.DomainEventLifecycle) {
				r.deliver(d, func(x libvirtx.Domain) libvirtx.Event {
					return libvirtx.Lifecycle{Domain: x, What: libvirtx.What(e.Event), Detail: int32(e.Detail)}
				})
			})
		},
		func() (int, error) {
			return r.main.DomainEventDeviceAddedRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, e *libvirt.DomainEventDeviceAdded) {
				r.deliver(d, func(x libvirtx.Domain) libvirtx.Event {
					return libvirtx.DeviceAdded{Domain: x, Alias: e.DevAlias}
				})
			})
		},
		func() (int, error) {
			return r.main.DomainEventDeviceRemovedRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, e *libvirt.DomainEventDeviceRemoved) {
				r.deliver(d, func(x libvirtx.Domain) libvirtx.Event {
					return libvirtx.DeviceRemoved{Domain: x, Alias: e.DevAlias}
				})
			})
		},
		func() (int, error) {
			return r.main.DomainEventDeviceRemovalFailedRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, e *libvirt.DomainEventDeviceRemovalFailed) {
				r.deliver(d, func(x libvirtx.Domain) libvirtx.Event {
					return libvirtx.DeviceRemovalFailed{Domain: x, Alias: e.DevAlias}
				})
			})
		},
		func() (int, error) {
			return r.main.DomainEventMetadataChangeRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, e *libvirt.DomainEventMetadataChange) {
				r.deliver(d, func(x libvirtx.Domain) libvirtx.Event {
					return libvirtx.MetadataChanged{Domain: x, Namespace: e.NSURI}
				})
			})
		},
		func() (int, error) {
			return r.main.DomainEventIOErrorReasonRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, e *libvirt.DomainEventIOErrorReason) {
				r.deliver(d, func(x libvirtx.Domain) libvirtx.Event {
					return libvirtx.IOError{Domain: x, Alias: e.DevAlias, Reason: e.Reason}
				})
			})
		},
	} {
		id, err := register()
		if err != nil {
			return err
		}
		r.callbacks = append(r.callbacks, id)
	}
	return nil
}

// deliver passes an event on with its domain, which is good only during the callback.
func (r *conn) deliver(d *libvirt.Domain, event func(libvirtx.Domain) libvirtx.Event) {
	if x, err := fromDomain(d); err == nil {
		r.Deliver(event(x))
	}
}

// fromDomain reads what the handle itself holds.
func fromDomain(d *libvirt.Domain) (x libvirtx.Domain, err error) {
	if x.Name, err = d.GetName(); err != nil {
		return x, err
	}
	b, err := d.GetUUID()
	if err != nil {
		return x, err
	}
	x.UUID, err = uuid.FromBytes(b)
	return x, err
}
