package lab

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/test/lab/pki"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, h *Host, name string, args ...string) string {
	t.Helper()
	out, err := h.Run(t.Context(), name, args...)
	must(t, err)
	return strings.TrimSpace(out)
}

func diskXML(d *Disk, target string) string {
	return fmt.Sprintf(`<disk type='block' device='disk'><driver name='qemu' type='raw' cache='none'/>
<source dev='%s'/><target dev='%s' bus='virtio'/><serial>%s</serial></disk>`, d.Path, target, d.name)
}

func TestMigrateThereAndBack(t *testing.T) {
	s := SiteFor(t, SiteConfig{Host: Config{Log: t.Output()}})
	a, b := s.Hosts[0], s.Hosts[1]
	disk, err := s.NewDisk(DiskConfig{Name: "raw1", Size: 32 << 20})
	must(t, err)
	g, err := a.Define(t.Context(), GuestConfig{Name: "g1", Devices: diskXML(disk, "vda")})
	must(t, err)
	must(t, g.Boot(t.Context()))
	// A command that is under way while the guest moves is answered from where it went.
	answer := make(chan error, 1)
	go func() {
		out, err := g.Run(t.Context(), "i=0; while [ $i -lt 12 ]; do sleep 1; i=$((i+1)); done; echo counted $i")
		if err == nil && out != "counted 12\n" {
			err = errors.New(out)
		}
		answer <- err
	}()
	for i, m := range []struct {
		to    *Host
		flags []string
		admin bool
	}{
		{b, []string{"--live", "--p2p"}, false},
		{a, []string{"--live", "--p2p", "--tunnelled"}, false},
		{b, []string{"--live"}, false},
		{a, []string{"--live"}, true},
	} {
		move := g.Migrate
		if m.admin {
			move = g.MigrateFromAdmin
		}
		began := time.Now()
		out, err := move(t.Context(), m.to, m.flags...)
		must(t, err)
		t.Logf("%v to %s in %s: %s", m.flags, m.to.Name, time.Since(began).Round(time.Millisecond), strings.TrimSpace(out))
		if on, err := g.RunsOn(t.Context()); err != nil || len(on) != 1 || on[0] != m.to {
			t.Fatalf("runs on %v: %v", on, err)
		}
		dev, err := g.Disk(t.Context(), "raw1")
		must(t, err)
		_, err = g.Run(t.Context(), fmt.Sprintf("echo move %d >/tmp/x && dd if=/tmp/x of=%s bs=512 conv=sync,fsync seek=%d; echo moved-%d >/dev/ttyS0", i, dev, i, i))
		must(t, err)
	}
	must(t, <-answer)
	raw, err := os.ReadFile(disk.File)
	must(t, err)
	for i := range 4 {
		if want := fmt.Sprintf("move %d\n", i); !strings.HasPrefix(string(raw[i*512:]), want) {
			t.Errorf("sector %d: %q", i, raw[i*512:i*512+10])
		}
		if !strings.Contains(g.ConsoleLog(), fmt.Sprintf("moved-%d", i)) {
			t.Errorf("the console's log lacks move %d:\n%s", i, g.ConsoleLog())
		}
	}
	must(t, g.PowerOff(t.Context()))
}

// reaches says whether one host gets an answer from another's libvirtd or from what listens on its control address.
func reaches(t *testing.T, from, to *Host, n Network) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := from.Run(ctx, "busybox", "nc", "-w", "3", "-z", to.Address(n), "16509")
	return err == nil
}

func TestLinks(t *testing.T) {
	s := SiteFor(t, SiteConfig{Names: []string{"ha", "hb", "hc"}, Host: Config{Log: t.Output()}})
	a, b, c := s.Hosts[0], s.Hosts[1], s.Hosts[2]
	check := func(when string, mgmt, control bool) {
		t.Helper()
		for _, w := range []struct {
			from, to *Host
			n        Network
			want     bool
		}{{a, b, Mgmt, mgmt}, {b, a, Mgmt, mgmt}, {a, b, Control, control}, {b, a, Control, control}, {a, c, Mgmt, true}, {c, b, Control, true}} {
			// The carrier takes a moment.
			ok := false
			for deadline := time.Now().Add(time.Minute); !ok && time.Now().Before(deadline); {
				ok = reaches(t, w.from, w.to, w.n) == w.want
			}
			if !ok {
				t.Fatalf("%s: %s reaches %s on %s is not %v", when, w.from.Name, w.to.Name, w.n, w.want)
			}
		}
	}
	check("at first", true, true)
	must(t, s.Link(Control, a, b).Cut(t.Context()))
	check("control cut", true, false)
	must(t, s.Link(Mgmt, b, a).Down(t.Context()))
	check("and mgmt down", false, false)
	must(t, s.Link(Control, a, b).Heal(t.Context()))
	check("control healed", false, true)
	must(t, s.Cut(t.Context(), a, b))
	check("all cut", false, false)
	bootID := run(t, a, "cat", "/proc/sys/kernel/random/boot_id")
	must(t, a.PowerCut())
	must(t, a.PowerOn(t.Context()))
	if now := run(t, a, "cat", "/proc/sys/kernel/random/boot_id"); now == bootID || len(now) != 36 {
		t.Errorf("boot id %s after %s", now, bootID)
	}
	check("still cut after a power cut", false, false)
	must(t, s.Heal(t.Context(), a, b))
	check("healed", true, true)
	must(t, a.PowerCut())
	if reaches(t, b, a, Mgmt) {
		t.Fatal("a host without power answers")
	}
	for _, h := range []*Host{b, c} {
		out := run(t, s.Admin, "virsh", "-c", h.URI(), "hostname")
		if out != h.Name {
			t.Errorf("%s says it is %s", h.URI(), out)
		}
		if u := run(t, h, "virsh", "capabilities"); !strings.Contains(u, h.UUID().String()) {
			t.Errorf("libvirt on %s has not the UUID %s", h.Name, h.UUID())
		}
	}
	if b.UUID() == c.UUID() {
		t.Error("two hosts have one UUID")
	}
}

// TestDisksAreShared: direct reads see what another host wrote, reads through the page cache may not: the very fault
// that two hosts have.
func TestDisksAreShared(t *testing.T) {
	s := SiteFor(t, SiteConfig{Host: Config{Log: t.Output()}})
	a, b := s.Hosts[0], s.Hosts[1]
	for _, sector := range []int{512, 4096} {
		d, err := s.NewDisk(DiskConfig{Name: fmt.Sprintf("disk%d", sector), Size: 8 << 20, Sector: sector})
		must(t, err)
		read := func(h *Host, flag string) string {
			t.Helper()
			return strings.Trim(run(t, h, "dd", "if="+d.Path, "bs=4096", "count=1", "status=none", "iflag="+flag), "\x00")
		}
		write := func(h *Host, text string) {
			t.Helper()
			run(t, h, "sh", "-c", fmt.Sprintf("echo %s | dd of=%s bs=4096 conv=sync oflag=direct status=none iflag=fullblock", text, d.Path))
		}
		for _, h := range s.Hosts {
			if got := run(t, h, "blockdev", "--getss", d.Path); got != fmt.Sprint(sector) {
				t.Errorf("sectors of %s bytes on %s", got, h.Name)
			}
		}
		write(a, "first")
		// Held open: the page cache of a device lives as long as somebody has it open.
		if got := read(b, "fullblock"); got != "first" {
			t.Fatalf("%q", got)
		}
		write(a, "second")
		if got := read(b, "direct"); got != "second" {
			t.Errorf("a direct read on the other host got %q", got)
		}
		if got := read(b, "fullblock"); got != "first" {
			t.Errorf("hosts share a page cache: a read through it got %q", got)
		}
		write(b, "third")
		if got := read(a, "direct"); got != "third" {
			t.Errorf("a direct read got %q", got)
		}
		f, err := blockdev.OpenFile(t.Context(), a.Path(filepath.Join("/dev", fmt.Sprintf("loop%d", d.loops[a].number))), blockdev.FileOptions{})
		must(t, err)
		if !f.Shared() {
			t.Error("virt-cow takes the disk for one of this host alone")
		}
		must(t, f.Close())
	}
	d, err := s.NewDisk(DiskConfig{Name: "master", Size: 1 << 20, ReadOnly: true})
	must(t, err)
	if _, err := a.Run(t.Context(), "dd", "if=/dev/zero", "of="+d.Path, "count=1", "oflag=direct"); err == nil {
		t.Error("a read-only disk was written to")
	}
	must(t, d.Detach(b))
	if _, err := b.Run(t.Context(), "ls", d.Path); err == nil {
		t.Error("a detached disk is found")
	}
	run(t, a, "ls", d.Path)
	must(t, d.Attach(b))
	run(t, b, "dd", "if="+d.Path, "of=/dev/null", "count=1")
	if out := run(t, a, "sh", "-c", "ls /dev/loop* | grep -v control | wc -l"); out != "3" {
		t.Errorf("%s loop devices are seen on a host with three disks", out)
	}
}

func TestCertificates(t *testing.T) {
	s := SiteFor(t, SiteConfig{Host: Config{Log: t.Output()}})
	a := s.Hosts[0]
	cert := func() *x509.Certificate {
		t.Helper()
		block, _ := pem.Decode([]byte(run(t, a, "cat", "/etc/pki/libvirt/servercert.pem")))
		c, err := x509.ParseCertificate(block.Bytes)
		must(t, err)
		run(t, a, "test", "-s", "/etc/pki/libvirt/private/serverkey.pem")
		return c
	}
	verify := func(name string) error {
		_, err := cert().Verify(x509.VerifyOptions{DNSName: name, Roots: s.CA.Pool()})
		return err
	}
	for _, n := range []string{"ha", "ha-ctl", a.Address(Mgmt), a.Address(Control)} {
		must(t, verify(n))
	}
	other, err := pki.New("other")
	must(t, err)
	must(t, a.SetCertificate(nil, other))
	if verify("ha") == nil {
		t.Error("another authority's certificate is good")
	}
	wrong, err := s.ServerCertificate(s.Hosts[1])
	must(t, err)
	must(t, a.SetCertificate(wrong, nil))
	if verify("ha") == nil {
		t.Error("another host's certificate is good")
	}
	must(t, a.SetCertificate(nil, nil))
	must(t, verify("ha"))
	if _, err := os.Stat("/etc/pki/libvirt/servercert.pem"); err == nil {
		t.Error("it is on the machine itself")
	}
}
