package hook

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// migrate has the daemon open the volumes of a domain that is to come here, beside the host that has them, and returns nil once
// all are. Nothing is let through without its word: a domain that came all the same would find no disks, or stale ones.
func (c Config) migrate(ctx context.Context, dom libvirtx.Domain, disks []libvirtx.NamedDisk, xml []byte) error {
	volumes := names(disks)
	r := api.PrepareRequest{Domain: dom.Name, UUID: dom.UUID.String(), Operation: "migrate", Volumes: volumes}
	wants, err := libvirtx.WantsIn(xml)
	if err != nil {
		return veto("domain %s: %w", dom.Name, err)
	}
	for _, disk := range disks {
		p := api.PrepareDisk{Volume: disk.Volume, Serial: disk.Serial}
		if at := slices.IndexFunc(wants, func(w libvirtx.Want) bool { return w.Volume == disk.Volume }); at >= 0 {
			p.Store = wants[at].Store
		}
		r.Disks = append(r.Disks, p)
	}
	patience := c.Timeout - min(engineTimeout, c.Timeout/4) // as a start has
	asking, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for graceEnds := time.Now().Add(min(restartGrace, c.Timeout/4)); ; {
		err := api.NewDaemon(c.RunDir).Prepare(asking, r)
		var refused *api.RemoteError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &refused):
			return veto("domain %s stays where it is: %w", dom.Name, err)
		case errors.Is(ctx.Err(), context.Canceled):
			return veto("domain %s stays where it is: interrupted while waiting for the virt-cow daemon", dom.Name)
		case asking.Err() != nil || !errors.Is(err, api.ErrNotRunning) || time.Now().After(graceEnds):
			return veto("domain %s stays where it is: its volumes %s: %w", dom.Name, strings.Join(volumes, ", "), explain(err, patience))
		}
		select {
		case <-asking.Done():
		case <-time.After(retryEvery):
		}
	}
}

func names(disks []libvirtx.NamedDisk) []string {
	list := make([]string, len(disks))
	for i, disk := range disks {
		list[i] = disk.Volume
	}
	return list
}
