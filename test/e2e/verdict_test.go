package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/test/lab"
	"github.com/virt-cow/virt-cow/test/lab/records"
)

// crossing is a site whose guest writes to all its volumes, and reads back what it wrote, while faults happen to its
// migrations.
type crossing struct {
	*site
	volumes  []string
	slots    int                     // of each volume that are written
	checkers map[string]*lab.Checker // by volume, of the guest as it runs now
	held     map[string][]uint64     // what their slots held when the checkers began, nil for nothing
	boots    int                     // of the guest
	stays    int                     // how often it had begun to move when it booted
	panics   int                     // of its kernel, that were survived
}

// newCrossing makes a site of hosts (nil for two) with volumes made with these flags. The guest is defined on all hosts, and runs
// and writes on the first.
func newCrossing(t *testing.T, hosts, flags []string, volumes ...string) *crossing {
	t.Helper()
	return newCrossingOf(t, siteConfig{hosts: hosts, volumes: volumes, made: clones(flags...)})
}

// fewSlots: a guest under emulation takes its time to read them all.
const fewSlots = 1024

func newCrossingOf(t *testing.T, sc siteConfig) *crossing {
	t.Helper()
	c := &crossing{site: newSiteOf(t, sc), volumes: sc.volumes, slots: cmp.Or(sc.slots, fewSlots)}
	xml := c.beds[0].virsh(t, "dumpxml", "--inactive", "g1")
	for _, b := range c.beds[1:] {
		must(t, b.DefineXML(t.Context(), xml))
	}
	c.boot(t, c.volumes...)
	c.write(t)
	return c
}

// write has the guest, which has just booted, write to all its volumes.
func (c *crossing) write(t *testing.T) {
	t.Helper()
	c.boots++
	c.stays = c.guest.Moves()
	c.checkers = map[string]*lab.Checker{}
	on := c.on()
	for i, v := range c.volumes {
		k, err := c.guest.StartChecker(t.Context(), lab.CheckerConfig{
			Name: fmt.Sprintf("boot%d%s", c.boots, v), Disk: on.disk(t, "/dev/disk/by-id/"+v), Seed: uint64(100*c.boots + i + 1),
			Slots: c.slots,
		})
		must(t, err)
		c.checkers[v] = k
	}
}

// on is where the guest is, as far as it is known; other is another host.
func (c *crossing) on() *bed { return c.bedOf(c.guest.Host()) }

func (c *crossing) other() *bed {
	for _, b := range c.beds {
		if b != c.on() {
			return b
		}
	}
	return nil
}

func (c *crossing) bedOf(h *lab.Host) *bed {
	for _, b := range c.beds {
		if b.Host == h {
			return b
		}
	}
	return nil
}

// lives waits until the guest runs on exactly one host, and is on no other, and returns that.
func (c *crossing) lives(t *testing.T) *bed {
	t.Helper()
	var on *bed
	var seen string
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		if on, seen = c.looksAlive(t); on != nil {
			c.guest.MovedTo(on.Host)
			return on
		}
		if time.Now().After(deadline) {
			t.Fatalf("the guest is not on one host: %s", seen)
		}
	}
}

// looksAlive is where the guest runs if it does on exactly one host and is off on all others, else nil and what it is there.
func (c *crossing) looksAlive(t *testing.T) (on *bed, seen string) {
	t.Helper()
	running, off := 0, 0
	for _, b := range c.beds {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		state := b.stateOf(ctx)
		cancel()
		seen += fmt.Sprintf("%s on %s; ", state, b.Name)
		switch state {
		case "running":
			on = b
			running++
		case "shut off", lab.Absent:
			off++
		}
	}
	if running != 1 || off != len(c.beds)-1 {
		return nil, seen
	}
	return on, seen
}

// stateOf is what libvirt says there of the guest, lab.Absent if it knows none.
func (b *bed) stateOf(ctx context.Context) string {
	out, err := b.Virsh(ctx, "domstate", "g1")
	switch {
	case err == nil:
		return out
	case strings.Contains(err.Error(), "failed to get domain"):
		return lab.Absent
	}
	return err.Error()
}

// verdict is what must have come about after any fault: the guest runs on exactly one host, writes, and reads what it wrote;
// that host owns the volumes, with the cache on; nowhere is anything left. It returns that host.
func (c *crossing) verdict(t *testing.T) *bed {
	t.Helper()
	on := c.lives(t)
	c.writes(t, 50)
	c.awaitSettled(t, on, c.volumes...)
	c.assertNothingLeft(t, on)
	return on
}

// assertNothingLeft fails if anything of a hand-over is left, or if a host's status or doctor complains.
func (c *crossing) assertNothingLeft(t *testing.T, on *bed) {
	t.Helper()
	for _, v := range c.volumes {
		eventually(t, "nothing of a hand-over in the header of "+v, func() bool {
			i, err := on.vc.StoreInfo(t.Context(), "/dev/disk/by-id/"+v)
			must(t, err)
			var owner struct{ HostName string }
			must(t, json.Unmarshal(i.Owner, &owner))
			return i.Grants == 0 && i.Cache == "on" && owner.HostName == on.Name
		})
	}
	for _, b := range c.beds {
		if b != on {
			eventually(t, b.Name+" has no exception caches and no engines", func() bool {
				caches, err := filepath.Glob(b.Path("/run/virt-cow/cache/*.cache"))
				must(t, err)
				list, err := b.processes(program, "serve")
				must(t, err)
				return len(caches) == 0 && len(list) == 0
			})
		}
		b.isWell(t)
		b.assertWell(t)
	}
}

// isWell waits until a host's status has nothing to complain of: exit code 0.
func (b *bed) isWell(t *testing.T) {
	t.Helper()
	var last string
	eventually(t, "status of "+b.Name+" is well", func() bool {
		out, err := b.vc.Run(t.Context(), "status")
		if err != nil && out != last {
			last = out
			t.Logf("%s: %v", b.Name, err)
		}
		return err == nil
	})
}

// assertWell fails if `virt-cow doctor` finds something wrong with what is ours; of the lab itself it may complain.
func (b *bed) assertWell(t *testing.T) {
	t.Helper()
	assertSound(t, b.vc, "libvirt", "daemon", "hook", "engines", "orphans", "exception caches", "stores", "snapshots", "certificates", "other hosts")
}

// died is what must be on the volumes of a guest that is dead.
func (c *crossing) died(t *testing.T) map[string]records.Log {
	t.Helper()
	logs := map[string]records.Log{}
	for v, k := range c.checkers {
		if err := k.Wrong(); err != nil && !errors.Is(err, lab.ErrPanicked) { // which its death ended too
			t.Fatal(err)
		}
		log, err := k.Told()
		must(t, err)
		logs[v] = log
	}
	return logs
}

// bootOn starts the guest, which is dead, on a host, and waits until it is up; its volumes may have to wait for somebody.
func (c *crossing) bootOn(t *testing.T, b *bed) {
	t.Helper()
	c.guest.MovedTo(b.Host)
	must(t, c.guest.Boot(t.Context()))
}

// anew has a guest that was started anew get its volumes, on which this must be, and write to them again.
func (c *crossing) anew(t *testing.T, logs map[string]records.Log) {
	t.Helper()
	on := c.on()
	c.held = map[string][]uint64{}
	for v, log := range logs {
		on.await(t, v, "attached", lab.Attached)
		c.held[v] = on.verifyServed(t, v, log)
	}
	c.write(t)
}

// verifyServed checks the records on a volume that is served there, to a guest that does not write yet, and returns what its
// slots hold.
func (b *bed) verifyServed(t *testing.T, volume string, log records.Log) []uint64 {
	t.Helper()
	raw := filepath.Join(b.Dir, "live.raw")
	_, err := b.Run(t.Context(), "qemu-img", "convert", "-f", "raw", "-O", "raw", "nbd+unix:///?socket=/run/virt-cow/"+volume+".sock", raw)
	must(t, err)
	f, err := os.Open(raw)
	must(t, err)
	defer f.Close()
	b.verify(t, f, log)
	held, err := records.Held(f, len(log.Slots), func(n int) []byte { return make([]byte, n) })
	must(t, err)
	return held
}

// finish moves the guest once more, plainly, and has everything verified: in the guest, and from outside once that is off.
func (c *crossing) finish(t *testing.T) {
	t.Helper()
	c.move(t, c.on(), c.other())
	on := c.verdict(t)
	logs, err := c.stop(t)
	for err != nil {
		c.survive(t, err)
		logs, err = c.stop(t)
	}
	c.verifyAll(t, on, logs)
}

// stop ends all checkers, and returns what they did.
func (c *crossing) stop(t *testing.T) (map[string]records.Log, error) {
	t.Helper()
	list := make([]records.Log, len(c.volumes))
	errs := make([]error, len(c.volumes))
	var wg sync.WaitGroup
	for i, v := range c.volumes {
		wg.Go(func() { list[i], errs[i] = c.checkers[v].Stop(t.Context()) })
	}
	wg.Wait()
	logs := map[string]records.Log{}
	for i, v := range c.volumes {
		logs[v] = list[i]
	}
	return logs, errors.Join(errs...)
}
