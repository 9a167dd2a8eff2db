// Package doctor looks at a host for what keeps virt-cow from working, or will: one finding each, with why it matters and
// the command that mends it. It changes nothing. Checks are independent of each other: one that can't be made is a
// finding that says so.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/config"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// Result is what came of a check.
type Result string

// The results, from well to worse.
const (
	OK      Result = "ok"
	Skipped Result = "skipped" // does not apply here, or could not be looked at
	Warning Result = "warning" // works, but not well, or not for long
	Problem Result = "problem" // something does not work
)

// Finding is one thing found.
type Finding struct {
	Check  string `json:"check"`
	Result Result `json:"result"`
	Seen   string `json:"seen"`           // what is so
	Why    string `json:"why,omitempty"`  // why it matters; of what is not well
	Mend   string `json:"mend,omitempty"` // command, or what to do by hand
}

// Host is what is looked at.
type Host struct {
	Root    string // what all paths are below: "" for this host
	Config  *config.Effective
	Version string // of this program
	Dial    func(ctx context.Context, socket string) (libvirtx.Conn, error)
	Adjtime func(*unix.Timex) (state int, err error) // unix.Adjtimex

	daemon    *api.DaemonStatus // nil if it does not answer
	daemonErr error
	libvirt   libvirtx.Conn // nil if it does not answer
}

// check is one look. It returns nothing where it does not apply and nobody would miss it.
type check struct {
	name string
	look func(context.Context, *Host) []Finding
}

// checks in the order in which they are shown: first what everything else rests on.
var checks = []check{
	{"configuration", configuration},
	{"run folder", runFolder},
	{"machine id", machineID},
	{"clock", clock},
	{"io_uring", ioUring},
	{"limits", limits},
	{"room", room},
	{"libvirt", libvirt},
	{"daemon", daemon},
	{"hook", hook},
	{"control socket", controlSocket},
	{"NBD sockets", nbdSockets},
	{"AppArmor", appArmor},
	{"SELinux", seLinux},
	{"LVM", lvm},
	{"engines", engines},
	{"orphans", orphans},
	{"exception caches", caches},
	{"stores", stores},
	{"snapshots", snapshots},
	{"restores", restores},
	{"PCI ports", pciPorts},
	{"certificates", certificates},
	{"other hosts", otherHosts},
	{"image node", imageNode},
}

// ofHypervisors are the checks that make no sense on an image node without guests.
var ofHypervisors = []string{
	"libvirt", "daemon", "hook", "control socket", "NBD sockets", "AppArmor", "SELinux", "engines", "orphans", "exception caches", "snapshots",
	"PCI ports", "other hosts",
}

// Names of all checks, in their order.
func Names() []string {
	names := make([]string, len(checks))
	for i, c := range checks {
		names[i] = c.name
	}
	return names
}

// checkTime bounds one check: none may hang on what is broken.
const checkTime = 20 * time.Second

// Examine makes all checks.
func (h *Host) Examine(ctx context.Context) []Finding {
	h.meet(ctx)
	if h.libvirt != nil {
		defer h.libvirt.Close()
	}
	var all []Finding
	for _, c := range checks {
		if h.onlyImageNode() && slices.Contains(ofHypervisors, c.name) {
			continue
		}
		one, cancel := context.WithTimeout(ctx, checkTime)
		for _, f := range c.look(one, h) {
			f.Check = c.name
			all = append(all, f)
		}
		cancel()
	}
	return all
}

// meet asks the daemon, which several checks need, once.
func (h *Host) meet(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	h.daemon, h.daemonErr = h.api().Status(ctx)
}

func (h *Host) api() *api.Daemon { return api.NewDaemon(h.path(h.Config.Config.RunDir)) }

// path is where something of this host really is.
func (h *Host) path(p string) string { return filepath.Join("/", h.Root, p) }

// read returns a small file's text without white space around it; "" if there is none.
func (h *Host) read(p string) (text string, err error) {
	b, err := os.ReadFile(h.path(p))
	return strings.TrimSpace(string(b)), err
}

func (h *Host) exists(p string) bool {
	_, err := os.Lstat(h.path(p))
	return err == nil
}

// glob returns paths below the root, as this host names them.
func (h *Host) glob(pattern string) []string {
	found, err := filepath.Glob(h.path(pattern))
	if err != nil {
		return nil
	}
	for i, f := range found {
		if h.Root != "" {
			found[i] = strings.TrimPrefix(f, filepath.Clean(h.Root))
		}
	}
	return found
}

func well(format string, args ...any) []Finding {
	return []Finding{{Result: OK, Seen: fmt.Sprintf(format, args...)}}
}

func skipped(format string, args ...any) []Finding {
	return []Finding{{Result: Skipped, Seen: fmt.Sprintf(format, args...)}}
}

// unread tells of a file that could not be looked at.
func unread(err error) []Finding {
	if errors.Is(err, fs.ErrPermission) {
		return skipped("%v; run it as root", err)
	}
	return skipped("%v", err)
}

// some lists things, not too many.
func some(list []string) string {
	const most = 6
	if len(list) <= most {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
}

// quote makes a word for a shell.
func quote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-:=+,@") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func quoteAll(list []string) string {
	words := make([]string, len(list))
	for i, s := range list {
		words[i] = quote(s)
	}
	return strings.Join(words, " ")
}
