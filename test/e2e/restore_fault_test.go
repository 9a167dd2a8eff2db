package e2e

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/test/lab"
)

// TestRestoreRefused: what can't be restored is refused before anything is written, and what fails later leaves nothing.
func TestRestoreRefused(t *testing.T) {
	s := newShelf(t)
	b, other := s.backup, s.file(t, "other.raw", "")
	must(t, os.Truncate(other, 1<<20))
	refused := func(code int, says string, args ...string) {
		t.Helper()
		s.refused(t, code, says, args...)
		s.assertNothing(t, "g1")
	}
	refused(1, "no such backup", strings.Repeat("0", 32))
	refused(1, "has no disk vdz: it has vda, vdb", b, "--disk", "vdz=/tmp/x")
	refused(2, "vda is named twice", b, "--disk", "vda=/tmp/x", "--disk", "vda=/tmp/y")
	refused(2, "say which disk goes where", b, "--disk", "/tmp/x")
	refused(1, "another disk's place", b, "--disk", "vda=/tmp/x", "--disk", "vdb=/tmp/../tmp/x")
	refused(1, "is no name for a domain", b, "--as", "../g1")
	refused(1, "is there already", b, "--disk", "vda="+other)
	refused(1, "neither a file nor a block device", b, "--disk", "vda=/tmp", "--force")

	s.run(t, "store", "create", "--size", "1M", s.Dir+"/some.vcow")
	refused(1, "is a virt-cow store", b, "--disk", "vda="+s.Dir+"/some.vcow", "--force")
	small, err := s.site.NewDisk(lab.DiskConfig{Name: "small", Size: 1 << 20})
	must(t, err)
	refused(1, "1048576 bytes, and 3145728 are needed", b, "--disk", "vda="+small.Path, "--force")

	// Of two devices the second is another host's: the first stays as it is.
	before := map[string][]byte{}
	var over []string
	for _, target := range []string{"vda", "vdb"} {
		device, err := s.site.NewDisk(lab.DiskConfig{Name: "store-" + target, Size: 2 * shelfDisk})
		must(t, err)
		s.run(t, "store", "create", "--size", "1M", "--name", "some-"+target, device.Path)
		over = append(over, "--disk", target+"="+device.Path)
		if target == "vdb" {
			s.openElsewhere(t, device.Path)
		}
		before[device.Path], err = os.ReadFile(s.Path(device.Path))
		must(t, err)
	}
	refused(4, "open on another host", append(over, b, "--force")...)
	for device, was := range before {
		if now, err := os.ReadFile(s.Path(device)); err != nil || !bytes.Equal(now, was) {
			t.Errorf("%s was written to: %v", device, err)
		}
	}

	text := strings.ReplaceAll(fullQ35, "DISK", other)
	must(t, s.DefineXML(t.Context(), text))
	refused(4, "is its disk vda: in use", b, "--disk", "vda="+other, "--force")
	refused(4, "exists already", b, "--as", "full")
	s.virsh(t, "undefine", "full")

	foreign, err := s.Start("qemu-nbd", "-t", "-f", "raw", "-k", "/run/foreign.sock", other)
	must(t, err)
	eventually(t, "somebody's QEMU has the file", func() bool { return listens(s.Path("/run/foreign.sock")) })
	refused(4, "has it open", b, "--disk", "vda="+other, "--force")
	must(t, foreign.Stop(syscall.SIGTERM))

	m := api.Manifest{Version: 1, Domain: "v", UUID: "6f0a4c1e-5d1b-4d0e-9d51-7f6d2d2f7c11"}
	refused(1, "`virt-cow restore disk`", s.put(t, &m))

	// A domain with the same UUID under another name; and state that is somebody's.
	s.restoreDomain(t, b, "--keep-identity")
	s.refused(t, 4, "exists already", b)
	s.refused(t, 4, "without --keep-identity", b, "--keep-identity", "--as", "g2")
	nvram := s.Path(nvramsDir + "/g1_VARS.fd")
	s.forget(t, "g1")
	must(t, os.WriteFile(nvram, []byte("somebody's"), 0o600))
	s.refused(t, 1, "with --force it is lost", b)
	must(t, os.Remove(nvram))
	s.assertNothing(t, "g1")

	must(t, os.WriteFile(s.archive.PassphraseFile, []byte("wrong\n"), 0o600))
	refused(1, "passphrase", b)
	must(t, os.WriteFile(s.archive.PassphraseFile, []byte(passphrase+"\n"), 0o600))

	// No space for the second disk.
	_, err = s.Run(t.Context(), "sh", "-c", "mkdir /var/lib/small && mount -t tmpfs -o size=4m none /var/lib/small")
	must(t, err)
	refused(1, "no space", b, "--folder", "/var/lib/small")
	if left, err := os.ReadDir(s.Path("/var/lib/small")); err != nil || len(left) > 0 {
		t.Error(left, err)
	}

	// A piece of a disk is damaged; a device and a file are written over.
	s.damage(t)
	lun := s.file(t, "lun", strings.Repeat("old.", shelfDisk/2))
	device, err := s.site.NewDisk(lab.DiskConfig{Name: "lun", File: lun})
	must(t, err)
	kernels, err := os.Readlink(s.Path(device.Path))
	must(t, err)
	refused(2, "this name may be another device's", b, "--disk", "vda="+filepath.Join("/dev", filepath.Base(kernels)), "--force")
	must(t, os.WriteFile(other, bytes.Repeat([]byte("older"), 1024*512/5), 0o600))
	must(t, os.Truncate(other, 1<<20))
	held, err := os.ReadFile(other)
	must(t, err)
	over = []string{b, "--disk", "vda=" + device.Path, "--disk", "vdb=" + other, "--force"}
	refused(1, "damaged", over...)
	if now, err := os.ReadFile(other); err != nil || !bytes.Equal(now, held) {
		t.Error("the file was touched, though its restore failed")
	}
	s.refused(t, 3, "zeros instead", append(over, "--skip-bad")...)
	for path, size := range map[string]int64{lun: 2 * shelfDisk, other: shelfDisk} {
		if st, err := os.Stat(path); err != nil || st.Size() != size {
			t.Errorf("%s: %v %v", path, st, err)
		}
	}
	got, err := os.ReadFile(lun)
	must(t, err)
	if bytes.Equal(got[:len("boot!")], []byte("old.o")) {
		t.Error("the device was not written over")
	}
	if l, err := s.daemon().Volumes(t.Context()); err != nil || len(l.Volumes) != 2 {
		t.Errorf("%+v %v", l, err)
	}
}

// damage spoils a piece in the archive that a disk needs.
func (s *shelf) damage(t *testing.T) {
	t.Helper()
	var largest string
	var size int64
	must(t, filepath.Walk(s.archive.URI, func(path string, st os.FileInfo, err error) error {
		if err == nil && st.Mode().IsRegular() && strings.HasPrefix(path, s.archive.URI+"/p") && st.Size() > size {
			largest, size = path, st.Size()
		}
		return err
	}))
	f, err := os.OpenFile(largest, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	_, err = f.WriteAt(make([]byte, 64), size/3)
	must(t, err)
	must(t, os.RemoveAll(s.Path("/var/cache/virt-cow")))
}

var errKilled = errors.New("killed")

// strace restores the guest with a signal at the first of these calls about a path.
func (s *shelf) strace(t *testing.T, path, call, signal string, flags ...string) (string, error) {
	t.Helper()
	args := []string{"-f", "-qq", "-o", "/dev/null", "-P", path, "-e", "trace=" + call, "-e", "inject=" + call + ":signal=" + signal,
		filepath.Join(filepath.Dir(program), "virt-cow-full"), "restore", "domain", s.backup}
	cmd := s.Command(t.Context(), "strace", append(args, flags...)...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() || cmd.ProcessState.ExitCode() == 128+int(syscall.SIGKILL) {
		err = errKilled
	}
	return string(out), err
}

// TestRestoreKilled kills a restore where it first does something to one thing after the other. The domain is defined only if all
// is whole; what was cut off says so, can be cleaned up, and can be begun anew.
func TestRestoreKilled(t *testing.T) {
	s := newShelf(t)
	const images, intent = "/var/lib/libvirt/images/", "/var/lib/virt-cow/restores/g1.json"
	out, err := s.strace(t, images+"g1-vda.raw.part", "pwrite64", "TERM")
	if err == nil || !strings.Contains(out, "interrupted") {
		t.Errorf("%v\n%s", err, out)
	}
	s.assertNothing(t, "g1")
	s.killOverDevice(t)
	for i, k := range []struct{ path, call string }{
		{intent + ".new", "fsync"},
		{images + "g1-vda.raw.part", "openat"},
		{images + "g1-vda.raw.part", "fstat"}, // made, not noted yet
		{images + "g1-vda.raw.part", "pwrite64"},
		{images + "g1-vdb.raw.part", "fsync"},
		{images + "g1-vda.raw.part", "linkat"},
		{images + "g1-vdb.raw.part", "linkat"}, // vda is a volume
		{nvramsDir + "/g1_VARS.fd.new", "renameat"},
		{intent, "unlinkat"}, // the domain is defined
	} {
		what := k.call + " of " + k.path
		out, err := s.strace(t, k.path, k.call, "KILL")
		killed := errors.Is(err, errKilled)
		list := s.virsh(t, "list", "--all", "--name")
		defined := strings.Contains(list, "g1")
		_, intended := os.Stat(s.Path(intent))
		t.Logf("%s: killed %t, domain %q, intent %v", what, killed, list, intended == nil)
		switch {
		case !killed:
			t.Fatalf("%s: %v\n%s", what, err, out)
		case defined:
			if out := s.run(t, "restore", "clean", "g1"); !strings.Contains(out, "had come to its end") {
				t.Error(out)
			}
			s.assertWhole(t, "g1")
			s.forget(t, "g1")
			continue
		}
		if intended == nil {
			s.refused(t, 4, "was cut off", s.backup)
			if f := doctor(t, s.vc)["restores"]; len(f) != 1 || f[0].Result != "warning" || !strings.Contains(f[0].Mend, "restore clean g1") {
				t.Errorf("doctor says %+v", f)
			}
			if i%2 == 0 {
				s.run(t, "restore", "clean", "g1")
				s.assertNothing(t, "g1")
				continue
			}
		}
		s.restoreDomain(t, s.backup, "--force")
		s.assertWhole(t, "g1")
		s.forget(t, "g1")
	}
}

// killOverDevice: a device whose restore was killed has no boot sector, until the next has made it whole.
func (s *shelf) killOverDevice(t *testing.T) {
	t.Helper()
	lun := s.file(t, "lun", strings.Repeat("old.", shelfDisk/2))
	device, err := s.site.NewDisk(lab.DiskConfig{Name: "lun", File: lun})
	must(t, err)
	flags := []string{"--disk", "vda=" + device.Path, "--force"}
	if out, err := s.strace(t, device.Path, "fdatasync", "KILL", flags...); !errors.Is(err, errKilled) {
		t.Fatal(err, out)
	}
	if got, err := os.ReadFile(lun); err != nil || !bytes.Equal(got[:1<<20], make([]byte, 1<<20)) {
		t.Errorf("half restored, its first MiB has %q: %v", got[:8], err)
	}
	o := s.restoreDomain(t, s.backup, flags...)
	if got, err := os.ReadFile(lun); err != nil || !bytes.Equal(got[:shelfDisk], s.disks["vda"]) {
		t.Errorf("the device is not whole: %q %v", got[:8], err)
	}
	s.virsh(t, "undefine", "--nvram", "g1")
	for _, d := range o.Disks {
		s.run(t, "volume", "delete", d.Volume)
	}
	must(t, os.Remove(s.Path(o.Disks[1].Path)))
	must(t, os.RemoveAll(s.Path("/var/lib/libvirt/swtpm/"+o.UUID)))
	s.assertNothing(t, "g1")
}
