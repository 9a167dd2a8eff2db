package e2e

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/plugin"
	"github.com/virt-cow/virt-cow/test/lab"
)

// lab0 is a guest with nothing special.
var lab0 = lab.GuestConfig{}

var (
	attached = lab.Attached
	cutLoose = lab.CutLoose
)

// off accepts a volume whose domain does not run and that has no engine.
func off(s *api.VolumeStatus) bool { return s != nil && s.State == api.VolumeOff && s.PID == 0 }

// failed accepts a volume that failed, saying this.
func failed(says string) func(*api.VolumeStatus) bool {
	return func(s *api.VolumeStatus) bool {
		return s != nil && s.State == api.VolumeFailed && strings.Contains(s.Error, says)
	}
}

// attachedBut accepts a volume that its guest has, with another engine than this.
func attachedBut(pid int) func(*api.VolumeStatus) bool {
	return func(s *api.VolumeStatus) bool { return attached(s) && s.PID != pid }
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// eventually polls until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// listens says whether somebody does at a socket, which is there a moment before.
func listens(socket string) bool {
	c, err := net.Dial("unix", socket)
	if err == nil {
		c.Close()
	}
	return err == nil
}

// virsh runs a command of virsh that must succeed.
func (b *bed) virsh(t *testing.T, args ...string) string {
	t.Helper()
	out, err := b.Virsh(t.Context(), args...)
	must(t, err)
	return out
}

// file writes a file of the host and returns its path.
func (b *bed) file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(b.Dir, name)
	must(t, os.WriteFile(path, []byte(text), 0o644))
	return path
}

// want writes a domain's metadata as an operator's own tool would.
func (b *bed) want(t *testing.T, domain string, wants ...libvirtx.Want) {
	t.Helper()
	element, err := libvirtx.FormatWants(wants)
	must(t, err)
	args := []string{"metadata", domain, "--uri", libvirtx.Namespace, "--key", libvirtx.Prefix, "--config", "--set", element}
	if state := b.virsh(t, "domstate", domain); state != "shut off" {
		args = append(args, "--live")
	}
	b.virsh(t, args...)
}

// openElsewhere makes another host, dead by now, the owner of a store. That host comes back by calling back: it
// closes the store cleanly.
func (b *bed) openElsewhere(t *testing.T, store string) (back func()) {
	t.Helper()
	host, run := uuid.NewString(), "/run/elsewhere"
	serve := func(end syscall.Signal) {
		t.Helper()
		p, err := b.Start(program, "--run-dir", run, "serve", "--host-uuid", host, "--socket", run+"/elsewhere.sock", store)
		must(t, err)
		eventually(t, "served elsewhere", func() bool {
			_, err := api.NewEngine(b.Path(run + "/elsewhere.ctl")).Status(t.Context())
			return err == nil
		})
		must(t, p.Stop(end))
	}
	must(t, os.MkdirAll(b.Path(run), 0o755))
	serve(syscall.SIGKILL)
	return func() { t.Helper(); serve(syscall.SIGTERM) }
}

// pluginsDir is on the host; eventsFile is where the plugin of recordEvents writes.
const (
	pluginsDir = "/var/lib/plugins"
	eventsFile = "/var/lib/events"
)

// plugin installs one.
func (b *bed) plugin(t *testing.T, name, script string) {
	t.Helper()
	must(t, os.MkdirAll(b.Path(pluginsDir), 0o755))
	must(t, lab.WriteProgram(b.Path(filepath.Join(pluginsDir, name)), []byte("#!/bin/sh\n"+script)))
}

// recordEvents installs a plugin that keeps what it is asked and told.
func (b *bed) recordEvents(t *testing.T) {
	t.Helper()
	b.plugin(t, "10-record", `printf '%s\n' "$(tr -d '\n')" >>`+eventsFile) // one write: several are told at once
}

// events are those of a volume, in their order.
func (b *bed) events(t *testing.T, volume string) []plugin.Event {
	t.Helper()
	text, err := os.ReadFile(b.Path(eventsFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	must(t, err)
	var list []plugin.Event
	for line := range strings.Lines(string(text)) {
		var e plugin.Event
		if !strings.HasSuffix(line, "\n") {
			break // being written
		}
		must(t, json.Unmarshal([]byte(line), &e))
		if e.Volume.Name == volume {
			list = append(list, e)
		}
	}
	return list
}

// eventNames are the events of a volume in one line, only those of a kind if that is given.
func (b *bed) eventNames(t *testing.T, volume string, kind ...string) string {
	t.Helper()
	var names []string
	for _, e := range b.events(t, volume) {
		if len(kind) == 0 || slices.Contains(kind, e.Event) {
			names = append(names, e.Event)
		}
	}
	return strings.Join(names, " ")
}

func (b *bed) counters(t *testing.T) api.Counters {
	t.Helper()
	s, err := b.vc.Status(t.Context())
	must(t, err)
	return s.Counters
}
