package main

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestCreate(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.image("m.raw", mib)

	b.run("store", "create", "--master", "m.raw", "--size", "3M", "--chunk", "4K", "--name", "Big.1", "larger.vcow").exits(0).says("volume Big.1, 3 MiB in chunks of 4 KiB")
	if i := b.info("larger.vcow"); i.Size != 3*mib || i.Name != "Big.1" {
		t.Errorf("%+v", i)
	}
	b.run("store", "create", "--size", "1P", b.path("huge")).exits(exitUsage)
	b.run("store", "create", "--size", "64T", "--chunk", "1M", b.path("largest")).exits(0)
	b.run("store", "verify", b.path("largest")).exits(0)
	b.run("store", "create", "--master", b.path("m.raw"), "--size", "512K", b.path("less")).exits(exitUsage).says("less than the master's 1 MiB")
	b.run("store", "create", "--size", "1M", b.path("larger.vcow")).exits(exitFailed).says("exists")
	b.run("store", "create", "--size", "1M", "--force", b.path("larger.vcow")).exits(exitFailed).says("exists")
	b.run("store", "create", "--size", "1M", b.path("no/where")).exits(exitFailed).says("create "+b.path("no/where"), "no such file or directory")
	b.run("store", "create", "--size", "1M", "--name", "n", b.path("with space & more.vcow")).exits(0)
	if names := b.names(); names != "larger.vcow largest m.raw with space & more.vcow" {
		t.Errorf("left behind: %s", names)
	}
}

func TestCreateWhereNothingCanBeWritten(t *testing.T) {
	t.Parallel()
	need(t, "root", "mount", "umount")
	b := newBench(t)
	b.run("store", "create", "--size", "1M", b.path("c")).exits(0)
	ro := b.path("ro")
	if err := os.Mkdir(ro, 0o700); err != nil {
		t.Fatal(err)
	}
	if o := b.exec("mount", "-t", "tmpfs", "-o", "ro,size=3M", "virt-cow-test", ro); o.code != 0 {
		t.Skipf("SKIPPED: can't mount: %s", o.stderr)
	}
	t.Cleanup(func() { b.exec("umount", ro) })
	b.run("store", "create", "--size", "1M", ro+"/s").exits(exitFailed).says("create "+ro+"/s", "read-only file system")
	b.must("mount", "-o", "remount,rw", ro)
	o := b.run("store", "create", "--size", "1G", "--chunk", "4K", ro+"/s").exits(0)
	// Its metadata and table take two thirds of the room: a second one has too little.
	o = b.run("store", "create", "--size", "1G", ro+"/s2").exits(exitFailed).says("create "+ro+"/s2", "no space left")
	if entries, _ := os.ReadDir(ro); len(entries) != 1 {
		t.Errorf("a failed create left %v\n%s", entries, o.stderr)
	}
	if err := os.WriteFile(ro+"/rest", make([]byte, 4*mib), 0o600); err == nil {
		t.Fatal("the file system is not full")
	}
	b.run("--run-dir", ro+"/run", "serve", "--socket", b.path("u"), ro+"/s").exits(exitFailed).says("exception cache "+ro, "no space left")
	b.must("mount", "-o", "remount,ro", ro)
	b.run("--run-dir", ro+"/run2", "serve", "--socket", b.path("u"), b.path("c")).exits(exitFailed).says("run folder", "read-only file system", "--run-dir")
}

func TestCreateOnBlockDevice(t *testing.T) {
	t.Parallel()
	need(t, "root", "mkfs.ext4", "mkswap")
	b := newBench(t)
	b.truncate("lun", 16*mib)
	dev := b.loop("lun")
	put := func(off int64, text string) func() {
		return func() {
			f, err := os.OpenFile(dev, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			sector := make([]byte, 4096)
			at := off &^ 4095
			copy(sector[off-at:], text)
			if _, err := f.WriteAt(sector, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	for what, make := range map[string]func(){
		"ext2/3/4":                       func() { b.must("mkfs.ext4", "-q", dev) },
		"swap space":                     func() { b.must("mkswap", dev) },
		"LVM physical volume":            put(512, "LABELONE"),
		"GPT partition table":            put(512, "EFI PART"),
		"boot sector or partition table": put(510, "\x55\xaa"),
		"LUKS":                           put(0, "LUKS\xba\xbe"),
	} {
		b.must("blkdiscard", "--zeroout", dev)
		make()
		b.run("store", "create", "--size", "8M", dev).exits(exitFailed).says(dev, what, "--force overwrites it")
		b.run("store", "info", dev).exits(exitFailed)
		b.run("store", "create", "--size", "8M", "--name", "v", "--force", dev).exits(0)
		b.run("store", "verify", dev).exits(0)
	}
	b.run("store", "create", "--size", "8M", "--name", "w", dev).exits(exitFailed).says("virt-cow store on it, of volume v", "--force")
	b.run("store", "create", "--size", "15M", "--name", "w", "--force", dev).exits(exitFailed).says("has 16777216 bytes")
	if i := b.info(dev); i.Name != "v" {
		t.Errorf("a refused create changed the device: %+v", i)
	}
	// A store that is being served is not overwritten by any path, whatever the force.
	s := b.serve(dev)
	b.run("store", "create", "--size", "8M", "--name", "w", "--force", dev).exits(exitLocked).says("already in use")
	b.run("store", "create", "--size", "8M", "--name", "w", "--force", b.loop("lun")).exits(exitLocked).says("volume v", "already in use")
	s.stop()
	// One damaged copy is still a store.
	b.poke("lun", 100)
	b.must("blockdev", "--flushbufs", dev)
	b.run("store", "create", "--size", "8M", "--name", "w", dev).exits(exitFailed).says("virt-cow store on it")

	b.must("blkdiscard", "--zeroout", dev)
	b.must("mkfs.ext4", "-q", dev)
	if err := os.Mkdir(b.path("mnt"), 0o700); err != nil {
		t.Fatal(err)
	}
	b.must("mount", dev, b.path("mnt"))
	t.Cleanup(func() { b.exec("umount", b.path("mnt")) })
	b.run("store", "create", "--size", "8M", "--name", "w", "--force", dev).exits(exitLocked).says(dev, "it is mounted")
}

func TestImageFormatsAreRefused(t *testing.T) {
	t.Parallel()
	need(t, "qemu-img", "qemu-nbd", "qemu-io", "sh")
	for _, c := range []struct{ format, options string }{
		{"qcow2", ""}, {"qed", ""}, {"vmdk", ""}, {"vmdk", "subformat=monolithicFlat"}, {"vhdx", ""}, {"vdi", ""},
		{"vpc", ""}, {"vpc", "subformat=fixed,force_size=on"},
	} {
		t.Run(c.format+c.options, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			args := []string{"create", "-q", "-f", c.format}
			if c.options != "" {
				args = append(args, "-o", c.options)
			}
			b.must("qemu-img", append(args, b.path("an image"), "4M")...)
			b.must("qemu-io", "-f", c.format, "-c", "write -P 0x5a 1M 64K", b.path("an image"))
			o := b.run("store", "create", "--master", b.path("an image"), b.path("c.vcow")).exits(exitFailed).says("not a raw image", "raw:"+b.path("an image"))
			if names := b.names(); strings.Contains(names, "c.vcow") {
				t.Errorf("left behind: %s", names)
			}
			for line := range strings.Lines(o.stderr) {
				if command, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "  qemu-img"); ok {
					b.must("sh", "-c", "qemu-img"+command)
				}
				if command, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "  qemu-nbd"); ok {
					command = strings.ReplaceAll(command, "/run/master.sock", b.path("master.sock"))
					b.must("sh", "-c", "qemu-nbd --pid-file="+b.path("pid")+command)
					t.Cleanup(func() { b.exec("sh", "-c", `kill "$(cat pid)"`) })
				}
			}
			b.clone("converted.vcow", "master.raw")
			b.clone("exported.vcow", "nbd+unix:///?socket="+b.path("master.sock"))
			for _, store := range []string{"converted.vcow", "exported.vcow"} {
				s := b.serve(store)
				want := make([]byte, 256<<10)
				for i := range 64 << 10 {
					want[64<<10+i] = 0x5a
				}
				holds(t, s.dial(), want, mib-64<<10)
				s.stop()
			}
		})
	}
}

func TestBadMasters(t *testing.T) {
	t.Parallel()
	need(t, "mkfifo")
	b := newBench(t)
	b.truncate("odd", 1000)
	b.truncate("empty", 0)
	b.must("mkfifo", b.path("fifo"))
	b.run("store", "create", "--size", "1M", b.path("v")).exits(0)
	for arg, says := range map[string]string{
		b.path("odd"):                 "truncate -s %512 " + b.path("odd"),
		b.path("empty"):               "is empty",
		b.path("fifo"):                "neither a regular file nor a block device",
		"raw:" + b.path("fifo"):       "neither a regular file nor a block device",
		"/dev/null":                   "neither a regular file nor a block device",
		b.dir:                         "neither a regular file nor a block device",
		b.path("nothing"):             "no such file",
		"store:" + b.path("odd"):      "truncate",
		"store:" + b.path("empty"):    b.path("empty"),
		b.path("v"):                   "store:" + b.path("v"),
		"nbd:localhost:10809":         "nbd://HOST",
		"nbd+unix:///?socket=/no/one": "/no/one",
		"nbds://host/":                "TLS is not supported",
		"http://host/disk.raw":        "can't read http:// masters",
	} {
		b.run("store", "create", "--master", arg, b.path("c.vcow")).exits(exitFailed).says(says)
	}
	b.truncate("odd", 1024)
	b.clone("c.vcow", "odd") // the way out
	if names := b.names(); names != "c.vcow empty fifo odd v" {
		t.Errorf("left behind: %s", names)
	}
	o := b.run("store", "create", "--size", "1M", "--name", "x", "/dev/null").exits(exitFailed)
	o.says("/dev/null", "neither a regular file nor a block device")
}

func TestVerifyOfALargeTableShowsProgress(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	p := newProgress(&out, "verify v", 10*mib)
	p.step(10*mib, 100*mib)
	if out.Len() > 0 {
		t.Errorf("shown at once: %q", out.String())
	}
	p.begin, p.last = time.Now().Add(-10*time.Second), time.Time{}
	p.step(60*mib, 100*mib)
	p.step(61*mib, 100*mib) // not due again
	if got := out.String(); !strings.Contains(got, " 60.0%  60 MiB of 100 MiB  5 MiB/s  ETA 8s\n") || strings.Count(got, "\n") != 1 || strings.ContainsAny(got, "\r\x1b") {
		t.Errorf("shown %q", got)
	}
	p.end(100*mib, 100*mib, "done")
	if !strings.HasSuffix(out.String(), "verify v: done, 100 MiB of 100 MiB in 10s\n") {
		t.Errorf("shown %q", out.String())
	}
}
