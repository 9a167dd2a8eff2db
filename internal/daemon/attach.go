package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/plugin"
)

// badRequest says that a request can't be right, whatever the state of things.
type badRequest struct{ error }

func bad(format string, args ...any) error { return badRequest{fmt.Errorf(format, args...)} }

var (
	targetName = regexp.MustCompile(`^(vd|sd|hd|xvd|ubd)[a-z]{1,3}$`)
	buses      = []string{"virtio", "scsi", "sata", "usb", "ide", "xen"}
)

// Attach gives a domain a volume: at once if it runs, and whenever it starts. If the guest can't have it now,
// nothing is changed.
func (d *Daemon) Attach(ctx context.Context, r api.AttachRequest) (*api.VolumeStatus, error) {
	w, err := d.wantOf(ctx, r)
	if err != nil {
		return nil, err
	}
	c, err := d.libvirt()
	if err != nil {
		return nil, err
	}
	id, err := c.Lookup(ctx, r.Domain)
	if err != nil {
		return nil, err
	}
	m := d.lockDomain(id)
	defer m.op.Unlock()
	v, err := m.look(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := v.place(&w, id.Name); err != nil {
		return nil, err
	}
	vol, err := d.claim(m, w, false)
	if err != nil {
		return nil, err
	}
	if !v.state.Active { // else it is asked when the disk is plugged in
		if err := d.ask(ctx, plugin.EventAttach, vol, id); err != nil {
			return nil, errors.Join(err, m.undo(ctx, vol))
		}
	}
	if err := setWants(ctx, c, id, append(slices.Clone(v.wants), w)); err != nil {
		return nil, errors.Join(err, m.undo(ctx, vol))
	}
	if _, err := m.give(ctx, c, v, w); errors.Is(err, libvirtx.ErrGone) || errors.Is(err, libvirtx.ErrNoAnswer) {
		// The guest may have the disk, or get it yet: what is in the metadata decides.
		m.kick()
		return nil, fmt.Errorf("%w; it is tried again, see virt-cow status", err)
	} else if err != nil {
		return nil, errors.Join(err, setWants(ctx, c, id, v.wants), m.undo(ctx, vol))
	}
	return d.volumeStatus(ctx, vol), nil
}

// undo gives back a volume that could not be attached.
func (m *domain) undo(ctx context.Context, vol *volume) error {
	err := m.d.stopVolume(ctx, vol, m, api.VolumeDetached)
	if err == nil {
		m.d.forget(m, vol)
	}
	return err
}

// wantOf checks what can be checked without libvirt.
func (d *Daemon) wantOf(ctx context.Context, r api.AttachRequest) (libvirtx.Want, error) {
	w := libvirtx.Want{Volume: r.Volume, Store: r.Store, Target: r.Target, Bus: r.Bus, Rate: r.Rate}
	if !r.Hydrate {
		w.Hydrate = "no"
	}
	switch {
	case r.Domain == "":
		return w, bad("attach: no domain given")
	case r.Store == "" && r.Volume == "":
		return w, bad("attach: give a volume of the catalogue, or a store")
	case r.Store != "" && (!filepath.IsAbs(r.Store) || filepath.Clean(r.Store) != r.Store):
		return w, bad("attach: store %q: give an absolute path", r.Store)
	case r.Target != "" && !targetName.MatchString(r.Target):
		return w, bad("attach: target %q: such as vdb or sda", r.Target)
	case r.Bus != "" && !slices.Contains(buses, r.Bus):
		return w, bad("attach: bus %q: one of %s", r.Bus, strings.Join(buses, ", "))
	case r.Rate < 0:
		return w, bad("attach: rate %d: bytes a second, 0 for no limit", r.Rate)
	}
	if w.Volume != "" {
		if err := cowfmt.ValidName(w.Volume); err != nil {
			return w, badRequest{err}
		}
	}
	if w.Store == "" {
		var err error
		w.Store, err = d.storeOf(w.Volume)
		return w, err
	}
	e, known := d.inventory.ByStore(r.Store)
	if !known {
		v, err := d.Adopt(ctx, api.AdoptRequest{Store: r.Store, Name: r.Volume})
		if err != nil {
			return w, err
		}
		e.Name, e.Store = v.Name, v.Store
	}
	w.Store = e.Store
	if w.Volume == "" {
		w.Volume = e.Name
	}
	if w.Volume != e.Name {
		return w, bad("store %s holds volume %s, not %s", r.Store, e.Name, w.Volume)
	}
	return w, nil
}

// place checks a new want against the domain and finds a target if none was asked for.
func (v view) place(w *libvirtx.Want, domain string) error {
	taken := map[string]bool{}
	for t := range v.taken {
		taken[t] = true
	}
	for _, other := range v.wants {
		if other.Volume == w.Volume {
			return fmt.Errorf("domain %s has volume %s already, at %s", domain, w.Volume, other.Target)
		}
		taken[other.Target] = true
	}
	if _, declared := v.declared[w.Volume]; declared {
		return fmt.Errorf("domain %s has volume %s already, in its definition", domain, w.Volume)
	}
	if _, has := v.disks[w.Volume]; has {
		return fmt.Errorf("domain %s still has volume %s: wait for the guest to let go of it", domain, w.Volume)
	}
	if w.Target != "" {
		if taken[w.Target] {
			return &takenError{domain: domain, target: w.Target}
		}
		return nil
	}
	p := map[string]string{"": "vd", "virtio": "vd", "ide": "hd", "xen": "xvd"}[w.Bus]
	if p == "" {
		p = "sd"
	}
	for c := 'a'; c <= 'z'; c++ {
		if t := p + string(c); !taken[t] {
			w.Target = t
			return nil
		}
	}
	return fmt.Errorf("domain %s has no free target %sa to %sz: give one with --target", domain, p, p)
}

func setWants(ctx context.Context, c libvirtx.Conn, id libvirtx.Domain, wants []libvirtx.Want) error {
	element, err := libvirtx.FormatWants(wants)
	if err != nil {
		return err
	}
	return c.SetMetadata(ctx, id, element)
}
