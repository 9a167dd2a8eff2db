package e2e

import (
	"context"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/test/lab"
)

// TestMigrateKinds moves a writing guest in every way that libvirt has.
func TestMigrateKinds(t *testing.T) {
	c := newCrossing(t, nil, []string{"--chunk", "4K"}, "v1", "v2")
	a, b := c.beds[0], c.beds[1]

	t.Log("== the cache is switched, and nobody migrates")
	for _, v := range c.volumes {
		a.run(t, "cache", "off", v)
		if s := a.await(t, v, "without its cache", func(s *api.VolumeStatus) bool { return s != nil && s.Engine != nil }); s.Engine.Cache != api.CacheOff {
			t.Errorf("cache off, and yet it is %s", s.Engine.Cache)
		}
		c.writes(t, 50)
		if out := a.run(t, "cache", "status", v); !strings.Contains(out, "off") {
			t.Errorf("cache status of %s: %s", v, out)
		}
		a.run(t, "cache", "on", v)
		c.writes(t, 50)
	}
	c.untouched(t, a)

	c.toldOf(t)
	for _, kind := range []struct {
		name  string
		admin bool
		flags []string
	}{
		{"direct, driven from the source", false, []string{"--live"}},
		{"direct, driven from a third machine", true, []string{"--live"}},
		{"tunnelled", false, []string{"--live", "--p2p", "--tunnelled"}},
		{"post-copy", false, []string{"--live", "--p2p", "--postcopy", "--postcopy-after-precopy"}},
		{"persistent, and undefined where it was", false, []string{"--live", "--p2p", "--persistent", "--undefinesource"}},
	} {
		t.Log("== " + kind.name)
		from, to, move := c.on(), c.other(), c.guest.Migrate
		if kind.admin {
			move = c.guest.MigrateFromAdmin
		}
		hurry := c.guest.HurryMigration
		if kind.name == "post-copy" { // it would be over before its post-copy begins
			hurry = func(ctx context.Context) error { return c.guest.LimitMigration(ctx, 1000) }
		}
		must(t, hurry(t.Context()))
		if out, err := move(t.Context(), to.Host, kind.flags...); err != nil {
			t.Fatalf("%s: from %s to %s: %v: %s", kind.name, from.Name, to.Name, err, out)
		}
		c.untouched(t, to)
	}

	t.Log("== a paused guest")
	from, to := c.on(), c.other()
	from.virsh(t, "suspend", "g1")
	c.move(t, from, to, "--live", "--p2p")
	c.awaitSettled(t, to, c.volumes...) // nobody writes, and yet it is the owner
	if state := to.stateOf(t.Context()); state != "paused" {
		t.Errorf("a paused guest is %s where it came", state)
	}
	to.virsh(t, "resume", "g1")
	c.untouched(t, to)

	t.Log("== --copy-storage-all")
	from, to = c.on(), c.other()
	out, err := c.guest.Migrate(t.Context(), to.Host, "--live", "--p2p", "--copy-storage-all")
	if err == nil {
		t.Fatalf("--copy-storage-all copied a disk that both hosts share onto itself: %s", out)
	}
	t.Logf("refused: %v", err)
	c.untouched(t, from)

	t.Log("== a guest without disks of ours")
	foreign, err := from.Define(t.Context(), lab.GuestConfig{Name: "foreign"})
	must(t, err)
	must(t, foreign.Start(t.Context()))
	must(t, foreign.HurryMigration(t.Context()))
	if out, err := foreign.Migrate(t.Context(), to.Host); err != nil {
		t.Errorf("a guest without volumes: %v: %s", err, out)
	}
	must(t, foreign.Destroy(t.Context()))
	if a.says("foreign") || b.says("foreign") {
		t.Error("a daemon has to do with a guest that has no volumes")
	}
	c.finish(t)
}

// toldOf looks at what both hosts say in the middle of a migration.
func (c *crossing) toldOf(t *testing.T) {
	t.Helper()
	p := c.begin(t, true)
	p.await(t, copying)
	for _, w := range []struct {
		bed           *bed
		status, state string
	}{{p.from, "migrating out, giver open", `{role="giver",state="open",volume="v1"} 1`},
		{p.to, "migrating in, receiver idle", `{role="receiver",state="idle",volume="v1"} 1`}} {
		out, err := w.bed.vc.Run(t.Context(), "status")
		if err != nil || !strings.Contains(out, w.status) {
			t.Errorf("status on %s does not say %q: %v", w.bed.Name, w.status, err)
		}
		t.Logf("status on %s:\n%s", w.bed.Name, out)
		metrics, err := w.bed.Run(t.Context(), "curl", "-s", "--unix-socket", "/run/virt-cow/daemon.sock", "http://virt-cow/metrics")
		must(t, err)
		for _, says := range []string{"virt_cow_volume_handover_state" + w.state, `virt_cow_volume_cache_on{volume="v1"} 0`} {
			if !strings.Contains(metrics, says) {
				t.Errorf("metrics on %s do not say %s", w.bed.Name, says)
			}
		}
		w.bed.assertWell(t)
	}
	if s := p.to.await(t, "v1", "served", func(s *api.VolumeStatus) bool { return s != nil && s.PID != 0 }); s.State != api.VolumeIncoming {
		t.Errorf("a volume that is to come is %s", s.State)
	}
	must(t, p.wait(t))
	c.untouched(t, p.to)
	c.move(t, p.to, p.from)
	c.untouched(t, p.from)
}

// says whether the host's daemon has said this.
func (b *bed) says(what string) bool {
	for line := range strings.Lines(b.log.String()) {
		if strings.HasPrefix(line, b.Name+" ") && strings.Contains(line, what) {
			return true
		}
	}
	return false
}

// TestMigrateOffline moves the definition of guests that are off, and starts them where they came to.
func TestMigrateOffline(t *testing.T) {
	s := newSite(t, nil, []string{"--chunk", "4K"}, "v1")
	a, b := s.beds[0], s.beds[1]
	// g1 has its volume from its metadata, g2 in its definition, and so has g3, whose volume is hydrated while it is off.
	guests := map[string]*lab.Guest{"v1": s.guest}
	for name, volume := range map[string]string{"g2": "v2", "g3": "v3"} {
		s.newDisk(t, volume)
		s.newStore(t, volume, volume)
		a.adopt(t, volume)
		g, err := a.Define(t.Context(), lab.GuestConfig{Name: name, Devices: a.servedDisk(t, volume)})
		must(t, err)
		guests[volume] = g
	}
	a.run(t, "hydrate", "start", "v3", "--rate", "64K")
	offline := func(g *lab.Guest) error {
		_, err := g.Migrate(t.Context(), b.Host, "--offline", "--persistent", "--p2p")
		return err
	}
	if err := offline(guests["v2"]); err == nil || !strings.Contains(err.Error(), "virt-cow volume adopt") {
		t.Errorf("a guest whose volume the other host does not know: %v", err)
	}
	b.adopt(t, "v2")
	b.adopt(t, "v3")
	for volume, g := range guests {
		if err := offline(g); err != nil {
			t.Errorf("%s offline: %v", g.Name, err)
		}
		if state := b.virsh(t, "domstate", g.Name); state != "shut off" {
			t.Errorf("%s is %s there", g.Name, state)
		}
		if x, err := b.vc.Volume(t.Context(), volume); err != nil || !left(x) {
			t.Errorf("volume %s is open for a guest that is off: %+v %v", volume, x, err)
		}
		if volume != "v3" {
			a.assertClosed(t, "/dev/disk/by-id/"+volume)
		}
	}
	if c := b.counters(t); c.MigrationsFailed > 1 {
		t.Errorf("nothing failed but the first: %+v", c)
	}
	vetoed(t, b.Host, "g3", "virt-cow volume stop v3", "start", "g3")
	a.run(t, "volume", "stop", "v3")
	for volume, g := range guests {
		b.virsh(t, "start", g.Name)
		b.await(t, volume, "attached", attached)
		b.virsh(t, "destroy", g.Name)
		b.await(t, volume, "closed", left)
		b.assertClosed(t, "/dev/disk/by-id/"+volume)
	}
}

// adopt has the catalogue know a volume of the site.
func (b *bed) adopt(t *testing.T, volume string) {
	t.Helper()
	_, err := b.daemon().Adopt(t.Context(), api.AdoptRequest{Store: "/dev/disk/by-id/" + volume})
	must(t, err)
}

// servedDisk is the disk of a definition that a volume of the site is.
func (b *bed) servedDisk(t *testing.T, volume string) string {
	t.Helper()
	i, err := b.vc.StoreInfo(t.Context(), "/dev/disk/by-id/"+volume)
	must(t, err)
	return strings.Replace(bootDisk(volume), "</disk>", "<serial>"+libvirtx.Serial(uuid.MustParse(i.UUID))+"</serial></disk>", 1)
}
