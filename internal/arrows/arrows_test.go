// Package arrows holds the map of ARCHITECTURE.md: which package may import which.
package arrows

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/virt-cow/virt-cow/"

// may lists, for each package, what of this module it may import. A package that is not here is a
// package nobody decided on.
var may = map[string][]string{
	"internal/api":                   {},
	"internal/arrows":                {},
	"internal/blockdev":              {},
	"internal/blockdev/blockdevtest": {"internal/blockdev"},
	"internal/blockdev/reserve":      {"internal/blockdev"},
	"internal/cowfmt":                {},
	"internal/uring":                 {"internal/blockdev"},
	"internal/nbd":                   {"internal/blockdev", "internal/uring"},
	"internal/store":                 {"internal/blockdev", "internal/cowfmt"},
	"internal/handover":              {},
	"internal/engine":                {"internal/blockdev", "internal/cowfmt", "internal/handover", "internal/store"},
	"internal/master":                {"internal/blockdev", "internal/cowfmt", "internal/engine", "internal/nbd", "internal/store"},
	"internal/serve": {
		"internal/api", "internal/blockdev", "internal/blockdev/reserve", "internal/cowfmt", "internal/engine", "internal/handover", "internal/local", "internal/master",
		"internal/nbd", "internal/store",
	},
	"internal/reader":                {"internal/blockdev", "internal/cowfmt", "internal/store"},
	"internal/archive":               {"internal/blockdev"},
	"internal/durable":               {},
	"internal/local":                 {},
	"internal/backup":                {"internal/api", "internal/archive", "internal/blockdev", "internal/cowfmt", "internal/durable", "internal/local", "internal/master", "internal/nbd", "internal/peer", "internal/reader", "internal/store"},
	"internal/libvirtx":              {"internal/cowfmt"},
	"internal/domainxml":             {"internal/durable", "internal/libvirtx"},
	"internal/libvirtx/rpc":          {"internal/libvirtx"},
	"internal/libvirtx/cgo":          {"internal/libvirtx"},
	"internal/libvirtx/libvirtxtest": {"internal/libvirtx", "test/lab"},
	"internal/config":                {"internal/cowfmt", "internal/local", "internal/peer"},
	"internal/hook":                  {"internal/api", "internal/libvirtx"},
	"internal/launch":                {"internal/api", "internal/local"},
	"internal/peer":                  {"internal/api"},
	"internal/plugin":                {"internal/cowfmt"},
	"internal/cut":                   {"internal/api", "internal/durable", "internal/libvirtx"},
	"internal/metrics":               {"internal/api"},
	"internal/catalogue":             {"internal/cowfmt", "internal/durable"},
	"internal/inventory":             {"internal/api", "internal/catalogue", "internal/cowfmt", "internal/libvirtx", "internal/plugin"},
	"internal/top":                   {"internal/api"},
	"internal/completion":            {},
	"internal/man":                   {},
	"internal/restore":               {"internal/api", "internal/blockdev", "internal/cowfmt", "internal/domainxml", "internal/durable", "internal/libvirtx", "internal/store"},
	"internal/doctor":                {"hooks", "internal/api", "internal/config", "internal/libvirtx", "internal/peer", "internal/restore"},
	"internal/daemon": {
		"internal/api", "internal/blockdev", "internal/catalogue", "internal/cowfmt", "internal/cut", "internal/domainxml", "internal/durable", "internal/inventory", "internal/launch",
		"internal/libvirtx", "internal/local", "internal/metrics", "internal/peer", "internal/plugin",
	},
}

func TestArrows(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}} {{join .Imports \" \"}}", module+"internal/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		pkg := strings.TrimPrefix(fields[0], module)
		allowed, known := may[pkg]
		if !known {
			t.Errorf("%s is not on the map: add it to ARCHITECTURE.md and here", pkg)
		}
		for _, imp := range fields[1:] {
			if rest, ours := strings.CutPrefix(imp, module); ours && !slices.Contains(allowed, rest) {
				t.Errorf("%s must not import %s", pkg, rest)
			}
		}
	}
}
