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
	"syscall"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/test/lab/pki"
	"github.com/virt-cow/virt-cow/test/lab/records"
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
	t.Parallel()
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
	_, err := from.Run(ctx, "timeout", "2", "bash", "-c", "</dev/tcp/"+to.Address(n)+"/16509")
	return err == nil
}

func TestLinks(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
	s := SiteFor(t, SiteConfig{Host: Config{Log: t.Output()}})
	a, b := s.Hosts[0], s.Hosts[1]
	for _, sector := range []int{512, 4096} {
		d, err := s.NewDisk(DiskConfig{Name: fmt.Sprintf("disk%d", sector), Size: 8 << 20, Sector: sector})
		must(t, err)
		read := func(h *Host, flag string) string {
			t.Helper()
			return strings.Trim(run(t, h, "dd", "if="+d.Path, "bs=4096", "count=1", "status=none", "iflag="+flag), "\x00\n")
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
		run(t, b, "blockdev", "--flushbufs", d.Path) // udev may have looked at it while it was empty
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
	t.Parallel()
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

// TestCheckersMove: checkers on two disks go on while their guest moves under load, a migration is cancelled and one is
// cut off, and what they say is found on the disks.
func TestCheckersMove(t *testing.T) {
	t.Parallel()
	s := SiteFor(t, SiteConfig{Host: Config{Log: t.Output()}})
	a, b := s.Hosts[0], s.Hosts[1]
	base, err := os.Create(filepath.Join(s.Dir, "base"))
	must(t, err)
	defer base.Close()
	must(t, records.WriteBase(base, 2048))
	disks := make([]*Disk, 2)
	disks[0], err = s.NewDisk(DiskConfig{Name: "one", File: base.Name()})
	must(t, err)
	disks[1], err = s.NewDisk(DiskConfig{Name: "two", Size: 16 << 20, Sector: 4096})
	must(t, err)
	g, err := a.Define(t.Context(), GuestConfig{Name: "g1", Devices: diskXML(disks[0], "vda") + diskXML(disks[1], "vdb")})
	must(t, err)
	must(t, g.Boot(t.Context()))
	var checkers []*Checker
	for i, d := range disks {
		dev, err := g.Disk(t.Context(), d.name)
		must(t, err)
		c, err := g.StartChecker(t.Context(), CheckerConfig{Name: d.name, Disk: dev, Seed: uint64(7 + i), Base: i == 0})
		must(t, err)
		checkers = append(checkers, c)
	}
	goOn := func() {
		t.Helper()
		for _, c := range checkers {
			must(t, c.Await(t.Context(), 100))
		}
	}
	move := func(to *Host) {
		t.Helper()
		must(t, g.HurryMigration(t.Context()))
		_, err := g.Migrate(t.Context(), to)
		must(t, err)
		goOn()
	}
	fails := func(what string, spoil func()) {
		t.Helper()
		must(t, g.LimitMigration(t.Context(), 1))
		failed := make(chan error, 1)
		go func() {
			_, err := g.Migrate(t.Context(), b)
			failed <- err
		}()
		must(t, g.AwaitMemory(t.Context()))
		spoil()
		if err := <-failed; err == nil || g.Host() != a {
			t.Fatalf("%s: %v, the guest is on %s", what, err, g.Host().Name)
		}
		must(t, g.HurryMigration(t.Context()))
		goOn()
	}
	move(b)
	move(a)
	fails("cancelled", func() { must(t, g.AbortJob(t.Context())) })
	fails("the destination's libvirtd killed", func() { must(t, b.Libvirtd().Stop(syscall.SIGKILL)) })
	must(t, b.StartLibvirtd(t.Context()))
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if list, err := b.Virsh(t.Context(), "list", "--all", "--name"); err == nil && strings.TrimSpace(list) == "" {
			break // libvirt 11 takes no guest while it removes what came of it before
		}
	}
	move(b)
	for i, c := range checkers {
		log, err := c.Stop(t.Context())
		must(t, err)
		told, err := c.Told()
		must(t, err)
		f, err := os.Open(disks[i].File)
		must(t, err)
		defer f.Close()
		for _, l := range []records.Log{log, told} {
			n, err := Verify(f, l)
			must(t, err)
			if n == 0 || l.Flushes == 0 {
				t.Errorf("%s: %d records, %d flushes: nothing was shown", c.Name, n, l.Flushes)
			}
			t.Logf("%s: %d records, %d flushes", c.Name, n, l.Flushes)
		}
	}
	must(t, g.PowerOff(t.Context()))
}

// TestCheckerFindsStaleData: what another host wrote to the disk meanwhile is found by the guest itself.
func TestCheckerFindsStaleData(t *testing.T) {
	t.Parallel()
	s := SiteFor(t, SiteConfig{Host: Config{Log: t.Output()}})
	d, err := s.NewDisk(DiskConfig{Name: "one", Size: 16 << 20})
	must(t, err)
	g, err := s.Hosts[0].Define(t.Context(), GuestConfig{Name: "g1", Devices: diskXML(d, "vda")})
	must(t, err)
	must(t, g.Boot(t.Context()))
	dev, err := g.Disk(t.Context(), d.name)
	must(t, err)
	c, err := g.StartChecker(t.Context(), CheckerConfig{Name: "one", Disk: dev, Seed: 7})
	must(t, err)
	must(t, c.Wrong())
	for deadline := time.Now().Add(time.Minute); c.Wrong() == nil && time.Now().Before(deadline); {
		run(t, s.Hosts[1], "dd", "if=/dev/zero", "of="+d.Path, "bs=1M", "count=8", "oflag=direct", "status=none")
	}
	if err := c.Wrong(); err == nil || !strings.Contains(err.Error(), "read back slot") {
		t.Fatalf("it was not found: %v", err)
	}
	if _, err := c.Stop(t.Context()); err == nil {
		t.Error("a checker that found something ended well")
	}
}

// TestFreeze: a frozen host answers nobody, and its guest goes on afterwards.
func TestFreeze(t *testing.T) {
	t.Parallel()
	s := SiteFor(t, SiteConfig{Host: Config{Log: t.Output()}})
	a, b := s.Hosts[0], s.Hosts[1]
	d, err := s.NewDisk(DiskConfig{Name: "one", Size: 16 << 20})
	must(t, err)
	g, err := a.Define(t.Context(), GuestConfig{Name: "g1", Devices: diskXML(d, "vda")})
	must(t, err)
	must(t, g.Boot(t.Context()))
	dev, err := g.Disk(t.Context(), d.name)
	must(t, err)
	c, err := g.StartChecker(t.Context(), CheckerConfig{Name: "one", Disk: dev, Seed: 7})
	must(t, err)
	must(t, a.Freeze())
	sum := func() string {
		return run(t, b, "sh", "-c", "dd if="+d.Path+" bs=1M iflag=direct status=none | sha256sum")
	}
	// What was with the kernel lands; then nothing changes any more.
	for was, deadline := sum(), time.Now().Add(time.Minute); ; {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		if out, err := g.Run(ctx, "true"); err == nil {
			t.Errorf("a guest of a frozen host answers %q", out)
		}
		cancel()
		now := sum()
		if now == was {
			break
		}
		if was = now; time.Now().After(deadline) {
			t.Error("a frozen host writes")
			break
		}
	}
	must(t, a.Thaw())
	must(t, c.Await(t.Context(), 50))
	if _, err := c.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := a.Virsh(t.Context(), "list"); err != nil {
		t.Error(err)
	}
}
