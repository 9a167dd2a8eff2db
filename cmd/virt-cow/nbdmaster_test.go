package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/nbd"
)

func apiRun(run *bool) api.HydrationRequest { return api.HydrationRequest{Run: run} }

// export is a running nbdkit.
type export struct {
	b      *bench
	socket string
	cmd    *exec.Cmd
}

func (e *export) uri() string { return "nbd+unix:///?socket=" + e.socket }

// nbdkit serves a file of the bench, for reading, through filters.
func (b *bench) nbdkit(file string, args ...string) *export {
	b.t.Helper()
	need(b.t, "nbdkit")
	e := &export{b: b, socket: b.path("kit.sock")}
	_ = os.Remove(e.socket) // of one that was killed
	base := []string{"--foreground", "--readonly", "--unix", e.socket}
	var parameters []string
	for _, a := range args {
		if strings.HasPrefix(a, "-") {
			base = append(base, a)
		} else {
			parameters = append(parameters, a)
		}
	}
	e.cmd = b.command(context.Background(), "nbdkit", append(append(base, "file", b.path(file)), parameters...)...)
	var log logBuffer
	e.cmd.Stdout, e.cmd.Stderr = &log, &log
	if err := e.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { e.kill() })
	eventually(b.t, "nbdkit answers", func() bool {
		c, err := nbd.Dial(context.Background(), e.uri(), nbd.Options{})
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return e
}

func (e *export) kill() {
	if e.cmd.ProcessState == nil {
		_ = e.cmd.Process.Signal(syscall.SIGKILL)
		_ = e.cmd.Wait()
	}
}

// A master whose reads fail: EIO for what needs it, nothing remembered, and all is well once it is.
func TestMasterWhoseReadsFail(t *testing.T) {
	t.Parallel()
	for _, flags := range [][]string{nil, {"--cache-off"}} {
		b := newBench(t)
		master := b.image("m.raw", mib)
		kit := b.nbdkit("m.raw", "--filter=error", "error-pread=EIO", "error-pread-rate=100%", "error-file="+b.path("fail"))
		b.clone("c.vcow", kit.uri(), "--chunk", "64K")
		s := b.serve("c.vcow", flags...)
		dev := s.dial()
		w := noise(1, 64<<10)
		write(t, dev, w, 64<<10)
		if err := os.WriteFile(b.path("fail"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := dev.ReadAt(make([]byte, 4096), 0); !errors.Is(err, unix.EIO) {
				t.Errorf("read: %v, want EIO", err)
			}
			if _, err := dev.WriteAt(w[:512], 0); !errors.Is(err, unix.EIO) {
				t.Errorf("write that must copy: %v, want EIO", err)
			}
			if _, err := dev.ReadAt(make([]byte, 128<<10), 0); !errors.Is(err, unix.EIO) {
				t.Errorf("read half of it from the store: %v, want EIO", err)
			}
		}
		holds(t, dev, w, 64<<10)
		write(t, dev, w, 192<<10) // a whole chunk needs no copy
		flush(t, dev)
		holds(t, dev, w, 192<<10)
		if err := os.Remove(b.path("fail")); err != nil {
			t.Fatal(err)
		}
		want := bytes.Clone(master)
		copy(want[64<<10:], w)
		copy(want[192<<10:], w)
		holds(t, dev, want, 0)
		write(t, dev, w[:512], 0)
		copy(want, w[:512])
		holds(t, dev, want, 0)
		if flags == nil {
			yes := true
			hydration(s, apiRun(&yes))
			s.hydrated()
			holds(t, dev, want, 0)
		}
		dev.Close()
		s.stop()
		b.run("store", "verify", b.path("c.vcow")).exits(0)
	}
}

func TestHydrationFromAMasterWhoseReadsFail(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	master := b.image("m.raw", 4*mib)
	kit := b.nbdkit("m.raw", "--filter=error", "error-pread=EIO", "error-pread-rate=100%", "error-file="+b.path("fail"))
	b.clone("c.vcow", kit.uri())
	if err := os.WriteFile(b.path("fail"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.run("serve", "--socket", b.path("u"), b.path("c.vcow")).exits(exitFailed).says("input/output error") // it can't be told which master it is
	if err := os.Remove(b.path("fail")); err != nil {
		t.Fatal(err)
	}
	s := b.serve("c.vcow")
	if err := os.WriteFile(b.path("fail"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	yes := true
	hydration(s, apiRun(&yes))
	eventually(t, "hydration fails", func() bool { return s.status().Hydration.State == api.HydrationFailed })
	if st := s.status(); !strings.Contains(st.Hydration.Error, "input/output error") || st.Target != "clone" {
		t.Errorf("%+v", st.Hydration)
	}
	if err := os.Remove(b.path("fail")); err != nil {
		t.Fatal(err)
	}
	hydration(s, apiRun(&yes))
	s.hydrated()
	dev := s.dial()
	holds(t, dev, master, 0)
	dev.Close()
	s.stop()
}

func TestSlowMaster(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	master := b.image("m.raw", mib)
	kit := b.nbdkit("m.raw", "--filter=delay", "delay-read=10ms")
	b.clone("c.vcow", kit.uri())
	s := b.serve("c.vcow", "--hydrate")
	dev := s.dial()
	// First writes and reads of what hydration copies at the same time.
	want := bytes.Clone(master)
	for i := range 64 {
		off := (i*37%256)*4096 + 512*(i%8)
		w := noise(uint64(i)+100, 512)
		write(t, dev, w, int64(off))
		copy(want[off:], w)
		at := off &^ 0xffff
		holds(t, dev, want[at:at+64<<10], int64(at))
	}
	s.hydrated()
	kit.kill() // it is no longer needed
	holds(t, dev, want, 0)
	dev.Close()
	s.stop()
	b.serve("c.vcow").stop()
}

func TestMasterServerGoneAndBack(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	master := b.image("m.raw", mib)
	kit := b.nbdkit("m.raw")
	b.clone("c.vcow", kit.uri())
	s := b.serve("c.vcow")
	dev := s.dial()
	holds(t, dev, master[:4096], 0)
	kit.kill()
	if _, err := dev.ReadAt(make([]byte, 4096), 4096); !errors.Is(err, unix.EIO) {
		t.Errorf("read without the server: %v, want EIO", err)
	}
	w := noise(9, 4096)
	write(t, dev, w, 8192)
	flush(t, dev)
	holds(t, dev, w, 8192)
	kit = b.nbdkit("m.raw")
	holds(t, dev, master[:8192], 0)
	holds(t, dev, w, 8192)
	// Another image of the same size behind the same socket, while nobody looked.
	s.stop()
	kit.kill()
	b.run("serve", "--socket", b.path("u"), b.path("c.vcow")).exits(exitFailed).says("connection refused", kit.socket)
	if err := os.WriteFile(b.path("other.raw"), noise(77, mib), 0o600); err != nil {
		t.Fatal(err)
	}
	kit = b.nbdkit("other.raw")
	b.run("serve", "--socket", b.path("u"), b.path("c.vcow")).exits(exitFailed).says("wrong master", kit.socket)
	kit.kill()
	b.run("store", "verify", b.path("c.vcow")).exits(exitVerify).says("connection refused")
	b.nbdkit("m.raw")
	b.run("store", "verify", b.path("c.vcow")).exits(0)
}

// A clone of a store, and of a clone's clone; what happens to the store in between is noticed.
func TestStoreAsMaster(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	want := b.image("m.raw", mib)
	b.clone("a.vcow", "m.raw")
	s := b.serve("a.vcow")
	dev := s.dial()
	write(t, dev, noise(1, 8192), 4096)
	flush(t, dev)
	copy(want[4096:], noise(1, 8192))
	if o := b.run("store", "create", "--master", "store:"+b.path("a.vcow"), b.path("b.vcow")).exits(exitLocked); !strings.Contains(o.stderr, "already in use") {
		t.Errorf("a store that is being written: %s", o.stderr)
	}
	dev.Close()
	s.stop()
	b.clone("b.vcow", "store:"+b.path("a.vcow"), "--chunk", "64K", "--size", "2M")
	if i := b.info("b.vcow"); i.MasterKind != "store" || i.Size != 2*mib {
		t.Errorf("%+v", i)
	}
	s = b.serve("b.vcow", "--hydrate")
	// While b is made of it nobody writes to a; others may read it.
	b.run("serve", "--lock-wait", "50ms", "--socket", b.path("u"), b.path("m.raw")).exits(exitFailed)
	s.hydrated()
	dev = s.dial()
	holds(t, dev, want, 0)
	holds(t, dev, make([]byte, mib), mib)
	dev.Close()
	s.stop()

	b.clone("c.vcow", "store:"+b.path("a.vcow"))
	b.clone("d.vcow", "store:"+b.path("c.vcow"))
	s = b.serve("d.vcow")
	b.run("serve", "--lock-wait", "50ms", "--socket", b.path("u"), b.path("a.vcow")).exits(exitLocked)
	dev = s.dial()
	holds(t, dev, want, 0)
	dev.Close()
	s.stop()
	b.serve("a.vcow").stop() // opened for writing, although nothing was written
	for _, store := range []string{"c.vcow", "d.vcow"} {
		b.run("serve", "--socket", b.path("u"), b.path(store)).exits(exitFailed).says("wrong master", b.path("a.vcow"), "was opened for writing since")
	}
	b.run("store", "verify", b.path("c.vcow")).exits(exitVerify).says("was opened for writing since")
}
