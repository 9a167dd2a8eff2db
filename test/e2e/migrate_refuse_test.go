package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/test/lab"
	"github.com/virt-cow/virt-cow/test/lab/pki"
)

// refuses fails unless a migration is refused in one line that says all this, soon, and the guest is untouched.
func (c *crossing) refuses(t *testing.T, to *bed, says ...string) {
	t.Helper()
	from, began := c.on(), time.Now()
	_, err := c.guest.Migrate(t.Context(), to.Host)
	line := oneLine(t, err)
	t.Logf("refused after %s: %s", time.Since(began).Round(time.Second/10), line)
	for _, what := range append(says, "domain g1 stays where it is") {
		if !strings.Contains(line, what) {
			t.Errorf("the hook's line does not say %q: %s", what, line)
		}
	}
	c.untouched(t, from)
}

// restart has a host's daemon begin anew, with more in its configuration.
func (c *crossing) restart(t *testing.T, b *bed, config string) {
	t.Helper()
	must(t, os.WriteFile(b.Path("/etc/virt-cow/config.toml"), []byte(config), 0o644))
	if err := b.vc.Daemon().Stop(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_, err := b.vc.StartDaemon(t.Context())
	must(t, err)
}

// TestMigrateRefused: what stands against a migration has it refused in one clear line, and the guest untouched.
func TestMigrateRefused(t *testing.T) {
	c := newCrossing(t, nil, []string{"--chunk", "4K"}, "v1")
	a, b := c.beds[0], c.beds[1]
	v1 := c.disks["v1"]

	t.Log("== the store is missing at the destination")
	must(t, v1.Detach(b.Host))
	c.refuses(t, b, "volume v1", v1.Path, "no such file")
	must(t, v1.Attach(b.Host))

	t.Log("== a different store is there")
	other := c.newDisk(t, "other")
	c.newStore(t, "other", "v9")
	must(t, other.AttachAs(b.Host, "v1"))
	c.refuses(t, b, "volume v1", v1.Path, "is volume v9 on this host")

	t.Log("== a store of the same name, with another UUID")
	namesake := c.newDisk(t, "namesake")
	c.newStore(t, "namesake", "v1")
	must(t, namesake.AttachAs(b.Host, "v1"))
	c.refuses(t, b, "volume v1", "is another one on this host", "serial")

	t.Log("== no store at all is there")
	must(t, c.newDisk(t, "blank").AttachAs(b.Host, "v1"))
	c.refuses(t, b, "volume v1", v1.Path)
	must(t, v1.Attach(b.Host))

	// Nothing has made the catalogue there believe any of that; and it knows nothing of v1 yet, but from the guest's metadata.
	if out := b.run(t, "volume", "list"); strings.Contains(out, "v1") || strings.Contains(out, "v9") {
		t.Errorf("what was refused is in the catalogue:\n%s", out)
	}

	t.Log("== certificates")
	whole := c.config(t, b)
	foreign, err := pki.New("another authority")
	must(t, err)
	admin, err := c.CA.Client("admin")
	must(t, err)
	name, err := c.CA.Server("somebody.else")
	must(t, err)
	old, err := c.CA.Issue(pki.Request{Names: []string{"hb", "hb-ctl"}, Server: true, NotAfter: time.Now().Add(-time.Hour)})
	must(t, err)
	for _, w := range []struct {
		pair *pki.Pair
		ca   *pki.Authority
		says []string
	}{
		{admin, nil, []string{"for a client", "administrator"}},
		{nil, foreign, []string{"another CA"}},
		{name, nil, []string{"somebody.else", "hosts in [migration]"}},
		{old, nil, []string{"has expired"}},
	} {
		must(t, b.SetCertificate(w.pair, w.ca))
		c.restart(t, b, whole) // while it runs it stays with the good one that it has
		c.refuses(t, b, append(w.says, "ha")...)
	}
	must(t, b.SetCertificate(nil, nil))
	c.restart(t, b, whole)

	t.Log("== the destination is not among the source's hosts")
	mine := c.config(t, a)
	c.restart(t, a, "[migration]\naddress = \"ha-ctl\"\nhosts = [\"hc-ctl\"]\n")
	c.refuses(t, b, "ha-ctl", "hosts in [migration]")
	c.restart(t, a, mine)

	t.Log("== the destination listens to nobody")
	c.restart(t, b, "[migration]\nlisten = \"\"\n")
	c.refuses(t, b, "live migration is off", "[migration] listen")
	c.restart(t, b, whole)

	t.Log("== the source listens to nobody")
	c.restart(t, a, "[migration]\nlisten = \"\"\n")
	c.refuses(t, b, "ha-ctl", "connection refused")
	c.restart(t, a, mine)

	c.foreignHooks(t, a, b)
	c.finish(t)
}

func (c *crossing) config(t *testing.T, b *bed) string {
	t.Helper()
	text, err := os.ReadFile(b.Path("/etc/virt-cow/config.toml"))
	must(t, err)
	return string(text)
}

// foreignHooks: another hook at the destination refuses what ours has let through. Nobody is told.
func (c *crossing) foreignHooks(t *testing.T, a, b *bed) {
	t.Helper()
	veto := func(operation string) (gone func()) {
		t.Helper()
		must(t, b.WriteHook("60-veto", "#!/bin/sh\n[ \"$2\" != "+operation+" ] || { echo not today >&2; exit 1; }\n"))
		return func() { must(t, os.Remove(filepath.Join(b.Dir, "etc", "hooks", "qemu.d", "60-veto"))) }
	}
	vetoed := func(operation string) {
		t.Helper()
		if _, err := c.guest.Migrate(t.Context(), b.Host); err == nil || !strings.Contains(err.Error(), "not today") {
			t.Fatalf("another hook refuses %s: %v", operation, err)
		}
		c.writes(t, 10)
	}
	t.Log("== another hook refuses `migrate`, and the next migration comes before that is noticed")
	gone := veto("migrate")
	vetoed("migrate")
	if s := b.await(t, "v1", "open still", func(s *api.VolumeStatus) bool { return s != nil }); s.PID == 0 {
		t.Logf("closed already: %+v", s)
	}
	gone()
	c.move(t, a, b)
	c.untouched(t, b)
	c.move(t, b, a)
	c.untouched(t, a)

	t.Log("== another hook refuses `prepare`")
	gone = veto("prepare")
	vetoed("prepare")
	began := time.Now()
	b.await(t, "v1", "closed", left)
	c.untouched(t, a)
	t.Logf("closed there, and the cache on here, after %s", time.Since(began).Round(time.Second))
	gone()

	t.Log("== another hook refuses `migrate`, and nothing follows")
	gone = veto("migrate")
	vetoed("migrate")
	began = time.Now()
	b.await(t, "v1", "closed", left)
	c.untouched(t, a)
	t.Logf("closed there, and the cache on here, after %s", time.Since(began).Round(time.Second))
	gone()
	c.verdict(t)
}

// TestMigrateTwice: while a guest migrates to one host, a third one that asks for its volumes is refused.
func TestMigrateTwice(t *testing.T) {
	c := newCrossing(t, []string{"ha", "hb", "hc"}, []string{"--chunk", "64K"}, "v1")
	third := c.beds[2]
	p := c.begin(t, true)
	p.await(t, copying)
	xml := third.file(t, "g1.xml", p.from.virsh(t, "dumpxml", "--migratable", "g1"))
	hook := func() (string, error) {
		return third.Run(t.Context(), "sh", "-c", "/etc/libvirt/hooks/qemu.d/50-virt-cow g1 migrate begin - <"+xml)
	}
	out, err := hook()
	if err == nil || !strings.Contains(out, "another host: hb has it") || strings.Count(strings.TrimSpace(out), "\n") > 0 {
		t.Errorf("a third host is not refused in one line that names the second: %v: %s", err, out)
	}
	t.Logf("refused: %s", out)
	if _, err := p.from.Virsh(t.Context(), "migrate", "--live", "--p2p", "g1", third.URI()); err == nil {
		t.Error("libvirt itself has the guest migrate to two hosts at once")
	}
	if x, err := third.vc.Volume(t.Context(), "v1"); err != nil || !left(x) {
		t.Errorf("the third host has it open: %+v %v", x, err)
	}
	must(t, p.wait(t))
	c.untouched(t, p.to)

	// It would be granted now, to no end. That is harmless, and no migration to another host has to wait for it.
	if out, err := hook(); err != nil {
		t.Errorf("the hook on a third host: %v: %s", err, out)
	}
	c.writes(t, 10)
	c.refusedWhileGranted(t, p)
	third.await(t, "v1", "closed", left)
	c.verdict(t)
	c.finish(t)
}

// refusedWhileGranted tries to migrate a guest of which a third host has the volumes open, and never will have the guest.
func (c *crossing) refusedWhileGranted(t *testing.T, p *passage) {
	t.Helper()
	_, err := c.guest.Migrate(t.Context(), p.from.Host)
	line := oneLine(t, err)
	if !strings.Contains(line, "hc") {
		t.Errorf("the hook's line does not name who has it: %s", line)
	}
	t.Logf("refused: %s", line)
	c.writes(t, 10)
}

// TestColdStart starts guests with plain `virsh start` on another host than their volumes are open on.
func TestColdStart(t *testing.T) {
	s := newSite(t, nil, nil, "v1")
	a, b := s.beds[0], s.beds[1]
	s.newDisk(t, "v2")
	s.newStore(t, "v2", "v2")
	a.adopt(t, "v2")
	b.adopt(t, "v2")
	_, err := a.Define(t.Context(), lab.GuestConfig{Name: "g2", Devices: a.servedDisk(t, "v2")})
	must(t, err)
	must(t, b.DefineXML(t.Context(), a.virsh(t, "dumpxml", "--inactive", "g2")))
	a.virsh(t, "start", "g2")
	a.await(t, "v2", "attached", attached)

	t.Log("== it runs elsewhere")
	refused(t, b, "g2", "volume v2 is open on ha", "domain g2 has it on ha")
	t.Log("== the daemon there is down")
	must(t, a.vc.Daemon().Stop(syscall.SIGKILL))
	<-a.vc.Daemon().Done()
	refused(t, b, "g2", "volume v2 is open on ha", "does not answer", "virt-cow host fenced ha")
	a.virsh(t, "destroy", "g2")
	refused(t, b, "g2", "volume v2 is open on ha", "does not answer", "virt-cow host fenced ha")

	t.Log("== it is off there by now, and its daemon is there again")
	_, err = a.vc.StartDaemon(t.Context())
	must(t, err)
	b.virsh(t, "start", "g2")
	b.await(t, "v2", "attached", attached)
	a.await(t, "v2", "closed", left)

	t.Log("== it was ended here a moment ago")
	b.virsh(t, "destroy", "g2")
	a.virsh(t, "start", "g2")
	a.await(t, "v2", "attached", attached)

	t.Log("== its host was reset, and is up again: its store was left open")
	must(t, a.PowerCut())
	must(t, a.PowerOn(t.Context()))
	s.configure(t, a.Host, "")
	_, err = a.vc.StartDaemon(t.Context())
	must(t, err)
	b.virsh(t, "start", "g2")
	b.await(t, "v2", "attached", attached)
	b.virsh(t, "destroy", "g2")
	b.await(t, "v2", "closed", left)
	b.assertClosed(t, "/dev/disk/by-id/v2")
}

// refused fails unless the hook refuses the start of a domain in one line that says all this.
func refused(t *testing.T, b *bed, domain string, says ...string) {
	t.Helper()
	began := time.Now()
	_, err := b.Virsh(t.Context(), "start", domain)
	line := oneLine(t, err)
	t.Logf("refused after %s: %s", time.Since(began).Round(time.Second/10), line)
	for _, what := range says {
		if !strings.Contains(line, what) {
			t.Errorf("the hook's line does not say %q: %s", what, line)
		}
	}
	if state := b.virsh(t, "domstate", domain); state != "shut off" {
		t.Errorf("refused, and yet %s is %s", domain, state)
	}
}
