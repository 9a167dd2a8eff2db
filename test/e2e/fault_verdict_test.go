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
	"github.com/virt-cow/virt-cow/test/lab/records"
)

// writeTo has the guest write to a volume, if nothing writes yet.
func (c *cell) writeTo(t *testing.T, volume string) {
	t.Helper()
	if c.writer != nil {
		return
	}
	w := writer{guest: c.guest, dev: "/dev/vda", name: fmt.Sprint("w", c.seed)}
	if volume == hot {
		w.dev = c.disk(t, c.stores[hot])
	}
	w = startWriter(t, c.guest, w.dev, w.name, c.seed)
	var err error
	c.qemu, err = c.guestProcess()
	must(t, err)
	c.writer = &w
}

// written is the volume that the writer writes to.
func (c *cell) written() string {
	if c.phase.name == "hydration" {
		return hot
	}
	return boot
}

// settle waits until the guest is up, started again if it was off, and all is as it should be. A guest that went on has
// its writer go on; of one that was killed, what the writer had flushed is there, and it writes again.
func (c *cell) settle(t *testing.T) {
	t.Helper()
	died := c.up(t)
	c.converge(t)
	switch {
	case c.writer == nil:
	case died:
		c.verifyLive(t, c.written(), c.promised)
		c.writer = nil
		c.seed += 2
	default:
		c.writer.await(t, 50)
	}
	c.writeTo(t, c.written())
	c.assertNoIOErrors(t)
	c.run(t, "status") // exit code 0: all is well
	c.assertDoctor(t)
}

// up waits until the guest answers, and starts it if it is off. died says that it is not the one that had the writer.
func (c *cell) up(t *testing.T) (died bool) {
	t.Helper()
	var last error
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		state, err := c.guest.State(t.Context())
		if err == nil && state == "shut off" {
			if c.writer != nil && !died {
				c.promised = c.toldOnConsole(t, c.writer.name, c.seed)
			}
			died = true
			err = c.guest.Start(t.Context())
			t.Logf("the guest was off; started again: %v", err)
		}
		if err == nil {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			err = c.guest.WaitUp(ctx)
			cancel()
		}
		if err == nil {
			pid, err := c.guestProcess()
			must(t, err)
			if c.writer != nil && pid != c.qemu && !died {
				t.Fatalf("QEMU is process %d and was %d: who has started it?", pid, c.qemu)
			}
			return died
		}
		last = err
	}
	t.Fatalf("the guest does not come up: %v", last)
	return died
}

// verifyLive checks the records of a volume while its guest has it.
func (c *cell) verifyLive(t *testing.T, volume string, log records.Log) {
	t.Helper()
	raw := filepath.Join(c.Dir, "live.raw")
	_, err := c.Run(t.Context(), "qemu-img", "convert", "-f", "raw", "-O", "raw", "nbd+unix:///?socket=/run/virt-cow/"+volume+".sock", raw)
	must(t, err)
	f, err := os.Open(raw)
	must(t, err)
	defer f.Close()
	c.verify(t, f, log)
}

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

// assertDoctor fails if `virt-cow doctor` finds something wrong with what is ours; of the lab itself it may complain.
func (c *cell) assertDoctor(t *testing.T) {
	t.Helper()
	all := doctor(t, c.vc)
	for _, check := range []string{"libvirt", "daemon", "hook", "engines", "orphans", "exception caches", "stores"} {
		if len(all[check]) == 0 {
			t.Errorf("doctor does not look at %s", check)
		}
		for _, f := range all[check] {
			if f.Result == "problem" || f.Result == "warning" {
				t.Errorf("doctor: %+v", f)
			}
		}
	}
}

// finish gives everything back and checks what came to rest.
func (c *cell) finish(t *testing.T) {
	t.Helper()
	log := c.writer.stop(t)
	if c.wanted(t)[hot] {
		c.run(t, "detach", "g1", hot)
	}
	must(t, c.guest.PowerOff(t.Context()))
	c.converge(t)
	logs := map[string]records.Log{c.written(): log}
	if c.kept != nil {
		logs[hot] = *c.kept
	}
	for volume, log := range logs {
		c.verifyOutside(t, c.stores[volume], log)
	}
	for _, store := range c.stores {
		c.assertClosed(t, store)
		c.run(t, "store", "verify", store)
	}
	c.run(t, "status")
	c.assertDoctor(t)
	c.assertMasterUnchanged(t)
}
