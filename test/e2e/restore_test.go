package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/test/lab"
	"github.com/virt-cow/virt-cow/test/lab/records"
)

const (
	tpmXML    = `<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>`
	nvramsDir = "/var/lib/libvirt/qemu/nvram"

	// uefiVariable is one that the firmware keeps in its NVRAM, as a file of the guest.
	uefiVariable = "/sys/firmware/efi/efivars/VirtCow-c9f2a4a0-0f6b-4c3e-9d3b-8a8f7a4e5b61"
)

// outcome is what `restore domain --json` prints.
type outcome struct {
	UUID  string
	NVRAM string
	TPM   string
	Disks []struct{ Target, Path, Volume, Store string }
}

// restoreDomain restores a guest on a host.
func (b *bed) restoreDomain(t *testing.T, backup string, flags ...string) outcome {
	t.Helper()
	cmd := b.Command(t.Context(), program, append([]string{"--json", "restore", "domain", backup}, flags...)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &said)
	}
	var o outcome
	must(t, json.Unmarshal(out, &o))
	return o
}

// reads has a host read the archive of another.
func (b *bed) reads(t *testing.T, archive string) {
	t.Helper()
	must(t, os.WriteFile(b.Path("/etc/virt-cow/archive.passphrase"), []byte(passphrase+"\n"), 0o600))
	f, err := os.OpenFile(b.Path("/etc/virt-cow/config.toml"), os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o644)
	must(t, err)
	_, err = fmt.Fprintf(f, "[archive]\nuri = %q\ncache = \"/var/cache/virt-cow\"\n", archive)
	must(t, err)
	must(t, f.Close())
}

// TestRestoreDomain backs a guest up that has UEFI and a TPM, restores it beside itself on another host, and then, when it is gone, in
// its own place there: each time its disks are as at one instant, its state is as it was, and it boots.
func TestRestoreDomain(t *testing.T) {
	r := newRescueOf(t, rescueConfig{snapshots: 2, siteConfig: siteConfig{
		volumes: []string{"v1", "v2"}, made: clones(), guest: lab.GuestConfig{OS: lab.UEFI(nvramsDir + "/g1_VARS.fd"), Devices: tpmXML},
	}})
	on, to := r.on(), r.other()
	to.reads(t, filepath.Join(r.node.Dir, "lib/archive"))
	id := on.virsh(t, "domuuid", "g1")
	_, err := r.guest.Run(t.Context(), `printf '\7\0\0\0a variable of the guest' >`+uefiVariable)
	must(t, err)
	nvram := on.readNVRAM(t, "g1")
	tpm := on.tpmState(t, id)

	at := r.begins(t)
	on.run(t, "backup", "domain", "g1", "--quiesce", "off")
	r.atMost(t, &at)
	backup := r.jobs(t)[0].Backup
	if out, err := to.vc.Run(t.Context(), "restore", "domain", backup); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("restored over the guest: %v %s", err, out)
	}
	o := to.restoreDomain(t, backup, "--as", "copy", "--disk", "vdc=/var/lib/here/c.raw")
	if o.UUID == id || o.Disks[0].Volume != "copy-vdb" || o.Disks[1].Path != "/var/lib/here/c.raw" {
		t.Errorf("%+v", o)
	}
	to.isRestored(t, r, o, at, "copy", nvram, tpm)
	copied := to.CopyOf(r.guest, "copy")
	must(t, copied.Boot(t.Context()))
	hasVariable(t, copied)
	for _, d := range o.Disks {
		to.await(t, d.Volume, "attached", lab.Attached)
	}
	if now := on.stateOf(t.Context()); now != "running" {
		t.Errorf("the original is %s", now)
	}
	r.writes(t, 50)
	must(t, copied.Destroy(t.Context()))
	for _, d := range o.Disks {
		to.await(t, d.Volume, "off", off)
	}

	must(t, r.guest.Destroy(t.Context()))
	for _, b := range r.beds {
		b.virsh(t, "undefine", "g1", "--keep-nvram", "--keep-tpm")
	}
	o = to.restoreDomain(t, backup, "--keep-identity")
	if o.UUID != id || o.Disks[0].Volume != "g1-vdb" {
		t.Errorf("%+v", o)
	}
	to.isRestored(t, r, o, at, "g1", nvram, tpm)
	r.guest.MovedTo(to.Host)
	must(t, r.guest.Boot(t.Context()))
	hasVariable(t, r.guest)
	for _, d := range o.Disks {
		to.await(t, d.Volume, "attached", lab.Attached)
	}
	to.assertWell(t)
}

// hasVariable fails unless a guest's firmware has what the guest gave it before the backup.
func hasVariable(t *testing.T, g *lab.Guest) {
	t.Helper()
	out, err := g.Run(t.Context(), "tail -c +5 "+uefiVariable)
	if must(t, err); out != "a variable of the guest" {
		t.Errorf("the variable is %q", out)
	}
}

// readNVRAM is what a domain's has.
func (b *bed) readNVRAM(t *testing.T, domain string) []byte {
	t.Helper()
	text, err := os.ReadFile(b.Path(nvramsDir + "/" + domain + "_VARS.fd"))
	must(t, err)
	return text
}

// tpmState are the files of a domain's TPM.
func (b *bed) tpmState(t *testing.T, id string) map[string]string {
	t.Helper()
	paths, err := filepath.Glob(b.Path("/var/lib/libvirt/swtpm/" + id + "/tpm2/*"))
	must(t, err)
	state := map[string]string{}
	for _, p := range paths {
		if strings.HasPrefix(filepath.Base(p), ".") { // its lock
			continue
		}
		text, err := os.ReadFile(p)
		must(t, err)
		state[filepath.Base(p)] = string(text)
	}
	if len(state) == 0 {
		t.Fatal("the TPM has no state: this test proves nothing")
	}
	return state
}

// isRestored fails unless the disks of a restored domain that was not started yet are as at one instant, and its state is as it was.
func (b *bed) isRestored(t *testing.T, r *rescue, o outcome, at beganAt, name string, nvram []byte, tpm map[string]string) {
	t.Helper()
	if got := b.readNVRAM(t, name); !bytes.Equal(got, nvram) {
		t.Error("the NVRAM differs")
	}
	if got := b.tpmState(t, o.UUID); fmt.Sprint(got) != fmt.Sprint(tpm) {
		t.Error("the TPM's state differs")
	}
	for i, v := range r.volumes {
		k := at.checkers[v]
		f, err := os.Open(b.Path(o.Disks[i].Path))
		must(t, err)
		defer f.Close()
		b.verify(t, f, at.logs[v])
		upTo, err := records.GuestWriter(k.Slots, k.Seed).Instant(f, at.held[v], func(n int) []byte { return make([]byte, n) })
		must(t, err)
		var sum uint64
		for _, n := range upTo {
			sum += n
		}
		if sum > uint64(at.most[v]+len(upTo)) {
			t.Errorf("%s holds %d writes, but the guest had made %d", o.Disks[i].Volume, sum, at.most[v])
		}
		r.untouched(t, v, f, k.Slots)
		st, err := b.daemon().Volume(t.Context(), o.Disks[i].Volume)
		must(t, err)
		if st.Origin != o.Disks[i].Path || st.State != api.StateReady {
			t.Errorf("%+v", st)
		}
	}
}
