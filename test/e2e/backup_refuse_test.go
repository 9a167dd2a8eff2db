package e2e

import (
	"os"
	"syscall"
	"testing"

	"github.com/virt-cow/virt-cow/test/lab/pki"
)

// refused: what can't be backed up, or not by this image node, is refused in clear words, and nothing is left.
func (r *rescue) refused(t *testing.T) {
	t.Helper()
	on := r.on()
	backup := func(code int, says []string, flags ...string) {
		t.Helper()
		on.exits(t, code, says, append([]string{"backup", "domain", "--quiesce", "off"}, flags...)...)
	}
	backup(1, []string{"nosuch"}, "nosuch")
	backup(2, []string{"g1", "vdz"}, "g1", "--exclude", "vdz")
	on.exits(t, 1, []string{"nosuch"}, "backup", "volume", "nosuch")
	on.exits(t, 1, []string{"--quiesce=require", "qemu-guest-agent"}, "backup", "domain", "g1", "--quiesce", "require")

	t.Log("== a disk that is not ours")
	image := on.file(t, "foreign.raw", "")
	must(t, os.Truncate(image, 1<<20))
	on.virsh(t, "attach-disk", "g1", image, "vdx", "--live", "--driver", "qemu", "--subdriver", "raw")
	backup(1, []string{"vdx", "foreign.raw", "--exclude", "--leave-foreign"}, "g1")
	on.virsh(t, "detach-disk", "g1", "vdx", "--live")
	eventually(t, "the disk is gone", func() bool {
		out, err := on.Virsh(t.Context(), "domblkinfo", "g1", "vdx")
		return err != nil || out == ""
	})

	t.Log("== the image node does not know the host")
	config := r.config(t, r.node)
	restart := func() {
		t.Helper()
		must(t, r.process.Stop(syscall.SIGTERM))
		r.startNode(t)
	}
	r.configure(t, r.node.Host, "[image_node]\nhosts = [\"hb-ctl\"]\n[archive]\nuri = \"/var/lib/archive\"\n")
	restart()
	backup(1, []string{"image node", "ha-ctl", "[image_node]"}, "g1")
	must(t, os.WriteFile(r.node.Path("/etc/virt-cow/config.toml"), []byte(config), 0o644))

	t.Log("== its certificate is another authority's")
	foreign, err := pki.New("another authority")
	must(t, err)
	must(t, r.node.SetCertificate(nil, foreign))
	restart()
	backup(1, []string{"image node", "hc-ctl", "another CA"}, "g1")
	must(t, r.node.SetCertificate(nil, nil))

	t.Log("== its passphrase is wrong")
	must(t, os.WriteFile(r.node.Path("/etc/virt-cow/archive.passphrase"), []byte("another one\n"), 0o600))
	restart()
	backup(1, []string{"wrong passphrase", "archive.passphrase"}, "g1")
	must(t, os.WriteFile(r.node.Path("/etc/virt-cow/archive.passphrase"), []byte(passphrase+"\n"), 0o600))
	r.nothingLeft(t, 0)
}
