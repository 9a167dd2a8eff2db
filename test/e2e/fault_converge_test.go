package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// wanted are the volumes that the domain's metadata and definition name.
func (c *cell) wanted(t *testing.T) map[string]bool {
	t.Helper()
	w, err := c.wantedNow(t.Context())
	must(t, err)
	return w
}

func (c *cell) wantedNow(ctx context.Context) (map[string]bool, error) {
	wanted := map[string]bool{boot: true}
	element, err := c.Virsh(ctx, "metadata", "g1", "--uri", libvirtx.Namespace)
	if err != nil && strings.Contains(err.Error(), "metadata not found") {
		return wanted, nil
	} else if err != nil {
		return nil, err
	}
	wants, err := libvirtx.ParseWants(element)
	for _, w := range wants {
		wanted[w.Volume] = true
	}
	return wanted, err
}

// converge waits until the host is as it should be.
func (c *cell) converge(t *testing.T) {
	t.Helper()
	err := errors.New("not looked at")
	for deadline := time.Now().Add(3 * time.Minute); err != nil; time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			s, _ := c.vc.Status(t.Context())
			text, _ := json.MarshalIndent(s, "", " ")
			t.Fatalf("the host does not come to what is wanted: %v\n%s", err, text)
		}
		err = c.differs(t.Context())
	}
}

// differs says in what the host is not as the domain wants it.
func (c *cell) differs(ctx context.Context) error {
	wanted := map[string]bool{}
	state, err := c.guest.State(ctx)
	if err != nil {
		return err
	}
	if state != "shut off" {
		if wanted, err = c.wantedNow(ctx); err != nil {
			return err
		}
	}
	volumes := slices.Sorted(maps.Keys(wanted))
	pids, err := c.served(ctx, wanted)
	return errors.Join(err, c.disksDiffer(ctx, state, volumes), c.processesDiffer(pids), c.filesDiffer(volumes), c.claimed(ctx))
}

// served has the engines of the volumes that are to be served, after it looked at what the daemon says of them.
func (c *cell) served(ctx context.Context, wanted map[string]bool) (pids []int, err error) {
	s, err := c.vc.Status(ctx)
	if err != nil {
		return nil, err
	}
	if !s.Libvirt.Connected || len(s.Domains) > 0 {
		return nil, fmt.Errorf("libvirt: %+v, domains: %+v", s.Libvirt, s.Domains)
	}
	left := maps.Clone(wanted)
	for i := range s.Volumes {
		v := &s.Volumes[i]
		switch delete(left, v.Volume); {
		case !wanted[v.Volume] && (v.PID != 0 || v.State == api.VolumeFailed || v.Held != ""):
			err = errors.Join(err, fmt.Errorf("volume %s is %s (pid %d) and nobody wants it", v.Volume, v.State, v.PID))
		case wanted[v.Volume] && (!attached(v) || v.Error != "" || v.Engine.Error != "" || v.Domain != "g1"):
			err = errors.Join(err, fmt.Errorf("volume %s of domain %s is %s: %s", v.Volume, v.Domain, v.State, v.Error))
		}
		if v.PID != 0 {
			pids = append(pids, v.PID)
		}
	}
	if len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("the daemon does not know %v", left))
	}
	return pids, err
}

// disksDiffer compares the disks that the domain has with the volumes that it is to have, each once.
func (c *cell) disksDiffer(ctx context.Context, state string, volumes []string) error {
	if state == "shut off" {
		return nil
	}
	text, err := c.Virsh(ctx, "dumpxml", "g1")
	if err != nil {
		return err
	}
	disks, err := libvirtx.Disks(text)
	var has []string
	for _, d := range disks {
		has = append(has, strings.TrimSuffix(filepath.Base(d.Socket), ".sock"))
	}
	if slices.Sort(has); !slices.Equal(has, volumes) {
		err = errors.Join(err, fmt.Errorf("the guest has disks %q and should have %q", has, volumes))
	}
	return err
}

// processesDiffer compares the engines there are with those that the daemon knows.
func (c *cell) processesDiffer(pids []int) error {
	engines, err := c.processes(program, "serve")
	if err != nil {
		return err
	}
	slices.Sort(engines)
	if slices.Sort(pids); !slices.Equal(engines, pids) {
		return fmt.Errorf("engines %v run, and the daemon knows %v", engines, pids)
	}
	return nil
}

// filesDiffer looks for what is in the run folder, and should not be or the other way round.
func (c *cell) filesDiffer(volumes []string) error {
	entries, err := os.ReadDir(c.Path("/run/virt-cow"))
	if err != nil {
		return err
	}
	should := map[string]bool{api.DaemonSocket: true, "daemon.lock": true, "lock": true, "cache": true}
	for _, v := range volumes {
		should[v+".sock"], should[v+".ctl"], should[v+api.SpecSuffix] = true, true, true
	}
	for _, e := range entries {
		if !should[e.Name()] {
			err = errors.Join(err, fmt.Errorf("%s is left over", e.Name()))
		}
		delete(should, e.Name())
	}
	if len(should) > 0 {
		err = errors.Join(err, fmt.Errorf("missing: %q", slices.Sorted(maps.Keys(should))))
	}
	caches, cerr := os.ReadDir(c.Path("/run/virt-cow/cache"))
	if len(caches) != len(volumes) {
		err = errors.Join(err, fmt.Errorf("%d exception caches for volumes %q", len(caches), volumes))
	}
	return errors.Join(err, cerr)
}

// claimed says which store a claim is left in.
func (c *cell) claimed(ctx context.Context) error {
	for volume, store := range c.stores {
		out, err := c.vc.Run(ctx, "--json", "store", "claims", store)
		if err != nil {
			return err
		}
		var claims []struct{ Raised bool }
		if err := json.Unmarshal([]byte(out), &claims); err != nil {
			return fmt.Errorf("%q: %w", out, err)
		}
		for _, cl := range claims {
			if cl.Raised {
				return fmt.Errorf("a claim is left in the store of %s: %s", volume, out)
			}
		}
	}
	return nil
}
