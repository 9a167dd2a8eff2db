package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// A raw disk with a state store beside it: served as it is, killed, served again, and never given a header.
func TestRawDisk(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"file", "512", "4096"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			want := b.image("disk", 3*mib)
			disk := b.path("disk")
			if kind != "file" {
				need(t, "root", "losetup")
				disk = b.loop("disk", "--sector-size", kind)
			}
			b.run("store", "create", "--raw", disk, b.path("v.state")).exits(0).says("volume v, 3 MiB, the raw disk " + disk)
			if !bytes.Equal(b.read("disk"), want) {
				t.Fatal("making the state store changed the raw disk")
			}
			i := b.info("v.state")
			if i.Role != "state" || i.Origin != disk || i.Size != 3*mib || i.Room != mib {
				t.Errorf("%+v", i)
			}
			b.run("store", "info", b.path("v.state")).exits(0).says("raw disk", disk)
			b.run("store", "verify", b.path("v.state")).exits(0).says("ok")
			b.run("store", "dump", b.path("v.state")).exits(0).says("raw " + disk)
			s := b.serve("v.state")
			if st := s.status(); st.Target != "linear" || st.Cache != "on" || st.Size != 3*mib || st.Origin != disk {
				t.Errorf("%+v", st)
			}
			dev := s.dial()
			holds(t, dev, want, 0)
			// A header of ours in the guest's first sectors is the guest's business.
			header := b.read("v.state")[:64<<10]
			for i := range 30 {
				w := noise(uint64(i), 512*(1+i%9))
				off := i * 170 * 512 % (3*mib - 8192)
				write(t, dev, w, int64(off))
				copy(want[off:], w)
			}
			write(t, dev, header, 0)
			copy(want, header)
			if err := dev.WriteZeroes(1<<20, 128<<10, true); err != nil {
				t.Fatal(err)
			}
			clear(want[1<<20 : 1<<20+128<<10])
			flush(t, dev)
			s.kill()
			dev.Close()
			s = b.serve("v.state")
			dev = s.dial()
			holds(t, dev, want, 0)
			dev.Close()
			// In use by whatever path: another state store, a clone's master, a store made over it.
			b.run("store", "create", "--raw", disk, "--force-raw", b.path("w.state")).exits(exitLocked).says(disk)
			b.run("store", "create", "--master", "raw:"+disk, b.path("c")).exits(exitLocked).says("open for writing")
			if kind != "file" {
				b.run("store", "create", "--size", "1M", "--name", "x", "--force", disk).exits(exitLocked)
			}
			s.stop()
			if !bytes.Equal(b.read("disk"), want) {
				t.Error("the raw disk is not what the guest wrote")
			}
			s = b.serve("v.state", "--read-only")
			holds(t, s.dial(), want, 0)
			s.stop()
			if st := b.info("v.state"); st.Owner != nil {
				t.Error("a clean close left the owner")
			}
		})
	}
}

func TestRawDiskRefused(t *testing.T) {
	t.Parallel()
	need(t, "qemu-img")
	b := newBench(t)
	b.image("disk", mib)
	b.run("store", "create", "--size", "1M", b.path("store")).exits(0)
	b.must("qemu-img", "create", "-q", "-f", "qcow2", b.path("q"), "4M")
	b.truncate("empty", 0)
	create := func(disk string, code int, says ...string) {
		t.Helper()
		b.run("store", "create", "--raw", b.path(disk), b.path("x.state")).exits(code).says(says...)
	}
	create("store", exitFailed, "virt-cow store", "adopt that", "--force-raw")
	create("q", exitFailed, "qcow2", "qemu-img convert -f qcow2", "--force-raw")
	create("none", exitFailed, "no such file")
	create(".", exitFailed, "neither a regular file nor a block device")
	create("empty", exitFailed, "empty")
	b.run("store", "create", "--raw", b.path("disk"), "--size", "1M", b.path("x.state")).exits(exitUsage)
	b.run("store", "create", "--raw", b.path("disk"), "--master", b.path("q"), b.path("x.state")).exits(exitUsage)
	b.run("store", "create", "--raw", b.path("disk"), "--name", "x", b.path("disk")).exits(exitUsage).says("is the raw disk itself")
	if names := b.names(); strings.Contains(names, "x.state") {
		t.Errorf("left behind: %s", names)
	}
	b.run("store", "create", "--raw", b.path("store"), "--force-raw", b.path("f.state")).exits(0)
	b.serve("f.state").stop() // its word was given once

	b.run("store", "create", "--raw", b.path("disk"), b.path("d.state")).exits(0)
	b.run("store", "create", "--master", "store:"+b.path("d.state"), b.path("c")).exits(exitFailed).says("raw:" + b.path("disk"))
	b.truncate("disk", mib-4096)
	b.run("serve", "--socket", b.path("u"), b.path("d.state")).exits(exitFailed).says(b.path("disk"), "has shrunk")
	b.run("store", "verify", b.path("d.state")).exits(exitVerify).says("has shrunk")
	b.truncate("disk", 2*mib)
	s := b.serve("d.state")
	if st := s.status(); st.Size != mib {
		t.Errorf("of a disk that grew %d bytes are served", st.Size)
	}
	s.stop()
	if err := os.Rename(b.path("disk"), b.path("moved")); err != nil {
		t.Fatal(err)
	}
	b.run("serve", "--socket", b.path("u"), b.path("d.state")).exits(exitFailed).says("raw disk", b.path("disk"), "no such file")
	if i := b.info("d.state"); i.Owner != nil {
		t.Error("a serve that failed left itself as the owner")
	}
}

// A raw disk that is mounted on this host is not a guest's, and one that a guest has can't be mounted.
func TestRawDiskMounted(t *testing.T) {
	t.Parallel()
	need(t, "root", "losetup", "mkfs.ext4", "mount")
	b := newBench(t)
	b.truncate("disk", 16*mib)
	disk := b.loop("disk")
	b.must("mkfs.ext4", "-q", disk)
	if err := os.Mkdir(b.path("mnt"), 0o700); err != nil {
		t.Fatal(err)
	}
	b.run("store", "create", "--raw", disk, b.path("d.state")).exits(0)
	b.must("mount", disk, b.path("mnt"))
	t.Cleanup(func() { b.exec("umount", b.path("mnt")) })
	b.run("store", "create", "--raw", disk, b.path("e.state")).exits(exitLocked).says(disk, "it is mounted")
	b.run("serve", "--lock-wait", "50ms", "--socket", b.path("u"), b.path("d.state")).exits(exitLocked).says(disk, "it is mounted")
	b.must("umount", b.path("mnt"))
	s := b.serve("d.state")
	if o := b.exec("mount", disk, b.path("mnt")); o.code == 0 {
		t.Error("the disk of a running volume could be mounted")
	}
	f, err := blockdev.OpenFile(t.Context(), disk, blockdev.FileOptions{ReadOnly: true})
	if err != nil {
		t.Errorf("it can't even be looked at: %v", err)
	} else {
		f.Close()
	}
	s.stop()
}
