package rpc

import (
	"context"

	"github.com/digitalocean/go-libvirt"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// subscribed are the events we read: the key is libvirt's, the function makes ours of it, or nil.
var subscribed = map[libvirt.DomainEventID]func(any) libvirtx.Event{
	libvirt.DomainEventIDLifecycle: func(v any) libvirtx.Event {
		m, ok := v.(*libvirt.DomainEventCallbackLifecycleMsg)
		if !ok {
			return nil
		}
		return libvirtx.Lifecycle{Domain: fromDomain(m.Msg.Dom), What: libvirtx.What(m.Msg.Event), Detail: m.Msg.Detail}
	},
	libvirt.DomainEventIDDeviceRemoved: func(v any) libvirtx.Event {
		m, ok := v.(*libvirt.DomainEventCallbackDeviceRemovedMsg)
		if !ok {
			return nil
		}
		return libvirtx.DeviceRemoved{Domain: fromDomain(m.Msg.Dom), Alias: m.Msg.DevAlias}
	},
	libvirt.DomainEventIDDeviceRemovalFailed: func(v any) libvirtx.Event {
		m, ok := v.(*libvirt.DomainEventCallbackDeviceRemovalFailedMsg)
		if !ok {
			return nil
		}
		return libvirtx.DeviceRemovalFailed{Domain: fromDomain(m.Dom), Alias: m.DevAlias}
	},
	libvirt.DomainEventIDMetadataChange: func(v any) libvirtx.Event {
		m, ok := v.(*libvirt.DomainEventCallbackMetadataChangeMsg)
		if !ok {
			return nil
		}
		e := libvirtx.MetadataChanged{Domain: fromDomain(m.Dom)}
		if len(m.Nsuri) > 0 {
			e.Namespace = m.Nsuri[0]
		}
		return e
	},
	libvirt.DomainEventIDIoErrorReason: func(v any) libvirtx.Event {
		m, ok := v.(*libvirt.DomainEventCallbackIOErrorReasonMsg)
		if !ok {
			return nil
		}
		return libvirtx.IOError{Domain: fromDomain(m.Msg.Dom), Alias: m.Msg.DevAlias, Reason: m.Msg.Reason}
	},
}

// subscribe asks for the events. The subscriptions end with the connection and never before: ending one can
// lock the library up. What comes is always read.
func (r *conn) subscribe(ctx context.Context) error {
	for id, convert := range subscribed {
		var ch <-chan any
		err := r.call(ctx, "subscribe to events", func() (err error) {
			ch, err = r.l.SubscribeEvents(context.Background(), id, nil)
			return err
		})
		if err != nil {
			return err
		}
		r.pumps.Go(func() {
			for v := range ch {
				e := convert(v)
				if e == nil {
					continue
				}
				select {
				case r.events <- e:
				case <-r.socket.gone: // nobody reads any more; go on draining
				}
			}
		})
	}
	return nil
}
