package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/alecthomas/kong"

	"github.com/virt-cow/virt-cow/internal/config"
	"github.com/virt-cow/virt-cow/internal/man"
)

// ManCmd writes the man pages; it is for packaging.
type ManCmd struct {
	Dir string `arg:"" help:"Folder for the pages." type:"path"`
}

// Run writes one page for the program and one for each command.
func (c *ManCmd) Run(env *Env) error {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return err
	}
	for _, p := range manual(env.Parser.Model).Pages(env.Parser.Model) {
		if err := os.WriteFile(filepath.Join(c.Dir, p.Name), []byte(p.Text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func manual(app *kong.Application) *man.Book {
	return &man.Book{
		Version: version, Date: built(), Help: helpOfValue, Examples: examples,
		Exit: []man.Entry{
			{Name: "0", Text: "All is well."},
			{Name: "1", Text: "It failed; the reason is on standard error."},
			{Name: "2", Text: "Wrong usage, or a configuration that can't be used."},
			{Name: "3", Text: "Done, but not all is as it should be: status and doctor found something."},
			{Name: "4", Text: "Refused because it is in use, here or on another host."},
			{Name: "5", Text: "A verification failed."},
		},
		Environment: environment(app),
		Files: []man.Entry{
			{Name: config.DefaultPath, Text: "Configuration. `virt-cow config example` prints one with comments."},
			{Name: "/etc/default/virt-cow", Text: "Environment of the systemd units."},
			{Name: "/etc/virt-cow/plugins.d", Text: "Executables that are told of events."},
			{Name: "/etc/libvirt/hooks/qemu.d/50-virt-cow", Text: "The hook that libvirt runs before a guest starts."},
			{Name: "/run/virt-cow", Text: "Sockets, locks and exception caches: daemon.sock is the control API, NAME.sock a volume's NBD server."},
			{Name: "/var/lib/virt-cow", Text: "The catalogue of volumes, and the stores that were given no other place."},
			{Name: "/var/log/virt-cow", Text: "Logs of engines, where systemd does not keep them."},
		},
		See: []string{"virsh(1)", "systemctl(1)", "libvirtd(8)"},
	}
}

// environment lists the variables of the flags, then those of the configuration.
func environment(app *kong.Application) []man.Entry {
	entries := []man.Entry{{Name: "VIRT_COW_CONFIG", Text: "Configuration file, instead of " + config.DefaultPath + "."}}
	seen := map[string]bool{}
	nodes := append([]*kong.Node{app.Node}, app.Leaves(true)...)
	for _, n := range nodes {
		for _, f := range n.Flags {
			for _, name := range f.Envs {
				if !seen[name] {
					seen[name] = true
					entries = append(entries, man.Entry{Name: name, Text: "As --" + f.Name + ": " + f.Help})
				}
			}
		}
	}
	for _, k := range config.Keys() {
		entries = append(entries, man.Entry{Name: k.Env, Text: fmt.Sprintf("As %s in the configuration.", k.Name)})
	}
	return entries
}

// built is when the program was: pages of one version must not differ by when they were written.
func built() time.Time {
	if n, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64); err == nil {
		return time.Unix(n, 0)
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if t, err := time.Parse(time.RFC3339, s.Value); s.Key == "vcs.time" && err == nil {
				return t
			}
		}
	}
	return time.Now()
}
