package e2e

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/test/lab"
)

type finding struct{ Check, Result, Seen, Why, Mend string }

// doctor is what doctor finds on the host, by the names of the checks.
func doctor(t *testing.T, vc *lab.VirtCow) map[string][]finding {
	t.Helper()
	out, _ := vc.Run(t.Context(), "doctor", "--json") // fails: something is never well on a lab host
	var all struct{ Findings []finding }
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&all); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	found := map[string][]finding{}
	for _, f := range all.Findings {
		found[f.Check] = append(found[f.Check], f)
	}
	return found
}

// assertSound waits until doctor finds nothing wrong by these checks, and returns what it finds: who is busy may not answer it at once.
func assertSound(t *testing.T, vc *lab.VirtCow, checks ...string) map[string][]finding {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		found := doctor(t, vc)
		var wrong []finding
		for _, check := range checks {
			for _, f := range found[check] {
				if f.Result == "problem" || f.Result == "warning" && check != "certificates" { // the lab's are good for a day
					wrong = append(wrong, f)
				}
			}
		}
		if len(wrong) == 0 {
			return found
		}
		if time.Now().After(deadline) {
			t.Errorf("doctor still says after a minute: %+v", wrong)
			return found
		}
	}
}

// fullQ35 is a guest with a disk of ours to come and no port left to plug it into: QEMU and libvirt give it one root
// port, and the disk has it.
const fullQ35 = `<domain type='qemu'><name>full</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<metadata><virtcow:disks xmlns:virtcow="http://virt-cow.org/xmlns/libvirt/domain/1.0">
<virtcow:disk volume="x" store="/nowhere" target="vdz"/></virtcow:disks></metadata>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<controller type='pci' index='0' model='pcie-root'/><controller type='pci' index='1' model='pcie-root-port'/>
<controller type='usb' model='none'/><memballoon model='none'/>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='DISK'/><target dev='vda' bus='virtio'/></disk>
</devices></domain>`

// TestDoctor follows its advice on a real libvirtd: no hook, a hook that libvirtd does not know of, all well.
func TestDoctor(t *testing.T) {
	t.Parallel()
	h := lab.For(t, lab.Config{})
	vc := h.VirtCow(program)
	if f := doctor(t, vc)["daemon"]; len(f) != 1 || f[0].Result != "problem" || !strings.Contains(f[0].Mend, "systemctl enable --now virt-cow") {
		t.Errorf("daemon: %+v", f)
	}
	if _, err := vc.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	disk := h.Dir + "/full.raw"
	must(t, os.WriteFile(disk, make([]byte, 1<<20), 0o666))
	must(t, h.DefineXML(t.Context(), strings.Replace(fullQ35, "DISK", disk, 1)))
	if _, err := h.Virsh(t.Context(), "start", "full", "--paused"); err != nil {
		t.Fatal(err)
	}
	_, err := vc.Await(t.Context(), "x", "failed", failed("/nowhere"))
	must(t, err)
	found := doctor(t, vc)
	if f := found["libvirt"]; len(f) != 1 || f[0].Result != "ok" {
		t.Errorf("libvirt: %+v", f)
	}
	if f := found["PCI ports"]; len(f) != 1 || f[0].Result != "warning" || !strings.Contains(f[0].Mend, "virsh edit full") {
		t.Errorf("PCI ports: %+v", f)
	}
	if f := found["daemon"]; len(f) == 0 || f[0].Result == "ok" || !strings.Contains(f[0].Seen, "/nowhere") && !strings.Contains(f[0].Seen, "x") {
		t.Errorf("daemon: %+v", f)
	}
	f := found["hook"]
	if len(f) != 1 || f[0].Result != "problem" || !strings.Contains(f[0].Seen, "there is none") {
		t.Fatalf("hook: %+v", f)
	}
	install, _, _ := strings.Cut(f[0].Mend, " && systemctl")
	if _, err := h.Run(t.Context(), "sh", "-c", strings.Replace(install, "virt-cow", program, 1)); err != nil {
		t.Fatal(err)
	}
	if f := doctor(t, vc)["hook"]; len(f) != 1 || f[0].Result != "problem" || !strings.Contains(f[0].Mend, "systemctl reload libvirtd") {
		t.Errorf("hook that libvirtd does not know of: %+v", f)
	}
}
