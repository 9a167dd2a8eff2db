package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// modes are the ways a clone is used: chunk sizes, the cache on with hydration meanwhile, and off.
func modes(t *testing.T, f func(t *testing.T, chunk string, flags []string)) {
	for _, chunk := range []string{"4K", "64K", "1M"} {
		for _, flags := range [][]string{{"--hydrate", "--rate", "16M"}, {"--cache-off"}} {
			t.Run(chunk+flags[0], func(t *testing.T) {
				t.Parallel()
				f(t, chunk, flags)
			})
		}
	}
}

func TestCopiesAndCompare(t *testing.T) {
	t.Parallel()
	need(t, "nbdinfo", "nbdcopy", "qemu-img")
	modes(t, func(t *testing.T, chunk string, flags []string) {
		b := newBench(t)
		const size = 12*mib + 512*7 // the last chunk is a short one
		master := b.image("m.raw", size)
		b.clone("c.vcow", "m.raw", "--chunk", chunk)
		s := b.serve("c.vcow", flags...)
		var found struct {
			Exports []struct {
				Size   int64  `json:"export-size"`
				Flush  bool   `json:"can_flush"`
				FUA    bool   `json:"can_fua"`
				Trim   bool   `json:"can_trim"`
				Zero   bool   `json:"can_zero"`
				Export string `json:"export-name"`
			}
		}
		b.exec("nbdinfo", "--json", s.uri()).exits(0).json(&found)
		if e := found.Exports[0]; e.Size != size || !e.Flush || !e.FUA || !e.Trim || !e.Zero || e.Export != "c" {
			t.Errorf("nbdinfo: %+v", e)
		}
		if b.exec("nbdinfo", "--map", s.uri()).exits(0).stdout == "" {
			t.Error("nbdinfo --map: nothing")
		}
		// Out of it, into it, and out again.
		b.must("nbdcopy", s.uri(), b.path("out.raw"))
		if !bytes.Equal(b.read("out.raw"), master) {
			t.Fatal("nbdcopy out of a fresh clone: differs from the master")
		}
		b.must("qemu-img", "compare", "-f", "raw", "-F", "raw", b.path("m.raw"), s.uri())
		other := noise(4, size)
		clear(other[mib : 3*mib])
		if err := os.WriteFile(b.path("in.raw"), other, 0o600); err != nil {
			t.Fatal(err)
		}
		b.must("nbdcopy", "--flush", b.path("in.raw"), s.uri())
		b.must("qemu-img", "compare", "-f", "raw", "-F", "raw", b.path("in.raw"), s.uri())
		b.must("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", b.path("m.raw"), s.uri())
		b.must("qemu-img", "convert", "-f", "raw", "-O", "qcow2", s.uri(), b.path("out.qcow2"))
		b.must("qemu-img", "compare", b.path("m.raw"), b.path("out.qcow2"))
		b.must("nbdcopy", "--flush", b.path("in.raw"), s.uri())
		s.stop()
		s = b.serve("c.vcow")
		b.must("qemu-img", "compare", "-f", "raw", "-F", "raw", b.path("in.raw"), s.uri())
		b.exec("qemu-img", "compare", "-f", "raw", "-F", "raw", b.path("m.raw"), s.uri()).exits(1)
		s.stop()
		b.run("store", "verify", b.path("c.vcow")).exits(0)
		if !bytes.Equal(b.read("m.raw"), master) {
			t.Error("the master changed")
		}
	})
}

func TestFioVerify(t *testing.T) {
	t.Parallel()
	need(t, "fio")
	modes(t, func(t *testing.T, chunk string, flags []string) {
		b := newBench(t)
		master := b.image("m.raw", 16*mib)
		b.clone("c.vcow", "m.raw", "--chunk", chunk)
		s := b.serve("c.vcow", flags...)
		job := func(more ...string) {
			t.Helper()
			b.must("fio", append([]string{
				"--name=v", "--ioengine=nbd", "--uri=" + s.uri(), "--size=16M", "--bsrange=512-128K", "--bs_unaligned=0",
				"--blockalign=512", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--verify_dump=0", "--randseed=42", "--output=fio.log",
			}, more...)...)
		}
		job("--rw=randwrite", "--do_verify=1", "--fsync=64", "--verify_backlog=64")
		job("--rw=randtrimwrite", "--iodepth=1", "--do_verify=1", "--fdatasync=16", "--number_ios=1000") // deeper, fio trims what it is writing
		if st := s.status(); st.IO.Errors != 0 || st.IO.Writes == 0 || st.IO.Flushes == 0 {
			t.Errorf("%+v", st.IO)
		}
		s.stop()
		b.run("store", "verify", b.path("c.vcow")).exits(0)
		if !bytes.Equal(b.read("m.raw"), master) {
			t.Error("the master changed")
		}
	})
}

// The engine is killed under fio's writes and a new one goes on: what fio was told of an engine ago, and
// never flushed, is there.
func TestKilledUnderFio(t *testing.T) {
	t.Parallel()
	need(t, "fio")
	for _, flags := range [][]string{nil, {"--hydrate", "--rate", "8M"}, {"--cache-off"}} {
		t.Run(fmt.Sprint(flags), func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.image("m.raw", 32*mib)
			b.clone("c.vcow", "m.raw", "--chunk", "64K")
			job := func(s *server, more ...string) *exec.Cmd {
				return b.command(t.Context(), "fio", append([]string{
					"--name=v", "--ioengine=nbd", "--uri=" + s.uri(), "--rw=randwrite", "--bsrange=512-64K", "--blockalign=512",
					"--randseed=7", "--verify=crc32c", "--verify_fatal=1", "--size=16M", "--output=/dev/null",
				}, more...)...)
			}
			finish := func(cmd *exec.Cmd) {
				t.Helper()
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%q: %v\n%s", cmd.Args, err, out)
				}
			}
			s := b.serve("c.vcow", flags...)
			finish(job(s, "--iodepth=8", "--do_verify=0"))
			for round := range 2 {
				before := s.status().IO.Writes
				second := job(s, "--offset=16M", "--iodepth=16", "--do_verify=0", "--time_based", "--runtime=60", "--norandommap")
				if err := second.Start(); err != nil {
					t.Fatal(err)
				}
				eventually(t, "fio writes", func() bool { return s.status().IO.Writes > before+uint64(200+171*round) })
				s.kill()
				if err := second.Wait(); err == nil {
					t.Fatal("fio did not notice that its disk went away")
				}
				s = b.serve("c.vcow", flags...)
				finish(job(s, "--iodepth=8", "--verify_only"))
			}
			finish(job(s, "--offset=16M", "--iodepth=8", "--do_verify=1"))
			s.stop()
			b.run("store", "verify", b.path("c.vcow")).exits(0)
		})
	}
}

// Acknowledged writes are there after the engine was killed, flushed or not; one that was under way is
// old or new.
func TestKilledUnderWrites(t *testing.T) {
	t.Parallel()
	for _, flags := range [][]string{nil, {"--hydrate"}, {"--cache-off"}} {
		t.Run(fmt.Sprint(flags), func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			model := b.image("m.raw", 8*mib)
			b.clone("c.vcow", "m.raw", "--chunk", "64K")
			for round := range 4 {
				s := b.serve("c.vcow", flags...)
				lasts := s.killedUnder(model, round)
				s = b.serve("c.vcow", flags...)
				s.holdsAll(model, lasts)
				if round%2 == 0 {
					s.kill()
				} else {
					s.signal(syscall.SIGTERM)
					s.wait(0)
				}
			}
		})
	}
}

// What `store info` prints of a clone that was cut loose is a way to its data without virt-cow.
func TestCutLooseWithoutVirtCow(t *testing.T) {
	t.Parallel()
	need(t, "root", "mkfs.ext4", "e2fsck", "debugfs", "qemu-img", "qemu-io", "sh")
	b := newBench(t)
	b.truncate("m.raw", 16*mib)
	b.must("mkfs.ext4", "-q", b.path("m.raw"))
	text := strings.Repeat("a file in the file system\n", 1000)
	if err := os.WriteFile(b.path("text"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	b.must("debugfs", "-w", "-R", "write text text", b.path("m.raw"))
	for _, store := range []string{"c.vcow", "with a 'space & more.vcow"} {
		b.clone(store, "m.raw", "--name", "c")
		if strings.Contains(b.run("store", "info", b.path(store)).stdout, "losetup") {
			t.Error("a clone that needs its master is said to be a plain disk")
		}
		s := b.serve(store, "--hydrate")
		s.hydrated()
		dev := s.dial()
		w := noise(8, 4096)
		write(t, dev, w, 15*mib+4096) // where the file system has nothing
		dev.Close()
		s.stop()
		if err := os.Rename(b.path("m.raw"), b.path("m.gone")); err != nil {
			t.Fatal(err)
		}
		i := b.info(store)
		if !i.CutLoose || i.Master != "" {
			t.Errorf("%+v", i)
		}
		var loop string
		var detach func()
		for line := range strings.Lines(b.run("store", "info", b.path(store)).exits(0).stdout) {
			if command, ok := strings.CutPrefix(line, "  losetup"); ok {
				loop = strings.TrimSpace(b.must("sh", "-c", "losetup"+command))
				detach = b.detaches(loop)
			}
		}
		if loop == "" {
			t.Fatal("store info prints no losetup line")
		}
		b.must("e2fsck", "-fn", loop)
		b.must("debugfs", "-R", "dump text out", loop)
		if string(b.read("out")) != text {
			t.Error("the file differs")
		}
		detach()
		slice := fmt.Sprintf(`json:{"driver":"raw","offset":%d,"size":%d,"file":{"driver":"file","filename":%q}}`, i.DataOffset, i.Size, b.path(store))
		if !strings.Contains(b.run("store", "info", b.path(store)).stdout, fmt.Sprintf("<slice type='storage' offset='%d' size='%d'/>", i.DataOffset, i.Size)) {
			t.Error("store info prints another slice")
		}
		b.must("qemu-img", "convert", "-O", "raw", slice, b.path("converted.raw"))
		if got := b.read("converted.raw"); len(got) != 16*mib || !bytes.Equal(got[15*mib+4096:15*mib+8192], w) {
			t.Error("the slice holds something else")
		}
		b.must("qemu-io", "-c", "write -P 0x77 15M 4k", slice)
		s = b.serve(store) // virt-cow goes on with what was written without it
		holds(t, s.dial(), bytes.Repeat([]byte{0x77}, 4096), 15*mib)
		s.stop()
		if err := os.Rename(b.path("m.gone"), b.path("m.raw")); err != nil {
			t.Fatal(err)
		}
	}
}
