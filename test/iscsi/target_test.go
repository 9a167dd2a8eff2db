package iscsi

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// The target: LIO, set up through its configfs, in a network namespace of its own.
const (
	configfs  = "/sys/kernel/config/target"
	targetIQN = "iqn.2026-01.org.virt-cow:target"
	backing   = "/dev/vda"
	serial    = "5f0c4f3e-6d6a-4a51-9d3f-8a1f2b3c4d5e"
	netns     = "target"
	port      = "3260"
)

// patience bounds every wait.
const patience = 2 * time.Minute

func must(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func set(t testing.TB, path, value string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after %s", what, patience)
		}
	}
}

// startTarget makes one LUN of the backing disk, for these hosts.
func startTarget(t testing.TB, hosts ...*host) {
	t.Helper()
	must(t, "ip", "netns", "add", netns)
	core := filepath.Join(configfs, "core/iblock_0/lun")
	group := filepath.Join(configfs, "iscsi", targetIQN, "tpgt_1")
	lun := filepath.Join(group, "lun/lun_0")
	for _, dir := range []string{core, lun} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	set(t, filepath.Join(core, "control"), "udev_path="+backing)
	set(t, filepath.Join(core, "enable"), "1")
	set(t, filepath.Join(core, "wwn/vpd_unit_serial"), serial)
	link(t, core, filepath.Join(lun, "disk"))
	set(t, filepath.Join(group, "attrib/authentication"), "0")
	for _, h := range hosts {
		h.wire(t)
		// Its socket is of the namespace of who makes the folder. ip-netns would hide configfs.
		must(t, "nsenter", "--net=/run/netns/"+netns, "mkdir", "-p", filepath.Join(group, "np", h.portal()+":"+port))
		acl := filepath.Join(group, "acls", h.iqn())
		if err := os.MkdirAll(filepath.Join(acl, "lun_0"), 0o755); err != nil {
			t.Fatal(err)
		}
		link(t, lun, filepath.Join(acl, "lun_0/disk"))
	}
	set(t, filepath.Join(group, "enable"), "1")
}

func link(t testing.TB, to, at string) {
	t.Helper()
	if err := os.Symlink(to, at); err != nil {
		t.Fatal(err)
	}
}

// wire makes the host's cable to the target.
func (h *host) wire(t testing.TB) {
	t.Helper()
	near, far := h.cable(), h.cable()+"-target"
	must(t, "ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", netns)
	must(t, "ip", "addr", "add", fmt.Sprintf("10.%d.0.2/24", h.number), "dev", near)
	must(t, "ip", "link", "set", near, "up")
	must(t, "ip", "netns", "exec", netns, "ip", "addr", "add", h.portal()+"/24", "dev", far)
	must(t, "ip", "netns", "exec", netns, "ip", "link", "set", far, "up")
}

// pull pulls the cable at the target's end: the host does not see that, only that nobody answers. The returned function
// puts it back, as the end of the part does.
func (h *host) pull(t *testing.T) (plug func()) {
	t.Helper()
	h.idle(t)
	link := func(state string) {
		out, err := exec.Command("ip", "netns", "exec", netns, "ip", "link", "set", h.cable()+"-target", state).CombinedOutput()
		if err != nil {
			t.Errorf("the cable of host %s: %s: %v: %s", h.name, state, err, out)
		}
	}
	link("down")
	plug = sync.OnceFunc(func() { link("up") })
	t.Cleanup(plug)
	return plug
}

// login makes the host's session with the target and finds its disk.
func (h *host) login(t testing.TB) {
	t.Helper()
	must(t, "iscsistart", "-i", h.iqn(), "-t", targetIQN, "-g", "1", "-a", h.portal(), "-p", port)
	var timeout string
	eventually(t, "host "+h.name+" sees the LUN", func() bool {
		sessions, _ := filepath.Glob("/sys/class/iscsi_session/session*")
		for _, s := range sessions {
			if name, _ := os.ReadFile(filepath.Join(s, "initiatorname")); strings.TrimSpace(string(name)) != h.iqn() {
				continue
			}
			disks, _ := filepath.Glob(filepath.Join(s, "device/target*/*/block/*"))
			if len(disks) == 1 {
				name := filepath.Base(disks[0])
				h.disk = "/dev/" + name
				timeout = filepath.Join("/sys/block", name, "device/timeout")
				_, err := os.Stat(h.disk)
				_, terr := os.Stat(timeout)
				return err == nil && terr == nil
			}
		}
		return false
	})
	// A request that is on its way when the cable is pulled is to be neither repeated nor given up.
	set(t, timeout, "600")
}
