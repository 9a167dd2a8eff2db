package rpc

import (
	"context"

	"github.com/digitalocean/go-libvirt"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// subscribed are the kinds of events that event knows.
var subscribed = []libvirt.DomainEventID{
	libvirt.DomainEventIDLifecycle,
	libvirt.DomainEventIDDeviceAdded,
	libvirt.DomainEventIDDeviceRemoved,
	libvirt.DomainEventIDDeviceRemovalFailed,
	libvirt.DomainEventIDMetadataChange,
	libvirt.DomainEventIDIoErrorReason,
}

// event makes ours of the library's, nil of what is none of them.
func event(v any) libvirtx.Event {
	switch m := v.(type) {
	case *libvirt.DomainEventCallbackLifecycleMsg:
		return libvirtx.Lifecycle{Domain: fromDomain(m.Msg.Dom), What: libvirtx.What(m.Msg.Event), Detail: m.Msg.Detail}
	case *libvirt.DomainEventCallbackDeviceAddedMsg:
		return libvirtx.DeviceAdded{Domain: fromDomain(m.Dom), Alias: m.DevAlias}
	case *libvirt.DomainEventCallbackDeviceRemovedMsg:
		return libvirtx.DeviceRemoved{Domain: fromDomain(m.Msg.Dom), Alias: m.Msg.DevAlias}
	case *libvirt.DomainEventCallbackDeviceRemovalFailedMsg:
		return libvirtx.DeviceRemovalFailed{Domain: fromDomain(m.Dom), Alias: m.DevAlias}
	case *libvirt.DomainEventCallbackMetadataChangeMsg:
		e := libvirtx.MetadataChanged{Domain: fromDomain(m.Dom)}
		if len(m.Nsuri) > 0 {
			e.Namespace = m.Nsuri[0]
		}
		return e
	case *libvirt.DomainEventCallbackIOErrorReasonMsg:
		return libvirtx.IOError{Domain: fromDomain(m.Msg.Dom), Alias: m.Msg.DevAlias, Reason: m.Msg.Reason}
	}
	return nil
}

// subscribe asks for the events. The subscriptions end with the connection and never before: ending one can
// lock the library up. What comes is always read.
func (r *conn) subscribe(ctx context.Context, l *libvirt.Libvirt) error {
	for _, id := range subscribed {
		ch, err := call(ctx, r, "subscribe to events", func() (<-chan any, error) {
			return l.SubscribeEvents(context.Background(), id, nil)
		})
		if err != nil {
			return err
		}
		go func() {
			for v := range ch {
				if e := event(v); e != nil {
					r.Deliver(e)
				}
			}
		}()
	}
	return nil
}
