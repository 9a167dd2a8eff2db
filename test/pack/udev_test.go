package pack

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/virt-cow/virt-cow/test/machine"
)

// TestUdev has udev's rules say what they would do with a disk that has a physical volume of LVM on it.
func TestUdev(t *testing.T) {
	t.Parallel()
	m, pkg := installed(t, machine.Config{Plain: true})
	run(t, m, "dpkg", "-i", pkg)
	disk := m.Loop(t, 64<<20)
	run(t, m, "pvcreate", "--devices", disk, disk)
	rules := func() string {
		return run(t, m, "udevadm", "test", "--action=change", "/sys/block/"+filepath.Base(disk))
	}
	// Without a word of the site's it is the host's.
	if out := rules(); !strings.Contains(out, "ID_FS_TYPE=LVM2_member") || !strings.Contains(out, "pvscan") {
		t.Fatalf("LVM would not look at a disk of the host's: %s", out)
	}
	write(t, m, "/etc/udev/rules.d/61-guests.rules", `SUBSYSTEM=="block", KERNEL=="`+filepath.Base(disk)+`", ENV{VIRT_COW_GUEST}="1"`+"\n")
	out := rules()
	if strings.Contains(out, "ID_FS_TYPE=LVM2_member") || strings.Contains(out, "pvscan") {
		t.Errorf("LVM would look at a guest's disk: %s", out)
	}
	for _, property := range []string{"UDISKS_IGNORE=1", "SYSTEMD_READY=0"} {
		if !strings.Contains(out, property) {
			t.Errorf("a guest's disk is without %s: %s", property, out)
		}
	}
}
