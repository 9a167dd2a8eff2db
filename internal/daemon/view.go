package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// view is what libvirt says of a domain at one moment.
type view struct {
	wants    []libvirtx.Want
	state    libvirtx.State
	disks    map[string]libvirtx.Disk // that QEMU has of ours, by volume; empty while the domain is off
	declared map[string]libvirtx.Disk // that the definition of a domain that is off has of ours
	taken    map[string]bool          // targets in use, by ours too
}

// errMetadata says that what a domain should have is not known. What it has is.
var errMetadata = errors.New("its metadata can't be read")

// look asks libvirt. A domain it does not know wants nothing and has nothing; the error says so.
func (m *domain) look(ctx context.Context, c libvirtx.Conn) (view, error) {
	v := view{disks: map[string]libvirtx.Disk{}, declared: map[string]libvirtx.Disk{}, taken: map[string]bool{}}
	id := m.ident()
	element, err := c.Metadata(ctx, id)
	if errors.Is(err, libvirtx.ErrTransient) { // its QEMU has just ended
		return v, fmt.Errorf("domain %s is ending: %w", id.Name, errUnfinished)
	}
	if err != nil {
		return v, err
	}
	wants, broken := libvirtx.ParseWants(element)
	v.wants = wants
	if v.state, err = c.State(ctx, id); err != nil {
		return v, err
	}
	text, err := c.XML(ctx, id)
	if err != nil {
		return v, err
	}
	// The XML of a domain that has just ended is another one, without our disks.
	if after, err := c.State(ctx, id); err != nil {
		return v, err
	} else if after.Active != v.state.Active {
		return v, fmt.Errorf("domain %s is starting or ending: %w", id.Name, errUnfinished)
	}
	disks, err := libvirtx.Disks(text)
	if err != nil {
		return v, fmt.Errorf("domain %s: %w", id.Name, err)
	}
	for _, disk := range disks {
		v.taken[disk.Target] = true
		name := m.d.volumeOfSocket(disk.Socket)
		switch {
		case name == "":
		case v.state.Active:
			v.disks[name] = disk
		default:
			v.declared[name] = disk
		}
	}
	if broken != nil {
		return v, fmt.Errorf("domain %s: %w: %w", id.Name, errMetadata, broken)
	}
	return v, nil
}

func (v view) wanted(volume string) bool {
	return slices.ContainsFunc(v.wants, func(w libvirtx.Want) bool { return w.Volume == volume })
}
