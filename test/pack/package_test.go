package pack

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/test/machine"
)

// TestPackage installs, uses, removes and purges the package in a Debian without a running systemd.
func TestPackage(t *testing.T) {
	t.Parallel()
	m, pkg := installed(t, machine.Config{Plain: true})
	before := files(t, m)
	run(t, m, "dpkg", "-i", pkg)

	daemon := m.Command(t.Context(), "virt-cow", "daemon")
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	s := awaitDaemon(t, m)
	if s.Libvirt.Connected {
		t.Error("connected to a libvirt that is not there")
	}

	// What is wrong here is that there is no libvirt; each finding comes with the command that mends it.
	out, err := m.Run(t.Context(), "virt-cow", "doctor")
	if err == nil || !strings.Contains(out, "libvirt") {
		t.Errorf("doctor: %v: %s", err, out)
	}
	run(t, m, "virt-cow", "config", "check")
	run(t, m, "test", "-s", "/usr/share/man/man1/virt-cow.1.gz")
	run(t, m, "bash", "-n", "/usr/share/bash-completion/completions/virt-cow")

	run(t, m, "mkdir", "-p", "/var/lib/virt-cow/stores")
	store := storeOf(t, m, "data-1", "/var/lib/virt-cow/stores/data-1.vcow")
	if out := run(t, m, insideProgram, insideArg, "start", "data-1", store); !strings.HasPrefix(out, "child ") {
		t.Fatalf("without systemd engines are children: %s", out)
	}
	// A running engine is a guest's disk.
	fails(t, m, "volumes are being served", "dpkg", "-r", "virt-cow")
	if got := run(t, m, "dpkg-query", "-W", "-f", "${db:Status-Status}", "virt-cow"); got != "installed" {
		t.Fatalf("after a refused removal the package is %s", got)
	}
	// An upgrade leaves it alone.
	engine := engineOf(t, m, "data-1")
	run(t, m, "dpkg", "-i", pkg)
	if again := engineOf(t, m, "data-1"); again.PID != engine.PID {
		t.Fatalf("the upgrade replaced engine %d by %d", engine.PID, again.PID)
	}
	run(t, m, insideProgram, insideArg, "stop", "data-1")
	run(t, m, "bash", "-c", "kill "+strconv.Itoa(s.PID))
	if err := daemon.Wait(); err != nil {
		t.Errorf("daemon: %v", err)
	}

	run(t, m, "dpkg", "-r", "virt-cow")
	if _, err := m.Run(t.Context(), "test", "-e", "/etc/virt-cow/config.toml"); err != nil {
		t.Error("removal took the configuration: that is for purge")
	}
	// What a killed engine had acknowledged is in its cache alone.
	const cache = "/run/virt-cow/cache/00000000-0000-4000-8000-000000000001.cache"
	run(t, m, "sh", "-c", "mkdir -p /run/virt-cow/cache && echo flags >"+cache)
	run(t, m, "dpkg", "-P", "virt-cow")
	run(t, m, "test", "-e", cache)
	run(t, m, "rm", "-r", "/run/virt-cow")
	left := added(before, files(t, m))
	slices.Sort(left)
	want := []string{"/var/lib/virt-cow", "/var/lib/virt-cow/stores", "/var/lib/virt-cow/stores/data-1.vcow"}
	left = slices.DeleteFunc(left, func(path string) bool {
		return strings.HasPrefix(path, "/var/lib/virt-cow/") && !strings.HasPrefix(path, want[1]) || // the catalogue
			path == "/var/lib/systemd/deb-systemd-helper-enabled" || path == "/var/lib/systemd/deb-systemd-helper-masked"
	})
	if !slices.Equal(left, want) {
		t.Errorf("purge left %q, want the data only: %q", left, want)
	}
}

// awaitDaemon waits until the daemon answers, from outside the machine.
func awaitDaemon(t *testing.T, m *machine.Machine) *api.DaemonStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for {
		// It exits 3, degraded: there is no libvirt.
		out, err := m.Command(ctx, "virt-cow", "--json", "status").Output()
		var s api.DaemonStatus
		if json.Unmarshal(out, &s) == nil && s.PID != 0 {
			return &s
		}
		select {
		case <-ctx.Done():
			t.Fatal("the daemon doesn't answer: ", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// TestAppArmor installs the package beside libvirt's own profiles, and compiles these.
func TestAppArmor(t *testing.T) {
	t.Parallel()
	m, pkg := installed(t, machine.Config{Plain: true})
	run(t, m, "cp", "-a", "/usr/share/virt-cow-test/etc/apparmor.d/.", "/etc/apparmor.d/")
	const local = "/etc/apparmor.d/local/abstractions/libvirt-qemu"
	const admins = "  /srv/admins-own/** r,\n"
	run(t, m, "sh", "-c", "mkdir -p /etc/apparmor.d/local/abstractions && touch /etc/apparmor.d/local/usr.sbin.libvirtd")
	write(t, m, local, admins)
	// As libvirt writes one for each guest.
	write(t, m, "/etc/apparmor.d/libvirt/libvirt-guest", `#include <tunables/global>
profile libvirt-52f2aa3e-0000-4000-8000-000000000001 flags=(attach_disconnected) {
  #include <abstractions/libvirt-qemu>
}
`)
	const rule = "/{var/,}run/virt-cow/*.sock rw,"
	guest := func() string {
		return run(t, m, "apparmor_parser", "--preprocess", "/etc/apparmor.d/libvirt/libvirt-guest")
	}
	if strings.Contains(guest(), rule) {
		t.Fatal("guests have the rule before it is installed")
	}
	run(t, m, "dpkg", "-i", pkg)
	run(t, m, "dpkg", "-i", pkg) // once more: one line all the same
	if n := strings.Count(guest(), rule); n != 1 {
		t.Errorf("guests have the rule %d times", n)
	}
	for _, profile := range []string{"libvirt/libvirt-guest", "usr.sbin.libvirtd"} {
		run(t, m, "apparmor_parser", "--skip-kernel-load", "--skip-cache", "--quiet", "/etc/apparmor.d/"+profile)
	}
	run(t, m, "dpkg", "-r", "virt-cow")
	if got := run(t, m, "cat", local); got+"\n" != strings.TrimLeft(admins, " ") {
		t.Errorf("removal left %q in the admin's file, want %q", got, admins)
	}
	run(t, m, "apparmor_parser", "--skip-kernel-load", "--skip-cache", "--quiet", "/etc/apparmor.d/libvirt/libvirt-guest")
}

func write(t *testing.T, m *machine.Machine, path, text string) {
	t.Helper()
	if err := os.WriteFile(m.Path(path), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestSELinux compiles the module against the distribution's policy.
func TestSELinux(t *testing.T) {
	t.Parallel()
	m := machine.For(t, machine.Config{Plain: true})
	for _, ext := range []string{"te", "fc", "if"} {
		b, err := os.ReadFile(filepath.Join(source(t), "packaging", "selinux", "virt_cow."+ext))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(m.Share, "virt_cow."+ext), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out := run(t, m, "make", "-C", "/share", "-f", "/usr/share/selinux/devel/Makefile", "virt_cow.pp")
	if strings.Contains(out, "rror") || strings.Contains(out, "arning") {
		t.Errorf("make: %s", out)
	}
	if _, err := os.Stat(filepath.Join(m.Share, "virt_cow.pp")); err != nil {
		t.Error(err)
	}
}
