package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
)

// controlled is a bench with a daemon that has no libvirt: volumes can be made, served and deleted all the same.
type controlled struct {
	*bench
	daemon *server
}

func newControlled(t *testing.T) *controlled {
	t.Helper()
	c := &controlled{bench: newBench(t)}
	config := fmt.Sprintf("run_dir = %q\nstate_dir = %q\nstore_dir = %q\nlog_dir = %q\n", c.path("run"), c.path("state"), c.path("stores"), c.path("log"))
	config += fmt.Sprintf("[libvirt]\nsocket = %q\n[engine]\nlauncher = \"child\"\ngroup = \"\"\n[scan]\nfolders = [%q]\ndevices = []\n[plugins]\ndir = %q\n",
		c.path("libvirt-sock"), c.path("stores"), c.path("plugins.d"))
	if err := os.WriteFile(c.path("config.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	c.startDaemon()
	// Engines outlive their daemon.
	t.Cleanup(func() {
		if l, err := c.client().Volumes(context.Background()); err == nil {
			for _, v := range l.Volumes {
				if v.Status != nil && v.Status.PID > 0 {
					_ = syscall.Kill(v.Status.PID, syscall.SIGKILL)
				}
			}
		}
	})
	return c
}

func (c *controlled) client() *api.Daemon { return api.NewDaemon(c.path("run")) }

func (c *controlled) startDaemon() {
	c.t.Helper()
	s := &server{b: c.bench, done: make(chan struct{})}
	s.cmd = c.command(context.Background(), program, "--config", c.path("config.toml"), "daemon")
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	if err := s.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	go func() {
		_ = s.cmd.Wait()
		s.code = s.cmd.ProcessState.ExitCode()
		close(s.done)
	}()
	c.t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		<-s.done
		if c.t.Failed() {
			c.t.Logf("daemon:\n%s", &s.log)
		}
	})
	c.daemon = s
	eventually(c.t, "the daemon answers", func() bool {
		if s.ended() {
			c.t.Fatalf("the daemon ended with %d\n%s", s.code, &s.log)
		}
		_, err := c.client().Volumes(context.Background())
		return err == nil
	})
}

func TestVolumeLife(t *testing.T) {
	t.Parallel()
	c := newControlled(t)
	image := c.image("m.raw", mib)
	c.run("volume", "list").exits(0).says("no volumes", "volume create")
	c.run("volume", "create", "golden", "--master", "m.raw").exits(0).says("volume golden: 1 MiB, a clone of raw:"+c.path("m.raw"), c.path("stores/golden.vcow"))
	c.run("volume", "clone", "golden", "web1", "--size", "2M").exits(0).says("volume web1: 2 MiB, a clone of store:" + c.path("stores/golden.vcow"))
	c.run("volume", "clone", "./m.raw", "web2", "--store", "elsewhere.vcow").exits(0).says(c.path("elsewhere.vcow"))
	var l api.VolumeList
	c.run("--json", "volume", "list").exits(0).json(&l)
	if len(l.Volumes) != 3 || l.Volumes[1].Name != "web1" || l.Volumes[1].Size != 2*mib {
		t.Errorf("%+v", l)
	}
	c.run("volume", "list").exits(0).says("VOLUME", "golden", "ready", "2 MiB", "clone", "elsewhere.vcow")
	c.run("volume", "show", "web1").exits(0).says("volume   web1\n", "(2097152 bytes) in chunks of 4 KiB", "use      none\n")

	c.run("volume", "start", "web1").exits(0).says("volume web1: served at nbd+unix:///?socket=" + c.path("run/web1.sock"))
	c.run("volume", "wait", "web1").exits(0)
	c.run("volume", "list").exits(0).says("served")
	dev := (&server{b: c.bench, socket: c.path("run/web1.sock")}).dial()
	holds(t, dev, image, 0)
	dev.Close()
	c.run("volume", "delete", "--force", "web1").exits(exitLocked).says("virt-cow volume stop web1")
	c.run("volume", "delete", "--force", "golden").exits(exitLocked).says("volume web1 is a clone of it")
	var restarted []api.VolumeStatus
	c.run("--json", "volume", "restart", "web1").exits(0).json(&restarted)
	if len(restarted) != 1 || restarted[0].PID == 0 {
		t.Errorf("%+v", restarted)
	}
	c.run("hydrate", "start", "web1").exits(0)
	c.run("volume", "wait", "web1", "--for", "hydrated", "--timeout", "50s").exits(0)
	c.run("volume", "stop", "web1").exits(0).says("no longer served")
	c.run("volume", "show", "web1").exits(0).says("none: cut loose")

	// Killed and started again, the daemon knows them.
	c.daemon.kill()
	c.startDaemon()
	c.run("volume", "delete", "golden").exits(exitFailed).says("libvirt", "domains that are off")
	c.run("volume", "delete", "--force", "golden", "web1").exits(0).says("volume golden: deleted\nvolume web1: deleted\n")
	c.run("volume", "wait", "web1", "--for", "gone").exits(0)
	c.run("volume", "delete", "--keep-store", "web2").exits(0).says("stays at " + c.path("elsewhere.vcow"))
	c.run("volume", "adopt", "elsewhere.vcow", "--name", "web2").exits(0)
	c.run("volume", "delete", "--force", "web2").exits(0)
	if entries, err := os.ReadDir(c.path("stores")); err != nil || len(entries) > 0 {
		t.Errorf("left: %v %v", entries, err)
	}
}

func TestVolumeErrors(t *testing.T) {
	t.Parallel()
	c := newControlled(t)
	c.run("volume", "create", "v", "--size", "1M").exits(0)
	for _, x := range []struct {
		args string
		code int
		says string
	}{
		{"create x", exitUsage, "--size, --master, or both"},
		{"create ../x --size 1M", exitUsage, "volume name"},
		{"create x --size 1M --store /a --pool p", exitUsage, "can't be used together"},
		{"create x --size 1M --lun l", exitUsage, "--pool"},
		{"create x --size 1000", exitUsage, "multiple of 512"},
		{"create x --size 1M --chunk 3K", exitUsage, "power of two"},
		{"create v --size 1M", exitLocked, "taken"},
		{"create x --master nothing.raw", exitFailed, "no such file"},
		{"create x --size 1M --provider none", exitFailed, "no such provider"},
		{"create x --size 1M --pool default", exitFailed, "libvirt"},
		{"clone nothing x", exitFailed, "neither a volume nor a file"},
		{"clone v v", exitLocked, "v"},
		{"adopt", exitUsage, "--raw DISK"},
		{"adopt --raw /d", exitUsage, "--name"},
		{"show nothing", exitFailed, "nothing"},
		{"show ../x", exitUsage, "volume list"},
		{"delete --force v nothing", exitFailed, "1 done before it, 0 left"},
		{"start nothing", exitFailed, "nothing"},
		{"stop nothing", exitFailed, "nothing"},
		{"restart", exitUsage, "--old"},
		{"wait nothing", exitFailed, "nothing"},
		{"wait v --for fun", exitUsage, "attached"},
		{"scan", exitFailed, "libvirt"},
	} {
		c.run(append([]string{"volume"}, strings.Fields(x.args)...)...).exits(x.code).says("virt-cow: ", x.says)
	}
	c.run("volume", "create", "w", "--master", "m2.raw", "--size", "1M").exits(exitFailed)
	c.image("m2.raw", mib)
	c.run("volume", "create", "w", "--master", "m2.raw").exits(0)
	for what, says := range map[string]string{"hydrated": "virt-cow hydrate start w", "attached": "ready"} {
		for d := 200 * time.Millisecond; ; d *= 4 { // a busy daemon may not have answered by then
			o := c.run("volume", "wait", "w", "--for", what, "--timeout", d.String()).exits(exitFailed)
			if d > patience || !strings.Contains(o.stderr, "the daemon did not answer") {
				o.says("not "+what+" after "+d.String(), says)
				break
			}
		}
	}
	c.daemon.stop()
	c.run("volume", "list").exits(exitFailed).says("systemctl start virt-cow")
	c.run("volume", "wait", "w").exits(exitFailed).says("systemctl start virt-cow")
}

func TestStoreSizeOntoAndUUID(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var s storeSize
	b.run("--json", "store", "size", "--size", "10M").exits(0).json(&s)
	b.truncate("pool.img", s.Room)
	b.truncate("small.img", s.Room-mib)
	const id = "3f2a9c1e-0000-4000-8000-000000000001"
	b.run("store", "create", "--size", "10M", "--name", "v", b.path("pool.img")).exits(exitFailed).says("exists")
	b.run("store", "create", "--size", "10M", "--name", "v", "--onto", b.path("small.img")).exits(exitFailed).says(fmt.Sprint(s.Room))
	b.run("store", "create", "--size", "10M", "--name", "v", "--onto", "--uuid", id, b.path("pool.img")).exits(0)
	if i := b.info("pool.img"); i.UUID != id || i.Room != s.Room || i.Size != s.Size {
		t.Errorf("%+v, %+v", i, s)
	}
	b.run("store", "create", "--size", "10M", "--name", "v", "--onto", b.path("pool.img")).exits(exitFailed).says("of volume v", "--force")
	b.run("store", "create", "--size", "10M", "--uuid", "x", b.path("new")).exits(exitUsage)
	b.image("m.raw", mib)
	b.run("store", "size", "--master", "m.raw").exits(0).says("for a volume of 1 MiB")
	b.run("store", "size").exits(exitUsage).says("--master, --size")
}
