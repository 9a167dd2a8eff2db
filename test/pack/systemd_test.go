package pack

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/nbd"
	"github.com/virt-cow/virt-cow/internal/store"
	"github.com/virt-cow/virt-cow/test/machine"
)

// soon bounds the wait for what is bound to happen.
const soon = 3 * time.Minute

// until polls until ok.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(soon); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not after %s: %s", soon, what)
		}
	}
}

func show(t testing.TB, m *machine.Machine, unit, property string) string {
	t.Helper()
	return run(t, m, "systemctl", "show", "--value", "-p", property, unit)
}

// starting has a volume's engine started as the daemon would, and returns its process.
func starting(t testing.TB, m *machine.Machine, volume, store string, devices ...string) int {
	t.Helper()
	out := run(t, m, insideProgram, append([]string{insideArg, "start", volume, store}, devices...)...)
	launcher, pid, _ := strings.Cut(out, " ")
	n, err := strconv.Atoi(pid)
	if launcher != "systemd" || err != nil {
		t.Fatalf("with systemd engines are units: %s", out)
	}
	return n
}

// TestUnits installs the package under a real systemd and lives through what happens to daemon and engines.
func TestUnits(t *testing.T) {
	t.Parallel()
	m, pkg := installed(t, machine.Config{})
	run(t, m, "dpkg", "-i", pkg)
	if got := show(t, m, "virt-cow.service", "ActiveState"); got != "active" {
		t.Fatalf("installed, the daemon is %s", got)
	}
	if got := run(t, m, "systemctl", "is-enabled", "virt-cow.service"); got != "enabled" {
		t.Errorf("installed, the daemon is %s", got)
	}
	if s := awaitDaemon(t, m); strconv.Itoa(s.PID) != show(t, m, "virt-cow.service", "MainPID") {
		t.Errorf("another daemon answers, %d", s.PID)
	}

	const volume, unit = "web-1.a_b", "virt-cow-volume@web-1.a_b.service"
	lun, foreign := m.Loop(t, 80<<20), m.Loop(t, 80<<20)
	storeOf(t, m, volume, lun)
	pid := starting(t, m, volume, lun, lun)
	if got := show(t, m, unit, "MainPID"); got != strconv.Itoa(pid) {
		t.Fatalf("engine is %d, its unit's process %s", pid, got)
	}
	if got := show(t, m, unit, "ControlGroup"); got != "/virtcow.slice/"+unit {
		t.Errorf("control group %s", got)
	}
	if again := starting(t, m, volume, lun, lun); again != pid {
		t.Errorf("started twice: %d and %d", pid, again)
	}
	words := bytes.Repeat([]byte("before the kill."), 256)
	withDisk(t, m, volume, func(d blockdev.Device) error {
		_, err := d.WriteAt(words, 4096)
		return err // not flushed: a killed engine loses nothing it acknowledged
	})

	t.Run("devices", func(t *testing.T) {
		// The same engine's store is on a device that is not its own: from inside its control group.
		fails(t, m, "Operation not permitted", "bash", "-c",
			"echo $$ > /sys/fs/cgroup"+show(t, m, unit, "ControlGroup")+"/cgroup.procs; exec dd if="+foreign+" of=/dev/null bs=4k count=1")
		// And an engine whose store is reached by another one's device.
		clone := "/var/lib/virt-cow/clone.vcow"
		run(t, m, "virt-cow", "store", "create", "--name", "clone", "--master", "raw:"+foreign, clone)
		fails(t, m, "operation not permitted", insideProgram, insideArg, "start", "clone", clone)
		if got := show(t, m, "virt-cow-volume@clone.service", "ActiveState"); got == "active" || got == "activating" {
			t.Errorf("after a failed start its unit is %s", got)
		}
		starting(t, m, "clone", clone, foreign)
		run(t, m, insideProgram, insideArg, "stop", "clone")
		if out, err := m.Run(t.Context(), "ls", "/run/systemd/system.control/virt-cow-volume@clone.service.d"); err == nil {
			t.Errorf("a stopped volume's device rules are left: %s", out)
		}
	})

	t.Run("daemon", func(t *testing.T) {
		for _, what := range [][]string{
			{"systemctl", "kill", "-s", "KILL", "virt-cow.service"}, {"systemctl", "restart", "virt-cow.service"},
			{"systemctl", "stop", "virt-cow.service"}, {"systemctl", "start", "virt-cow.service"}, {"dpkg", "-i", pkg},
		} {
			run(t, m, what[0], what[1:]...)
			if got := engineOf(t, m, volume); got.PID != pid {
				t.Fatalf("%s: the engine was %d, now %d", strings.Join(what, " "), pid, got.PID)
			}
		}
		until(t, "daemon active", func() bool { return show(t, m, "virt-cow.service", "ActiveState") == "active" })
		awaitDaemon(t, m)
	})

	t.Run("engine killed under the daemon", func(t *testing.T) {
		run(t, m, "bash", "-c", "kill -KILL "+strconv.Itoa(pid))
		until(t, "another engine serves, and the daemon knows", func() bool {
			for _, v := range awaitDaemon(t, m).Volumes {
				if v.Volume == volume && v.Engine != nil && v.Engine.PID != pid {
					return strconv.Itoa(v.Engine.PID) == show(t, m, unit, "MainPID")
				}
			}
			return false
		})
		pid = engineOf(t, m, volume).PID
	})

	// From here on without it: the test is in its place, and there may be only one.
	run(t, m, "systemctl", "stop", "virt-cow.service")
	t.Run("engine killed", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), soon)
		defer cancel()
		follow := m.Command(ctx, insideProgram, insideArg, "follow", volume, lun, lun)
		follow.Stderr = os.Stderr
		out, err := follow.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := follow.Start(); err != nil {
			t.Fatal(err)
		}
		said := bufio.NewReader(out)
		for _, want := range []string{fmt.Sprintf("systemd %d\n", pid), "follows\n"} {
			if line, err := said.ReadString('\n'); err != nil || line != want {
				t.Fatalf("who follows the engine says %q, %v, not %q", line, err, want)
			}
		}
		run(t, m, "bash", "-c", "kill -KILL "+strconv.Itoa(pid))
		why, err := io.ReadAll(said)
		if err := errors.Join(err, follow.Wait()); err != nil {
			t.Fatal(err)
		}
		// systemd says how the last process ended, which may be another one by now.
		if s := string(why); !strings.HasPrefix(s, "signal: killed") && !strings.HasPrefix(s, "see journalctl") {
			t.Errorf("who followed it was told: %s", s)
		}
		// systemd starts it again, and whoever asks for it meanwhile gets that one.
		again := starting(t, m, volume, lun, lun)
		if again == pid {
			t.Fatalf("the killed engine %d serves", pid)
		}
		if got := show(t, m, unit, "MainPID"); got != strconv.Itoa(again) {
			t.Errorf("engine is %d, its unit's process %s", again, got)
		}
		withDisk(t, m, volume, func(d blockdev.Device) error {
			got := make([]byte, len(words))
			_, err := d.ReadAt(got, 4096)
			if err == nil && !bytes.Equal(got, words) {
				t.Error("what the killed engine acknowledged is lost")
			}
			return err
		})
		pid = again
	})

	t.Run("killed again and again", func(t *testing.T) {
		for range 30 { // more often than systemd allows
			if out, err := m.Run(t.Context(), "systemctl", "kill", "-s", "KILL", unit); err != nil && !strings.Contains(out, "not loaded") {
				t.Log(out)
			}
			time.Sleep(100 * time.Millisecond)
		}
		starting(t, m, volume, lun, lun)
	})

	t.Run("image node", func(t *testing.T) { imageNode(t, m, pkg) })

	t.Run("stopped", func(t *testing.T) {
		fails(t, m, "volumes are being served", "dpkg", "-r", "virt-cow")
		run(t, m, insideProgram, insideArg, "stop", volume)
		inactive := func() bool { return show(t, m, unit, "ActiveState") == "inactive" }
		until(t, "the stopped engine's unit is inactive", inactive)
		if time.Sleep(time.Second); !inactive() {
			t.Error("a stopped engine's unit is started again")
		}
		// Installed again, all that was enabled runs.
		run(t, m, "dpkg", "-r", "virt-cow")
		run(t, m, "dpkg", "-i", pkg)
		for _, u := range []string{"virt-cow.service", "virt-cow-image-node.service", "virt-cow-backup@web-1.timer"} {
			if got := show(t, m, u, "ActiveState"); got != "active" {
				t.Errorf("removed and installed again, %s is %s", u, got)
			}
		}
		run(t, m, "dpkg", "-P", "virt-cow")
		if out, err := m.Run(t.Context(), "systemctl", "cat", "virt-cow.service"); err == nil {
			t.Errorf("purged, systemd still knows: %s", out)
		}
		if out := run(t, m, "find", "/etc/systemd", "-name", "*virt-cow*"); out != "" {
			t.Errorf("purged, there is still: %s", out)
		}
		run(t, m, "test", "-e", "/srv/archive", "-a", "-e", "/etc/virt-cow/archive.passphrase")
	})
}

// imageNode enables what only the admin does, and upgrades the package under it.
func imageNode(t *testing.T, m *machine.Machine, pkg string) {
	const unit, timer = "virt-cow-image-node.service", "virt-cow-backup@web-1.timer"
	enabled := func(unit string) string {
		out, _ := m.Run(t.Context(), "systemctl", "is-enabled", unit) // it exits 1 for one that is not
		return strings.TrimSpace(out)
	}
	run(t, m, "systemctl", "preset", unit, timer)
	for _, u := range []string{unit, timer} {
		if got := enabled(u); got != "disabled" {
			t.Errorf("installed, %s is %s", u, got)
		}
	}
	run(t, m, "sh", "-c", `umask 077; sed -i 's|^# uri = ""|uri = "/srv/archive"|' /etc/virt-cow/config.toml && echo a phrase of no use >/etc/virt-cow/archive.passphrase`)
	run(t, m, "virt-cow", "archive", "create")
	run(t, m, "systemctl", "enable", "--now", unit, timer)
	pid := show(t, m, unit, "MainPID")
	if got := run(t, m, "readlink", "/proc/"+pid+"/exe"); got != "/usr/lib/virt-cow/virt-cow-full" {
		t.Errorf("the image node runs %s", got)
	}
	run(t, m, "virt-cow", "backup", "jobs")

	// A backup that is waited for outlives the daemon.
	const backup = "virt-cow-backup@web-1.service"
	run(t, m, "sh", "-c", `d=/run/systemd/system/virt-cow-backup@.service.d; mkdir -p $d && printf '[Service]\nExecStart=\nExecStart=sleep 600\n' >$d/test.conf && systemctl daemon-reload`)
	run(t, m, "systemctl", "start", "virt-cow.service")
	run(t, m, "systemctl", "start", "--no-block", backup)
	until(t, "a backup is waited for", func() bool { return show(t, m, backup, "MainPID") != "0" })
	waits := show(t, m, backup, "MainPID")
	run(t, m, "systemctl", "restart", "virt-cow.service")

	run(t, m, "dpkg", "-i", pkg)
	if got := show(t, m, backup, "MainPID"); got != waits {
		t.Errorf("the daemon restarted, and the package upgraded: who waits for a backup was %s, now %s", waits, got)
	}
	run(t, m, "systemctl", "stop", backup, "virt-cow.service")
	for _, u := range []string{unit, timer} {
		if got := enabled(u); got != "enabled" || show(t, m, u, "ActiveState") != "active" {
			t.Errorf("upgraded, %s is %s and %s", u, got, show(t, m, u, "ActiveState"))
		}
	}
	if show(t, m, unit, "MainPID") == pid {
		t.Error("after the upgrade the old image node runs")
	}
}

// TestShutdown turns the machine off under a guest that writes to its disk until it ends.
func TestShutdown(t *testing.T) {
	t.Parallel()
	m, pkg := installed(t, machine.Config{})
	run(t, m, "dpkg", "-i", pkg)
	run(t, m, "sh", "-c", "mkdir -p /var/log/journal && journalctl --flush") // it outlasts the machine
	const volume = "root"
	path := "/var/lib/virt-cow/root.vcow"
	storeOf(t, m, volume, path)
	starting(t, m, volume, path)
	// As libvirt has machined make one.
	guest := m.Command(t.Context(), "systemd-run", "--scope", "--slice=machine.slice", `--unit=machine-qemu\x2d1\x2dg1`,
		insideProgram, insideArg, "guest", volume, "/var/lib/guest")
	guest.Stderr = os.Stderr
	if err := guest.Start(); err != nil {
		t.Fatal(err)
	}
	go guest.Wait()
	until(t, "guest has its disk", func() bool { _, err := os.Stat(m.Path("/var/lib/guest")); return err == nil })
	_, _ = m.Run(t.Context(), "systemctl", "poweroff") // may be cut off
	select {
	case <-m.Done():
	case <-time.After(soon):
		t.Fatal("the machine does not end")
	}
	out, err := exec.Command("journalctl", "--no-pager", "-D", m.Written("/var/log/journal")).CombinedOutput()
	if err != nil {
		t.Fatalf("journalctl: %v: %s", err, out)
	}
	if bytes.Contains(out, []byte("ordering cycle")) {
		t.Error("units wait for each other")
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("journal:\n%s", out)
		}
	})
	if b, err := os.ReadFile(m.Written("/var/lib/guest")); err != nil || string(b) != "end: <nil>" {
		t.Errorf("the guest's last write: %s %v", b, err)
	}
	f, err := blockdev.OpenFile(t.Context(), m.Written(path), blockdev.FileOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := store.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	h := st.Header()
	if h.Owner != nil {
		t.Errorf("the engine did not close its store: owner %v", h.Owner)
	}
	got := make([]byte, 4096)
	if _, err := f.ReadAt(got, h.Layout.Data); err != nil || string(got[:len(lastWords)]) != lastWords {
		t.Errorf("the store has %.40q, want %q: %v", got, lastWords, err)
	}
}

// withDisk uses a volume from outside the machine.
func withDisk(t testing.TB, m *machine.Machine, volume string, use func(blockdev.Device) error) {
	t.Helper()
	d, err := nbd.Dial(t.Context(), nbdURI(m, volume), nbd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := use(d); err != nil {
		t.Fatal(err)
	}
}
