package e2e

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/test/lab"
)

// refused runs a command that must fail with this exit code and say this.
func (b *bed) refused(t *testing.T, code int, says string, args ...string) {
	t.Helper()
	out, err := b.vc.Run(t.Context(), args...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code || !strings.Contains(out, says) {
		t.Errorf("virt-cow %s:\nwant exit code %d and %q\ngot %v", strings.Join(args, " "), code, says, err)
	}
	if strings.Contains(out, "panic") || args[0] != "status" && strings.Count(strings.TrimSpace(out), "\n") > 1 {
		t.Errorf("virt-cow %s: not one clear line: %s", strings.Join(args, " "), out)
	}
}

// wants are the volumes in a domain's metadata.
func (b *bed) wants(t *testing.T, domain string) string {
	t.Helper()
	x, err := b.Virsh(t.Context(), "dumpxml", domain)
	must(t, err)
	_, x, _ = strings.Cut(x, "<metadata>")
	x, _, _ = strings.Cut(x, "</metadata>")
	var names []string
	for _, part := range strings.Split(x, `volume="`)[1:] {
		name, _, _ := strings.Cut(part, `"`)
		names = append(names, name)
	}
	return strings.Join(names, " ")
}

// TestAttachRefuses: what can't be done is refused in one clear line, and nothing is half done.
func TestAttachRefuses(t *testing.T) {
	b := newBed(t, lab.GuestConfig{Devices: `<disk type='file' device='disk'><source file='/dev/null'/><target dev='vdb' bus='virtio'/></disk>`})
	_, err := b.Define(t.Context(), lab.GuestConfig{Name: "g2"})
	must(t, err)
	store, second := b.clone(t, "c1"), b.clone(t, "c2")
	missing := filepath.Join(b.Dir, "no.vcow")

	b.refused(t, 1, "no such domain", "attach", "nobody", "--store", store)
	b.refused(t, 2, "no such file", "attach", "g1", "--store", missing)
	b.refused(t, 2, b.master, "attach", "g1", "--store", b.master)
	b.refused(t, 2, "holds volume c1, not c9", "attach", "g1", "c9", "--store", store)
	b.refused(t, 2, "volume name", "attach", "g1", "../c1", "--store", store)
	b.refused(t, 2, "target", "attach", "g1", "--store", store, "--target", "/dev/vdb")
	b.refused(t, 2, "bus", "attach", "g1", "--store", store, "--bus", "floppy")
	b.refused(t, 4, "another disk at vdb", "attach", "g1", "--store", store, "--target", "vdb")
	b.refused(t, 1, "has no volume c1", "detach", "g1", "c1")
	b.refused(t, 1, "no such domain", "detach", "nobody", "c1")
	if got := b.wants(t, "g1"); got != "" {
		t.Fatalf("refused, and yet g1 wants %s", got)
	}

	b.run(t, "attach", "g1", "--store", store)
	b.refused(t, 1, "has volume c1 already", "attach", "g1", "--store", store)
	b.refused(t, 4, "belongs to domain g1", "attach", "g2", "--store", store)
	b.refused(t, 4, "another disk at vda", "attach", "g1", "--store", second, "--target", "vda")
	b.run(t, "detach", "g1", "c1")
	b.run(t, "attach", "g2", "--store", store) // now it may have it
	if got := b.wants(t, "g1") + "," + b.wants(t, "g2"); got != ",c1" {
		t.Fatal(got)
	}
}

// TestNoPCISlot: the disk that finds no slot is refused, the others stay as they are.
func TestNoPCISlot(t *testing.T) {
	b := newBed(t, lab.GuestConfig{Ports: 2})
	must(t, b.guest.Start(t.Context()))
	var names []string
	for _, name := range []string{"c1", "c2", "c3", "c4"} {
		store := b.clone(t, name)
		_, err := b.vc.Run(t.Context(), "attach", "g1", "--store", store, "--no-hydrate")
		if err == nil {
			names = append(names, name)
			continue
		}
		if !strings.Contains(err.Error(), libvirtx.ErrNoSlot.Error()) {
			t.Fatal(err)
		}
		if len(names) == 0 {
			t.Fatal("not even one disk found a slot")
		}
		if got := b.wants(t, "g1"); got != strings.Join(names, " ") {
			t.Fatalf("wants %q, attached are %q", got, names)
		}
		b.await(t, name, "gone", gone)
		b.assertClosed(t, store)
		for _, n := range names {
			b.await(t, n, "still there", attached)
		}
		return
	}
	t.Fatalf("all of %v found a slot: this test proves nothing", names)
}

// TestDaemonRefuses: no daemon, two daemons, and nonsense on its socket.
func TestDaemonRefuses(t *testing.T) {
	b := newBed(t, lab0)
	b.refused(t, 1, "another virt-cow daemon is running", "daemon")

	st, err := os.Stat(b.Path("/run/virt-cow/daemon.sock"))
	must(t, err)
	if st.Mode().Perm() != 0o660 {
		t.Errorf("mode of the control socket is %o", st.Mode().Perm())
	}
	for _, garbage := range []string{
		"\x00\xff\x00\xff\r\n\r\n",
		"POST /v1/attach HTTP/1.0\r\nContent-Length: 5\r\n\r\n{]}[{",
		"POST /v1/attach HTTP/1.0\r\nContent-Length: 22\r\n\r\n{\"domain\":\"g1\",\"x\":1} ",
		"DELETE /v1/status HTTP/1.0\r\n\r\n",
	} {
		c, err := net.Dial("unix", b.Path("/run/virt-cow/daemon.sock"))
		must(t, err)
		_, err = io.WriteString(c, garbage)
		must(t, err)
		answer, err := io.ReadAll(c)
		must(t, err)
		if !strings.Contains(string(answer), " 400 ") && !strings.Contains(string(answer), " 405 ") {
			t.Errorf("%q was answered with %q", garbage, answer)
		}
		c.Close()
	}
	d := api.NewDaemon(b.Path("/run/virt-cow"))
	var r *api.RemoteError
	if _, err := d.Attach(t.Context(), api.AttachRequest{Domain: "g1", Store: "c1.vcow"}); !errors.As(err, &r) || !strings.Contains(err.Error(), "absolute path") {
		t.Error(err)
	}
	run := true
	if _, err := d.Hydration(t.Context(), api.VolumeHydrationRequest{Volume: "c9", HydrationRequest: api.HydrationRequest{Run: &run}}); !errors.As(err, &r) || r.Code != 404 {
		t.Error(err)
	}

	must(t, b.vc.Daemon().Stop(syscall.SIGTERM))
	for _, args := range [][]string{{"status"}, {"attach", "g1", "--store", "/x"}, {"detach", "g1", "c1"}} {
		b.refused(t, 1, "start it with", args...)
	}
	b.refused(t, 2, "no/such/program", "daemon", "--program", "/no/such/program")
}
