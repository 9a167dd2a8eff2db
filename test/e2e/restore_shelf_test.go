package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/archive"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/test/lab"
)

// shelf is a host with an archive, and in that a backup of a guest that this host never had: two disks, an NVRAM, a TPM's state.
type shelf struct {
	*bed
	site    *lab.Site
	archive archive.Config
	backup  string
	disks   map[string][]byte // by target
	state   map[string][]byte // by name in the backup
}

const shelfDisk = 3 << 20 // bytes

func newShelf(t *testing.T) *shelf {
	t.Helper()
	const uri, phrase = "/var/lib/archive", "/var/lib/archive.passphrase"
	t.Parallel()
	log := &keptLog{}
	env := []string{"VIRT_COW_ARCHIVE=" + uri, "VIRT_COW_ARCHIVE_PASSPHRASE_FILE=" + phrase}
	s := &shelf{site: lab.SiteFor(t, lab.SiteConfig{Names: []string{"ha"}, Host: lab.Config{Log: log, Env: env}})}
	h := s.site.Hosts[0]
	s.bed = &bed{Host: h, vc: h.VirtCow(program), log: log}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("what the host's processes said:\n" + log.String())
		}
	})
	_, err := h.Define(t.Context(), lab.GuestConfig{Name: "g1", OS: lab.UEFI(nvramsDir + "/g1_VARS.fd"), Devices: tpmXML + diskXML("vda", "old-vda"), Metadata: metadataOf(t, "vdb", "old-vdb")})
	must(t, err)
	_, err = s.vc.StartDaemon(t.Context())
	must(t, err)
	s.archive = archive.Config{URI: s.Path(uri), PassphraseFile: s.Path(phrase), Log: zerolog.Nop()}
	must(t, os.WriteFile(s.archive.PassphraseFile, []byte(passphrase+"\n"), 0o600))
	s.disks = map[string][]byte{"vda": bytes.Repeat([]byte("boot!"), shelfDisk/5+1)[:shelfDisk], "vdb": append(bytes.Repeat([]byte("data."), shelfDisk/10), make([]byte, shelfDisk)...)[:shelfDisk]}
	s.state = map[string][]byte{"nvram": bytes.Repeat([]byte("var"), 1000), "tpm/tpm2-00.permall": []byte("keys")}
	definition := s.virsh(t, "dumpxml", "--inactive", "g1")
	must(t, archive.Create(t.Context(), s.archive))
	s.backup = s.put(t, &api.Manifest{Version: 1, Domain: "g1", UUID: s.virsh(t, "domuuid", "g1"), XML: definition, InactiveXML: definition})
	s.virsh(t, "undefine", "--nvram", "g1")
	return s
}

// diskXML is a disk of a definition that is a volume.
func diskXML(target, volume string) string {
	return fmt.Sprintf(`<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd' name='%[2]s'>
  <host transport='unix' socket='/run/virt-cow/%[2]s.sock'/></source><target dev='%[1]s' bus='virtio'/></disk>`, target, volume)
}

// metadataOf has a domain get a volume that its definition does not name.
func metadataOf(t *testing.T, target, volume string) string {
	t.Helper()
	return fmt.Sprintf(`<virtcow:disks xmlns:virtcow=%q><virtcow:disk volume=%q store="/gone" target=%q/></virtcow:disks>`, libvirtx.Namespace, volume, target)
}

// put enters a backup of the disks and the state into the archive.
func (s *shelf) put(t *testing.T, m *api.Manifest) string {
	t.Helper()
	ctx := t.Context()
	a, err := archive.Open(ctx, s.archive)
	must(t, err)
	defer a.Close(ctx)
	w, err := a.Begin(ctx, archive.Meta{Domain: m.Domain, UUID: m.UUID, Host: "elsewhere", Job: uuid.NewString(), Time: time.Now()})
	must(t, err)
	for target, data := range s.disks {
		d, err := w.Disk(target, shelfDisk, 1<<20)
		must(t, err)
		for i := range shelfDisk >> 20 {
			must(t, d.Write(ctx, i, data[i<<20:(i+1)<<20]))
		}
	}
	for _, target := range []string{"vda", "vdb"} {
		m.Disks = append(m.Disks, api.ManifestDisk{Target: target, Volume: "old-" + target, Size: shelfDisk})
	}
	m.Files = map[string][]byte{}
	for name, data := range s.state {
		must(t, w.File(ctx, name, data))
		m.Files[name] = nil
	}
	text, err := json.Marshal(m)
	must(t, err)
	id, err := w.Finish(ctx, text)
	must(t, err)
	return id
}

// refused has a restore fail with this exit code, saying all of this.
func (s *shelf) refused(t *testing.T, code int, says string, args ...string) {
	t.Helper()
	cmd := s.Command(t.Context(), program, append([]string{"restore", "domain"}, args...)...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if cmd.ProcessState.ExitCode() != code || !strings.Contains(string(out), says) {
		t.Errorf("%q: exit code %d, want %d and %q:\n%s", args, cmd.ProcessState.ExitCode(), code, says, out)
	}
}

// assertNothing fails if a restore has left anything: domain, volume, file, state, intent.
func (s *shelf) assertNothing(t *testing.T, domain string) {
	t.Helper()
	var left []string
	for _, pattern := range []string{
		"/var/lib/libvirt/images/*", nvramsDir + "/*", "/var/lib/libvirt/swtpm/*", "/var/lib/virt-cow/restores/*.json*", "/var/lib/virt-cow/restores/*.xml", "/var/lib/virt-cow/stores/*",
	} {
		found, err := filepath.Glob(s.Path(pattern))
		must(t, err)
		left = append(left, found...)
	}
	l, err := s.daemon().Volumes(t.Context())
	must(t, err)
	if out := s.virsh(t, "list", "--all", "--name"); strings.Contains(out, domain) || len(left) > 0 || len(l.Volumes) > 0 {
		t.Fatalf("left: %v, volumes %+v, domains %q", left, l.Volumes, out)
	}
}

// assertWhole fails unless a domain is whole: disks, volumes, state, and no intent.
func (s *shelf) assertWhole(t *testing.T, domain string) {
	t.Helper()
	for target, data := range s.disks {
		got, err := os.ReadFile(s.Path("/var/lib/libvirt/images/" + domain + "-" + target + ".raw"))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("disk %s is not whole: %v", target, err)
		}
		if v, err := s.daemon().Volume(t.Context(), domain+"-"+target); err != nil || v.State != api.StateReady || v.Origin != "/var/lib/libvirt/images/"+v.Name+".raw" {
			t.Errorf("%+v %v", v, err)
		}
	}
	id := s.virsh(t, "domuuid", domain)
	for name, path := range map[string]string{"nvram": nvramsDir + "/" + domain + "_VARS.fd", "tpm/tpm2-00.permall": "/var/lib/libvirt/swtpm/" + id + "/tpm2/tpm2-00.permall"} {
		if got, err := os.ReadFile(s.Path(path)); err != nil || !bytes.Equal(got, s.state[name]) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if left, _ := filepath.Glob(s.Path("/var/lib/virt-cow/restores/*.json")); len(left) > 0 {
		t.Error(left)
	}
	for _, f := range doctor(t, s.vc)["restores"] {
		if f.Result != "ok" {
			t.Errorf("%+v", f)
		}
	}
}

// forget takes a restored domain away, whole.
func (s *shelf) forget(t *testing.T, domain string) {
	t.Helper()
	id := s.virsh(t, "domuuid", domain)
	s.virsh(t, "undefine", "--nvram", domain)
	for target := range s.disks {
		eventually(t, "its volume is free", func() bool {
			_, err := s.vc.Run(t.Context(), "volume", "delete", domain+"-"+target)
			return err == nil
		})
		must(t, os.Remove(s.Path("/var/lib/libvirt/images/"+domain+"-"+target+".raw")))
	}
	must(t, os.RemoveAll(s.Path("/var/lib/libvirt/swtpm/"+id)))
	s.assertNothing(t, domain)
}
