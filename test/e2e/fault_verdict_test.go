package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
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
	eventually(t, "the guest has one process", func() bool { // libvirtd may be asking another QEMU what it can
		var err error
		c.qemu, err = c.guestProcess()
		return err == nil
	})
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
	if c.halfAttached(t) {
		must(t, c.guest.Destroy(t.Context()))
		died = c.up(t)
	}
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
	c.isWell(t)
	c.assertDoctor(t)
}

// halfAttached waits until all is as it should be, or a disk turns out to be half attached, and says so then: a libvirtd
// that is killed between QEMU's yes to a new disk and its own note of it does not know of the disk any more. Nobody but
// the guest's end can mend that; the disk must not be attached twice, the guest goes on, and the error says who has it.
func (c *cell) halfAttached(t *testing.T) bool {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if c.differs(t.Context()) == nil {
			return false
		}
		s, err := c.vc.Volume(t.Context(), hot)
		if c.phase.name != "attach" || err != nil || s == nil || s.State != api.VolumeFailed || s.Engine == nil || s.Engine.Connections != 1 {
			continue
		}
		if !strings.Contains(s.Error, "open") {
			continue
		}
		t.Log("half attached: ", s.Error)
		if c.writer != nil {
			c.writer.await(t, 50)
		}
		return true
	}
	return false
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
		pid := 0
		if err == nil {
			pid, err = c.guestProcess()
		}
		if err == nil {
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

// assertDoctor fails if `virt-cow doctor` finds something wrong with what is ours; of the lab itself it may complain.
func (c *cell) assertDoctor(t *testing.T) {
	t.Helper()
	checks := []string{"libvirt", "daemon", "hook", "engines", "orphans", "exception caches", "stores"}
	all := assertSound(t, c.vc, checks...)
	for _, check := range checks {
		if len(all[check]) == 0 {
			t.Errorf("doctor does not look at %s", check)
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
	c.isWell(t)
	c.assertDoctor(t)
	c.assertMasterUnchanged(t)
}
