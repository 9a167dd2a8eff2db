package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/plugin"
)

// Prepare has the volumes of a domain served whose QEMU is about to start: the hook waits for it, and libvirtd for
// the hook, with the domain locked. So nothing here asks libvirt, or takes the domain's lock, under which others
// may be asking it.
func (d *Daemon) Prepare(ctx context.Context, r api.PrepareRequest) (*api.PrepareAnswer, error) {
	id, err := uuid.Parse(r.UUID)
	if err != nil || r.Domain == "" {
		return nil, bad("prepare: a domain has a name and a UUID, not %q, %q", r.Domain, r.UUID)
	}
	dom := libvirtx.Domain{Name: r.Domain, UUID: id}
	if r.Operation == "migrate" {
		return &api.PrepareAnswer{}, d.receiveAll(ctx, dom, r)
	}
	errs := make([]error, len(r.Volumes))
	var wg sync.WaitGroup
	for i, name := range r.Volumes {
		wg.Go(func() { errs[i] = d.prepare(ctx, dom, name) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		d.unprepare(dom)
		return nil, err
	}
	d.log.Info().Str("domain", r.Domain).Strs("volumes", r.Volumes).Str("operation", r.Operation).Msg("served for a domain that is about to start")
	return &api.PrepareAnswer{}, nil
}

// prepare has one volume served for a domain.
func (d *Daemon) prepare(ctx context.Context, dom libvirtx.Domain, name string) error {
	w, err := d.wantNamed(name)
	if err != nil {
		return err
	}
	if err := d.endGiven(ctx, name, dom, false); err != nil {
		return err
	}
	d.mu.Lock()
	v, err := d.claimLocked(d.domainFor(dom), w, true) // at once: a domain with a volume is not forgotten
	if err == nil {
		v.announce()
	}
	d.mu.Unlock()
	if err != nil {
		return err
	}
	if err := d.ask(ctx, plugin.EventAttach, v, dom); err != nil {
		return err
	}
	d.setStarting(v)
	if err := d.startVolume(ctx, v); err != nil {
		d.setState(v, api.VolumeFailed, err)
		return aboutVolume(name, err)
	}
	_, err = d.alone(ctx, v) // QEMU has not connected yet: whoever has is another
	return err
}

// aboutVolume has an error say which volume it is about, unless it begins with that.
func aboutVolume(name string, err error) error {
	if strings.HasPrefix(err.Error(), "volume "+name) {
		return err
	}
	return fmt.Errorf("volume %s: %w", name, err)
}

// wantNamed is how a volume that a disk names by its socket is served. Where its store is the catalogue says, unless it
// is open: the metadata of a domain that is off may say what was once, or what somebody else's volume is to be kept from.
func (d *Daemon) wantNamed(name string) (libvirtx.Want, error) {
	if err := cowfmt.ValidName(name); err != nil {
		return libvirtx.Want{}, badRequest{err}
	}
	w, open := libvirtx.Want{Volume: name}, false
	d.mu.Lock()
	if v := d.volumes[name]; v != nil && v.want.Store != "" {
		w, open = v.want, v.engine != nil
	}
	d.mu.Unlock()
	if open {
		return w, nil
	}
	var err error
	w.Store, err = d.storeOf(name)
	return w, err
}

// unprepare lets go of what is served for a start that did not come about.
func (d *Daemon) unprepare(dom libvirtx.Domain) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.domainFor(dom)
	for _, v := range d.volumes {
		if v.domain == m {
			v.prepared = time.Time{}
		}
	}
	m.kick()
}

// Notice takes what the hook tells of a domain as a reason to look at it.
func (d *Daemon) Notice(_ context.Context, r api.NoticeRequest) (*struct{}, error) {
	id, err := uuid.Parse(r.UUID)
	if err != nil {
		return nil, bad("notice: domain %q: UUID %q: %w", r.Domain, r.UUID, err)
	}
	dom := libvirtx.Domain{Name: r.Domain, UUID: id}
	switch r.Operation {
	case "stopped", "release":
		d.unprepare(dom)
	default:
		d.poke(dom)
	}
	return &struct{}{}, nil
}
