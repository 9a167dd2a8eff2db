package main

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/api"
)

func TestSignalsCloseCleanly(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.image("m.raw", mib)
	b.clone("c.vcow", "m.raw")
	for i, sig := range []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		s := b.serve("c.vcow")
		if owner := b.info("c.vcow").Owner; owner == nil || owner.HostName == "" {
			t.Errorf("no owner while it is served: %+v", owner)
		}
		dev := s.dial()
		w := noise(uint64(i), 4096)
		write(t, dev, w, int64(i)*4096) // and no flush: the close does it
		s.signal(sig)
		_ = s.cmd.Process.Signal(sig) // once more while it closes, or when it has
		s.wait(0)
		dev.Close()
		if i := b.info("c.vcow"); i.Owner != nil {
			t.Errorf("%v: the owner was left", sig)
		}
		if names := b.names(); names != "c.vcow m.raw run" {
			t.Errorf("%v: left behind: %s", sig, names)
		}
	}
	s := b.serve("c.vcow", "--read-only")
	dev := s.dial()
	for i := range 3 {
		holds(t, dev, noise(uint64(i), 4096), int64(i)*4096)
	}
	s.stop()
	if cached, _ := os.ReadDir(b.path("run/cache")); len(cached) != 0 {
		t.Errorf("caches left behind: %v", cached)
	}
}

// The end comes with requests held by a suspension: they are carried out, not lost.
func TestStopWhileSuspended(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.run("store", "create", "--size", "1M", b.path("c.vcow")).exits(0)
	s := b.serve("c.vcow")
	dev := s.dial()
	if _, err := s.engine().Suspend(context.Background(), api.SuspendRequest{DeadlineMillis: 3600_000}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := dev.WriteAt(noise(1, 4096), 0)
		done <- err
	}()
	s.stop()
	if err := <-done; err == nil { // acknowledged: then it is there
		s = b.serve("c.vcow")
		holds(t, s.dial(), noise(1, 4096), 0)
		s.stop()
	}
}

func TestSockets(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.run("store", "create", "--size", "1M", b.path("c.vcow")).exits(0)
	b.run("store", "create", "--size", "1M", b.path("d.vcow")).exits(0)
	try := func(code int, socket string, says ...string) {
		t.Helper()
		b.run("serve", "--lock-wait", "50ms", "--socket", socket, b.path("c.vcow")).exits(code).says(says...)
	}
	if err := os.WriteFile(b.path("file"), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	try(exitFailed, b.path("file"), b.path("file"), "not a socket")
	if string(b.read("file")) != "precious" {
		t.Error("a file was taken for a socket")
	}
	try(exitFailed, b.path("no/where"), "socket "+b.path("no/where"), "no such file")
	try(exitFailed, b.path("file/s"), "socket "+b.path("file/s"), "not a folder")
	long := b.path(strings.Repeat("l", 108-len(b.dir)-1))
	try(exitFailed, long, "its path has 108 bytes, the kernel allows 107")
	try(exitFailed, long[:105], "its path has 109 bytes") // of the control socket, with .ctl
	b.run("serve", "--socket", b.path("s"), "--control", b.path("s"), b.path("c.vcow")).exits(exitFailed).says("can't share a socket")
	b.run("serve", "--socket", b.path("s"), "--control", b.path("file"), b.path("c.vcow")).exits(exitFailed).says("not a socket")

	s := b.serve("c.vcow")
	b.run("serve", "--socket", s.socket, b.path("d.vcow")).exits(exitLocked).says(s.socket, "a running engine answers there")
	b.run("serve", "--socket", b.path("s"), "--control", b.path("c.vcow.ctl"), b.path("d.vcow")).exits(exitLocked).says("c.vcow.ctl", "a running engine")
	s.status() // and is none the worse for it
	s.kill()
	for _, left := range []string{"c.vcow.sock", "c.vcow.ctl"} {
		if _, err := os.Lstat(b.path(left)); err != nil {
			t.Errorf("no stale socket to test with: %v", err)
		}
	}
	s = b.serve("c.vcow") // over the stale sockets
	st, err := os.Stat(s.socket)
	if err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("NBD socket: %v, %v", st.Mode(), err)
	}
	s.stop()
	b.run("--run-dir", "/proc/no", "serve", "--socket", b.path("s"), b.path("c.vcow")).exits(exitFailed).says("run folder: mkdir /proc/no")
	b.run("--run-dir", b.path("file"), "serve", "--socket", b.path("s"), b.path("c.vcow")).exits(exitFailed).says("run folder", "not a directory")
	if i := b.info("c.vcow"); i.Owner != nil {
		t.Error("a serve that failed left itself as the owner")
	}
	// The longest path that works does.
	s = b.launch("c.vcow", "--control", b.path("k"), "--socket", long[:107])
	eventually(t, "NBD answers", func() bool {
		c, err := net.Dial("unix", long[:107])
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	s.stop()
}

func TestStoreAlreadyOpen(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.image("m.raw", mib)
	b.clone("c.vcow", "m.raw")
	if err := errors.Join(os.Symlink("c.vcow", b.path("sym")), os.Link(b.path("c.vcow"), b.path("hard"))); err != nil {
		t.Fatal(err)
	}
	paths := []string{"c.vcow", "sym", "hard"}
	if os.Geteuid() == 0 {
		paths = append(paths, b.loop("c.vcow"))
	} else {
		t.Log("SKIPPED in part: a loop device needs root")
	}
	s := b.serve("c.vcow")
	for _, path := range paths {
		for _, more := range [][]string{nil, {"--read-only"}} {
			args := append([]string{"serve", "--lock-wait", "50ms", "--socket", b.path("s2")}, more...)
			b.run(append(args, b.path(path))...).exits(exitLocked).says("already in use by another process of this host")
		}
		if o := b.run("store", "create", "--master", "store:"+b.path(path), b.path("x")); o.code == 0 {
			t.Errorf("%s: a store that is being written was cloned", path)
		}
		b.run("store", "verify", b.path(path)).exits(0)
		b.run("store", "info", b.path(path)).exits(0).says("since")
	}
	s.stop()
	// Readers share a store, and keep writers away.
	r1 := b.serve("c.vcow", "--read-only")
	r2 := b.serve("hard", "--read-only")
	b.run("serve", "--lock-wait", "50ms", "--socket", b.path("s2"), b.path("c.vcow")).exits(exitLocked)
	r1.stop()
	r2.stop()
	// A writer waits for a reader that is on its way out.
	r1 = b.serve("c.vcow", "--read-only")
	w := b.launch("hard", "--lock-wait", "60s")
	r1.stop()
	eventually(t, "the writer gets the lock", func() bool { _, err := w.engine().Status(context.Background()); return err == nil })
	w.stop()
}

func TestReadOnly(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	master := b.image("m.raw", mib)
	b.clone("c.vcow", "m.raw")
	s := b.serve("c.vcow")
	dev := s.dial()
	w := noise(5, 4096)
	write(t, dev, w, 8192)
	flush(t, dev)
	s.kill()
	b.run("serve", "--socket", b.path("r"), "--read-only", b.path("c.vcow")).exits(exitFailed).says("died", "serve it for writing once")
	b.run("store", "create", "--master", "store:"+b.path("c.vcow"), b.path("x")).exits(exitFailed).says("was not closed")
	b.serve("c.vcow").stop()
	before := b.read("c.vcow")
	s = b.serve("c.vcow", "--read-only")
	if !s.status().ReadOnly {
		t.Error("the status does not say that it is read-only")
	}
	dev = s.dial()
	if !dev.Info().ReadOnly {
		t.Error("NBD does not say that it is read-only")
	}
	holds(t, dev, w, 8192)
	holds(t, dev, master[:8192], 0)
	need(t, "qemu-io")
	b.exec("qemu-io", "-f", "raw", "-c", "write 0 4k", s.uri()).exits(1)
	yes := true
	if _, err := s.engine().Hydration(context.Background(), api.HydrationRequest{Run: &yes}); err == nil {
		t.Error("a volume served for reading was hydrated")
	}
	s.stop()
	if string(before) != string(b.read("c.vcow")) {
		t.Error("serving for reading changed the store")
	}
	b.run("serve", "--socket", b.path("r"), "--read-only", "--hydrate", b.path("c.vcow")).exits(exitFailed).says("read-only")
	b.run("serve", "--socket", b.path("r"), "--name", "other", b.path("c.vcow")).exits(exitFailed).says("holds volume c, not other")
}

// Another host has the store: it is neither written nor read here.
func TestOwnedByAnotherHost(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.image("m.raw", mib)
	b.clone("c.vcow", "m.raw")
	s := b.serve("c.vcow", "--host-uuid", "11111111-2222-3333-4444-555555555555")
	s.kill()
	for _, more := range []string{"--read-only", "--hydrate", "--accept-loss"} {
		b.run("serve", "--socket", b.path("u"), more, b.path("c.vcow")).exits(exitLocked).says("open on another host", "stop the volume there")
	}
	s = b.serve("c.vcow", "--host-uuid", "11111111-2222-3333-4444-555555555555")
	s.stop()
	b.serve("c.vcow").stop()
}

// The cache of a killed engine is gone, or is another's: then it is said what may be lost.
func TestLostCache(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.run("store", "create", "--size", "1M", b.path("c.vcow")).exits(0)
	s := b.serve("c.vcow")
	dev := s.dial()
	write(t, dev, noise(1, 4096), 0)
	flush(t, dev)
	s.kill()
	if err := os.RemoveAll(b.path("run/cache")); err != nil {
		t.Fatal(err)
	}
	b.run("serve", "--socket", b.path("u"), b.path("c.vcow")).exits(exitFailed).says("acknowledged data may be lost", "--accept-loss")
	s = b.serve("c.vcow", "--accept-loss")
	holds(t, s.dial(), noise(1, 4096), 0) // flushed, so not lost
	s.stop()
	b.serve("c.vcow").stop()
}

// A killed process waits for the lock; SIGTERM ends the wait.
func TestSignalWhileWaitingForTheLock(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.run("store", "create", "--size", "1M", b.path("c.vcow")).exits(0)
	f, err := os.Open(b.path("c.vcow"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	s := b.launch("c.vcow", "--lock-wait", "1h")
	eventually(t, "it waits", func() bool { return s.hasOpen("c.vcow") })
	s.signal(syscall.SIGTERM)
	s.wait(exitLocked)
}
