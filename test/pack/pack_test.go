// Package pack tests what is installed: the Debian package, the units under a real systemd, the policies for AppArmor and
// SELinux, the udev rule.
package pack

import (
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/test/machine"
)

func TestMain(m *testing.M) {
	machine.Main()
	if len(os.Args) > 1 && os.Args[1] == insideArg {
		if err := inside(os.Args[2:]); err != nil {
			log.Fatal(err)
		}
		return
	}
	os.Exit(m.Run())
}

// source is the module's root folder.
func source(t testing.TB) string {
	t.Helper()
	d, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// deb makes the package in a folder and returns its path.
func deb(t testing.TB, dir string) string {
	t.Helper()
	cmd := exec.Command("scripts/deb.sh", "v0.0.1-1-gtest", dir)
	cmd.Dir = source(t)
	cmd.Env = append(os.Environ(), "VIRT_COW_DEB_COMPRESSION=none")
	cmd.Stderr = new(strings.Builder)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, cmd.Stderr)
	}
	path := strings.TrimSpace(string(out))
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// built makes sure of the programs in bin, which go into the package: once, for one test would pack what another just writes.
var built = sync.OnceValue(func() error {
	cmd := exec.Command("make", "-s", "build")
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make build: %w: %s", err, out)
	}
	return nil
})

// installed is a machine with this test binary and the package at hand, the package not yet installed.
func installed(t *testing.T, c machine.Config) (m *machine.Machine, pkg string) {
	t.Helper()
	if _, err := machine.Tree(); err == nil {
		if err := built(); err != nil {
			t.Fatal(err)
		}
	}
	m = machine.For(t, c)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.Share, "pack.test"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	return m, "/share/" + filepath.Base(deb(t, m.Share))
}

// run runs a command in the machine that must succeed and returns what it printed.
func run(t testing.TB, m *machine.Machine, name string, args ...string) string {
	t.Helper()
	out, err := m.Run(t.Context(), name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// fails runs a command that must fail and say this.
func fails(t testing.TB, m *machine.Machine, say, name string, args ...string) {
	t.Helper()
	out, err := m.Run(t.Context(), name, args...)
	if err == nil {
		t.Fatalf("%s %s succeeded: %s", name, strings.Join(args, " "), out)
	}
	if !strings.Contains(out, say) {
		t.Fatalf("%s %s: does not say %q: %s", name, strings.Join(args, " "), say, out)
	}
}

// files lists what is below / in the machine, except for what a package manager and services write.
func files(t testing.TB, m *machine.Machine) map[string]bool {
	t.Helper()
	out := run(t, m, "find", "/", "-xdev", "(", "-path", "/var/lib/dpkg", "-o", "-path", "/var/cache", "-o", "-path", "/var/log/dpkg.log",
		"-o", "-path", "/tmp", "-o", "-path", "/var/tmp", "-o", "-path", "/root", "-o", "-path", "/var/log/journal", ")", "-prune", "-o", "-print")
	list := map[string]bool{}
	for line := range strings.Lines(out) {
		list[strings.TrimSpace(line)] = true
	}
	return list
}

// added lists what the second has more.
func added(before, after map[string]bool) []string {
	var list []string
	for path := range after {
		if !before[path] {
			list = append(list, path)
		}
	}
	return list
}

// storeOf makes a store of a volume in the machine, of 64 MiB.
func storeOf(t testing.TB, m *machine.Machine, volume, store string) string {
	t.Helper()
	run(t, m, "virt-cow", "store", "create", "--size", "64M", "--name", volume, "--force", store)
	return store
}

// engineOf asks a volume's engine, which must answer.
func engineOf(t testing.TB, m *machine.Machine, volume string) *api.EngineStatus {
	t.Helper()
	s, err := api.NewEngine(m.Path("/run/virt-cow/" + volume + ".ctl")).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// nbdURI is a volume's export, reached from outside.
func nbdURI(m *machine.Machine, volume string) string {
	return fmt.Sprintf("nbd+unix:///%s?socket=%s", volume, m.Path("/run/virt-cow/"+volume+".sock"))
}
