package e2e

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/test/lab"
)

// cut loses every packet between the hosts of a migration on these networks, and returns what heals that.
func (p *passage) cut(t *testing.T, networks ...lab.Network) (heal func()) {
	t.Helper()
	for _, n := range networks {
		must(t, p.c.Link(n, p.from.Host, p.to.Host).Cut(t.Context()))
	}
	return func() {
		for _, n := range networks {
			must(t, p.c.Link(n, p.from.Host, p.to.Host).Heal(t.Context()))
		}
	}
}

// oneLine is the one line that the hook said, without what libvirt said around it.
func oneLine(t *testing.T, err error) string {
	t.Helper()
	if err == nil {
		t.Fatal("the migration was not refused")
	}
	_, line, ours := strings.Cut(err.Error(), "virt-cow: ")
	if !ours {
		t.Fatalf("not refused by the hook: %v", err)
	}
	line = strings.TrimSpace(line)
	if strings.Contains(line, "\n") {
		t.Errorf("not one line: %q", line)
	}
	return line
}

// untouched fails unless the guest is as if nobody had asked for anything: it writes where it was, that host owns its volumes with
// the cache on, and nowhere else is anything open.
func (c *crossing) untouched(t *testing.T, on *bed) {
	t.Helper()
	c.writes(t, 10)
	c.awaitSettled(t, on, c.volumes...)
	if host := c.lives(t); host != on {
		t.Fatalf("the guest is on %s, not on %s", host.Name, on.Name)
	}
}

// TestMigrateLink cuts the networks between two hosts: that of the daemons, that of libvirt and QEMU, and both.
func TestMigrateLink(t *testing.T) {
	c := newCrossing(t, nil, []string{"--chunk", "4K"}, "v1", "v2")

	t.Log("== the daemons' link is cut before")
	p := &passage{c: c, from: c.on(), to: c.other()}
	heal := p.cut(t, lab.Control)
	began := time.Now()
	p = c.begin(t, false)
	line := oneLine(t, p.wait(t))
	t.Logf("refused after %s: %s", time.Since(began).Round(time.Second), line)
	for _, says := range []string{"domain g1 stays where it is", "volume v1", p.from.Name + "-ctl"} {
		if !strings.Contains(line, says) {
			t.Errorf("the hook's line does not say %q: %s", says, line)
		}
	}
	c.untouched(t, p.from)
	heal()

	t.Log("== the daemons' link is cut while memory is copied, and healed after")
	p = c.begin(t, true)
	p.await(t, copying)
	heal = p.cut(t, lab.Control)
	must(t, p.wait(t))
	c.untouched(t, p.to) // decided on the LUN, the link is still cut
	heal()
	c.verdict(t)

	t.Log("== the daemons' link is cut at the switch")
	p = c.begin(t, false)
	p.await(t, suspended)
	heal = p.cut(t, lab.Control)
	must(t, p.wait(t))
	c.untouched(t, p.to)
	heal()

	t.Log("== the migration's link is cut while memory is copied, and the job cancelled")
	p = c.begin(t, true)
	p.await(t, copying)
	heal = p.cut(t, lab.Mgmt)
	c.writes(t, 50)
	c.cancelled(t, p)
	heal()
	c.verdict(t)

	t.Log("== all links are cut while memory is copied, and nobody cancels: libvirt finds out by itself")
	p = c.begin(t, true)
	p.await(t, copying)
	heal = p.cut(t, lab.Control, lab.Mgmt)
	began = time.Now()
	if err := p.waitLong(t); err == nil {
		t.Fatal("a migration went through a link that is cut")
	}
	t.Logf("libvirt gave up after %s: %v", time.Since(began).Round(time.Second), p.err)
	c.writes(t, 50)
	p.awaitClosed(t)
	c.awaitSettled(t, p.from, c.volumes...) // it sees in the store that the other host has closed, the link is still cut
	heal()
	c.verdict(t)
	c.finish(t)
}

// cancelled aborts a migration whose link is cut, and waits until the destination has closed the volumes and the cache is on again:
// its libvirtd must notice that the connection is dead.
func (c *crossing) cancelled(t *testing.T, p *passage) {
	t.Helper()
	began := time.Now()
	if err := c.guest.AbortJob(t.Context()); err != nil {
		t.Logf("domjobabort: %v", err)
	}
	if err := p.waitLong(t); err == nil {
		t.Fatal("a migration went through a link that is cut")
	}
	t.Logf("libvirt was done after %s: %v", time.Since(began).Round(time.Second), p.err)
	c.writes(t, 50)
	p.awaitClosed(t)
	c.awaitSettled(t, p.from, c.volumes...)
	t.Logf("closed there and the cache on here after %s", time.Since(began).Round(time.Second))
}

// awaitClosed waits until the destination's libvirtd has ended the domain that can't come any more, and its daemon has closed
// the volumes.
func (p *passage) awaitClosed(t *testing.T) {
	t.Helper()
	for _, v := range p.c.volumes {
		p.to.await(t, v, "closed where it did not come", func(s *api.VolumeStatus) bool { return left(s) })
	}
}

// waitLong is wait without letting a slow migration go on.
func (p *passage) waitLong(t *testing.T) error {
	t.Helper()
	select {
	case <-p.over:
		return errors.Join(p.err, p.c.guest.HurryMigration(t.Context())) // which the next one would keep
	case <-time.After(5 * time.Minute):
		t.Fatal("the migration does not end")
	}
	return errors.ErrUnsupported
}

// TestMigrateLinkSoak cuts each link at each step.
func TestMigrateLinkSoak(t *testing.T) {
	if !*soak {
		t.Skip("takes long: -e2e.soak")
	}
	for _, networks := range [][]lab.Network{{lab.Control}, {lab.Mgmt}, {lab.Control, lab.Mgmt}} {
		name := ""
		for _, n := range networks {
			name += n.String()
		}
		t.Run(name, func(t *testing.T) {
			c := newCrossing(t, nil, []string{"--chunk", "4K"}, "v1", "v2")
			for _, s := range steps {
				if t.Failed() {
					return // the next would only say so once more
				}
				t.Logf("== %s cut when %s", name, s.name)
				began := time.Now()
				p := c.begin(t, s.slow)
				p.await(t, s)
				heal := p.cut(t, networks...)
				go func() { // which a job that waits for a link does not look at, and one that does not ends by
					for range 200 {
						_ = c.guest.HurryMigration(context.WithoutCancel(t.Context()))
						select {
						case <-p.over:
							return
						case <-time.After(time.Second):
						}
					}
				}()
				err := p.waitLong(t)
				t.Logf("over after %s: %v", time.Since(began).Round(time.Second), err)
				heal()
				on := c.recover(t, p)
				t.Logf("well on %s after %s", on.Name, time.Since(began).Round(time.Second))
			}
			c.finish(t)
		})
	}
}
