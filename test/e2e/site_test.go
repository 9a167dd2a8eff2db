package e2e

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/test/lab"
	"github.com/virt-cow/virt-cow/test/lab/records"
)

// site is two hosts or more with daemons that know each other, disks that all of them see, and a guest on the first host that
// is defined but off. Each bed is one host; all have the same guest.
type site struct {
	*lab.Site
	beds   []*bed
	guest  *lab.Guest
	log    *keptLog
	master *lab.Disk
	disks  map[string]*lab.Disk // by volume
	raw    string               // what is on the master, outside
	sum    string
}

// newSite makes a site whose guest has these volumes, each a clone of the master with these flags for `store create`.
func newSite(t *testing.T, hosts []string, flags []string, volumes ...string) *site {
	t.Helper()
	return newSiteOf(t, siteConfig{hosts: hosts, volumes: volumes, made: clones(flags...)})
}

// siteConfig says what a site is to be.
type siteConfig struct {
	program string   // "" for the one under test
	hosts   []string // nil for two
	volumes []string
	made    maker           // of their stores
	guest   lab.GuestConfig // what it has beside its volumes
	slots   int             // of each volume that a crossing's guest writes; 0 for fewSlots
}

// maker makes a volume's store on its disk.
type maker func(t *testing.T, s *site, volume string)

// clones are of the master, made with these flags for `store create`.
func clones(flags ...string) maker {
	return func(t *testing.T, s *site, volume string) {
		t.Helper()
		s.newStore(t, volume, volume, flags...)
	}
}

func newSiteOf(t *testing.T, sc siteConfig) *site {
	t.Helper()
	program := cmp.Or(sc.program, program)
	t.Parallel()
	s := &site{log: &keptLog{}, disks: map[string]*lab.Disk{}}
	s.Site = lab.SiteFor(t, lab.SiteConfig{Names: sc.hosts, Host: lab.Config{Log: s.log, Hook: program, Env: []string{"VIRT_COW_PLUGINS_DIR=" + pluginsDir}}})
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("what the hosts' processes said:\n" + s.log.String() + s.engineLogs())
			if s.guest != nil {
				t.Log("what the guest said last:\n" + s.guest.ConsoleLog())
			}
		}
	})
	s.raw = filepath.Join(s.Dir, "master.raw")
	files := map[string][]byte{"etc/hostname": []byte("golden\n"), "data/big": bytes.Repeat([]byte("master data\n"), 1<<20)}
	must(t, lab.MakeMaster(t.Context(), s.raw, masterMiB, files))
	s.sum = checksum(t, s.raw)
	var err error
	s.master, err = s.NewDisk(lab.DiskConfig{Name: "master", File: s.raw, ReadOnly: true})
	must(t, err)
	var wants strings.Builder
	for i, v := range sc.volumes {
		d := s.newDisk(t, v)
		fmt.Fprintf(&wants, `<virtcow:disk volume="%s" store="%s" target="vd%c" bus="virtio" hydrate="no"/>`, v, d.Path, 'b'+i)
	}
	for _, h := range s.Hosts {
		s.configure(t, h, "")
		s.beds = append(s.beds, &bed{Host: h, vc: h.VirtCow(program), log: s.log, master: s.raw, sum: s.sum})
	}
	a := s.beds[0]
	for _, v := range sc.volumes {
		sc.made(t, s, v)
	}
	guest := sc.guest
	guest.Name = "g1"
	guest.Metadata = `<virtcow:disks xmlns:virtcow="http://virt-cow.org/xmlns/libvirt/domain/1.0">` + wants.String() + `</virtcow:disks>`
	if s.guest, err = a.Define(t.Context(), guest); err != nil {
		t.Fatal(err)
	}
	for _, b := range s.beds {
		b.guest = s.guest
		if _, err := b.vc.StartDaemon(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// newDisk makes a disk that a store of a clone of the master fits on.
func (s *site) newDisk(t *testing.T, name string) *lab.Disk {
	t.Helper()
	d, err := s.NewDisk(lab.DiskConfig{Name: name, Size: (masterMiB + 16) << 20})
	must(t, err)
	s.disks[name] = d
	return d
}

// newStore makes a volume, a clone of the master, on a disk.
func (s *site) newStore(t *testing.T, disk, volume string, flags ...string) {
	t.Helper()
	s.beds[0].run(t, append(append([]string{"store", "create", "--master", s.master.Path, "--name", volume}, flags...), s.disks[disk].Path)...)
}

// configure writes a host's configuration file; more is added to it.
func (s *site) configure(t *testing.T, h *lab.Host, more string) {
	t.Helper()
	must(t, os.MkdirAll(h.Path("/etc/virt-cow"), 0o755))
	text := fmt.Sprintf("[migration]\naddress = \"%s-ctl\"\nhosts = [\"h?-ctl\"]\n%s", h.Name, more)
	text = strings.Replace(text, `"h?-ctl"`, `"ha-ctl", "hb-ctl", "hc-ctl"`, 1)
	must(t, os.WriteFile(h.Path("/etc/virt-cow/config.toml"), []byte(text), 0o644))
}

// boot starts the guest and waits until it has all its volumes.
func (s *site) boot(t *testing.T, volumes ...string) {
	t.Helper()
	must(t, s.guest.Boot(t.Context()))
	for _, v := range volumes {
		s.beds[0].await(t, v, "attached", lab.Attached)
	}
}

// move migrates the guest, which must succeed, and returns the beds it is on now and was on before.
func (s *site) move(t *testing.T, from, to *bed, flags ...string) {
	t.Helper()
	must(t, s.guest.HurryMigration(t.Context())) // libvirt keeps what an earlier one from here was limited to
	out, err := s.guest.Migrate(t.Context(), to.Host, flags...)
	if err != nil {
		t.Fatalf("migrate %s to %s: %v: %s", from.Name, to.Name, err, out)
	}
}

// settled accepts a volume that this host owns alone, with the exception cache on.
func settled(s *api.VolumeStatus) bool {
	return lab.Attached(s) && s.Engine.Cache == api.CacheOn && len(s.Engine.Grants) == 0 && s.Migration == nil &&
		(s.Engine.Handover == nil || s.Engine.Handover.State == "owner" || s.Engine.Handover.State == "alone")
}

// left accepts a volume that this host serves no longer.
func left(s *api.VolumeStatus) bool { return s == nil || s.PID == 0 }

// awaitSettled waits until the cache is on at the owner and nowhere else is anything open.
func (s *site) awaitSettled(t *testing.T, owner *bed, volumes ...string) {
	t.Helper()
	for _, v := range volumes {
		owner.await(t, v, "owned, with the cache on", settled)
		for _, b := range s.beds {
			if b != owner {
				b.await(t, v, "closed", left)
			}
		}
	}
}

func (s *site) engineLogs() string {
	var out strings.Builder
	for _, b := range s.beds {
		fmt.Fprintf(&out, "== %s\n%s", b.Name, b.engineLogs())
	}
	return out.String()
}

// verifyAll ends the guest and checks from outside, on this host, that every record is where it belongs and that the master
// has not changed.
func (s *site) verifyAll(t *testing.T, on *bed, logs map[string]records.Log) {
	t.Helper()
	must(t, s.guest.PowerOff(t.Context()))
	for v, log := range logs {
		on.await(t, v, "closed", left)
		on.verifyOutside(t, "/dev/disk/by-id/"+v, log)
	}
	if now := checksum(t, s.raw); now != s.sum {
		t.Fatalf("the master has changed: %s was %s", now, s.sum)
	}
}
