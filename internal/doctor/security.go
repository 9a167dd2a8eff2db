package doctor

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

func appArmor(_ context.Context, h *Host) []Finding {
	if on, _ := h.read("/sys/module/apparmor/parameters/enabled"); on != "Y" {
		return well("not in use")
	}
	if h.qemuConf("security_driver") == "none" {
		return well("not in use for guests: security_driver is none in qemu.conf")
	}
	profiles, err := h.read("/sys/kernel/security/apparmor/profiles")
	if err != nil {
		return unread(err)
	}
	if !strings.Contains(profiles, "virt-aa-helper") && !strings.Contains(profiles, "libvirtd") && !strings.Contains(profiles, "libvirt-") {
		return well("has no profiles for libvirt")
	}
	// The rules may be ours, or the admin's own.
	own := "/etc/apparmor.d/local/abstractions/libvirt-qemu"
	places := append(h.glob("/etc/apparmor.d/abstractions/libvirt-qemu.d/*"), own)
	included := h.contains("/etc/apparmor.d/abstractions/libvirt-qemu", "abstractions/libvirt-qemu.d")
	runDir := h.Config.Config.RunDir
	for _, p := range places {
		counts := p == own || included || h.contains(own, filepath.Base(filepath.Dir(p))+"/"+filepath.Base(p))
		if counts && h.contains(p, strings.TrimPrefix(runDir, "/")+"/") {
			return well("%s lets guests connect to our sockets", p)
		}
	}
	return []Finding{{
		Result: Problem, Seen: "no rule lets guests connect to sockets in " + runDir,
		Why:  "QEMU is refused its disk with \"Permission denied\": libvirt makes no rule for the socket of an NBD disk",
		Mend: "mkdir -p " + filepath.Dir(own) + " && echo '  " + runDir + "/*.sock rw,' >>" + own + " # guests that run have it after their next start",
	}}
}

func (h *Host) contains(path, text string) bool {
	b, err := os.ReadFile(h.path(path))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); strings.Contains(line, text) && (!strings.HasPrefix(line, "#") || strings.HasPrefix(line, "#include")) {
			return true
		}
	}
	return false
}

func seLinux(_ context.Context, h *Host) []Finding {
	switch mode, err := h.read("/sys/fs/selinux/enforce"); {
	case err != nil:
		return well("not in use")
	case mode != "1":
		return well("permissive")
	}
	if h.qemuConf("security_driver") == "none" {
		return well("not in use for guests: security_driver is none in qemu.conf")
	}
	for _, pattern := range []string{"/var/lib/selinux/*/active/modules/*/virt_cow", "/etc/selinux/*/active/modules/*/virt_cow"} {
		if len(h.glob(pattern)) > 0 {
			return well("enforcing, with the module virt_cow")
		}
	}
	return []Finding{{
		Result: Problem, Seen: "enforcing, without the module virt_cow", Why: "QEMU is refused its disk's socket",
		Mend: "make -C /usr/share/virt-cow/selinux -f /usr/share/selinux/devel/Makefile virt_cow.pp && " +
			"semodule -i /usr/share/virt-cow/selinux/virt_cow.pp && " +
			"restorecon -R /usr/bin/virt-cow /usr/lib/virt-cow /var/lib/virt-cow /var/log/virt-cow " + quote(h.Config.Config.RunDir) +
			" && systemctl restart virt-cow && virt-cow volume restart --all # QEMU may connect to programs of the label only",
	}}
}

var (
	lvmFilter  = regexp.MustCompile(`(?m)^\s*(global_filter|filter)\s*=\s*\[[^\]]*"r[^a-zA-Z0-9]`)
	lvmDevices = regexp.MustCompile(`(?m)^[ \t]*(#?)[ \t]*use_devicesfile\s*=\s*([01])`)
	guestRule  = regexp.MustCompile(`(?m)^[^#\n]*VIRT_COW_GUEST}="1"`)
)

// usesDevicesFile goes by the last line that sets it; where none does, by the comment with the default that LVM was built with.
func usesDevicesFile(text string) bool {
	set, byDefault := "", ""
	for _, m := range lvmDevices.FindAllStringSubmatch(text, -1) {
		if m[1] == "" {
			set = m[2]
		} else {
			byDefault = m[2]
		}
	}
	return cmp.Or(set, byDefault) == "1"
}

// lvm looks for what keeps the host from activating volume groups that it sees on guests' disks.
func lvm(_ context.Context, h *Host) []Finding {
	if !h.exists("/etc/lvm/lvm.conf") && !h.exists("/sbin/lvm") && !h.exists("/usr/sbin/lvm") {
		return well("not installed")
	}
	text := ""
	for _, f := range []string{"/etc/lvm/lvm.conf", "/etc/lvm/lvmlocal.conf"} {
		t, _ := h.read(f)
		text += t + "\n"
	}
	switch {
	case lvmFilter.MatchString(text):
		return well("lvm.conf has a filter that rejects devices")
	case usesDevicesFile(text) && h.exists("/etc/lvm/devices/system.devices"):
		return well("looks only at the devices in /etc/lvm/devices/system.devices")
	}
	f := Finding{
		Result: Warning, Seen: "LVM looks at every block device of this host",
		Why: "a guest's volume group on a LUN looks like the host's own: once both have it active, two kernels write to it",
		Mend: "lvmdevices --adddev /dev/HOSTDISK for the host's own disks, and use_devicesfile=1 in [devices] of /etc/lvm/lvm.conf; " +
			"or a global_filter there that rejects all others",
	}
	for _, p := range append(h.glob("/etc/udev/rules.d/*.rules"), h.glob("/usr/lib/udev/rules.d/*.rules")...) {
		if b, err := os.ReadFile(h.path(p)); err == nil && guestRule.Match(b) {
			f.Seen += "; by event it leaves those that " + p + " names alone"
			f.Why = "vgchange -ay by hand or by a script would still activate guests' volume groups"
			return []Finding{f}
		}
	}
	return []Finding{f}
}

// qemuConf is a setting of libvirt's qemu.conf, "" if it is not there.
func (h *Host) qemuConf(key string) string {
	text, err := h.read("/etc/libvirt/qemu.conf")
	if err != nil {
		return ""
	}
	value := ""
	for line := range strings.Lines(text) {
		name, rest, ok := strings.Cut(line, "=")
		if ok && strings.TrimSpace(name) == key {
			rest, _, _ = strings.Cut(strings.TrimSpace(rest), " #")
			value = strings.Trim(strings.TrimSpace(rest), `"'`)
		}
	}
	return value
}
