package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// qemuConf lets libvirtd run QEMU without D-Bus, cgroups, AppArmor or virtlogd.
func qemuConf(user string) string {
	if user == "" {
		user = "root"
	}
	return fmt.Sprintf(`security_driver = "none"
user = "%[1]s"
group = "%[1]s"
swtpm_user = "root"
swtpm_group = "root"
namespaces = []
cgroup_controllers = []
remember_owner = 0
stdio_handler = "file"
`, user)
}

func libvirtdConf(hostUUID string) string {
	return fmt.Sprintf(`host_uuid = "%s"
listen_tls = 0
unix_sock_group = "root"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
`, hostUUID)
}

// writeConfig fills a host's folder: what is bound over /etc/libvirt, /var/lib, /var/log and /var/cache.
func (h *Host) writeConfig() error {
	dir, qemuUser := h.Dir, h.qemuUser
	for _, d := range []string{"bin", "etc/hooks", "pki", "lib/libvirt/qemu", "log/libvirt/qemu", "cache/libvirt/qemu", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	users, err := withLine(filepath.Join(h.root, "/etc/passwd"), "libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin")
	if err != nil {
		return err
	}
	groups, err := withLine(filepath.Join(h.root, "/etc/group"), "libvirt-qemu:x:64055:")
	if err != nil {
		return err
	}
	files := map[string]string{
		"passwd":            users,
		"group":             groups,
		"etc/qemu.conf":     qemuConf(qemuUser),
		"etc/libvirtd.conf": libvirtdConf(h.uuid.String()),
		"etc/libvirt.conf":  "",
	}
	if h.site != nil {
		h.siteConfig(files)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if qemuUser == "" {
		return nil
	}
	// QEMU comes to its files through these, and opens its serial port's log itself.
	return errors.Join(os.Chmod(dir, 0o711), os.Chmod(filepath.Join(dir, "log/libvirt/qemu"), 0o777))
}

// withLine is a file of the host's system with a user or group added if it has none of that name: libvirtd wants
// the user libvirt-qemu to exist even where its configuration names another, and only the package
// libvirt-daemon-system, which the lab does not need, makes it.
func withLine(path, line string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	name, _, _ := strings.Cut(line, ":")
	if strings.Contains("\n"+string(b), "\n"+name+":") {
		return string(b), nil
	}
	return strings.TrimRight(string(b), "\n") + "\n" + line + "\n", nil
}
