package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/test/lab"
)

// TestAbusedSockets: slow, large, senseless and foreign requests at the daemon's socket, and a foreign process at an
// engine's. Meanwhile the daemon goes on with its work.
func TestAbusedSockets(t *testing.T) {
	b := newBedOn(t, lab.Config{Env: []string{"VIRT_COW_GROUP=" + qemuUser}}, lab0)
	b.adopted(t, "c1")
	socket := b.Path("/run/virt-cow/" + api.DaemonSocket)
	pid := b.vc.Daemon().PID
	slow := startSlow(t, socket, 400)

	post := func(path, body string) string {
		return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
	}
	huge := `{"domain":"` + strings.Repeat("g", 8<<20) + `"}`
	for what, c := range map[string]struct {
		request string
		code    int
	}{
		"noise":          {strings.Repeat("\x00\xffnoise", 1000) + "\r\n\r\n", http.StatusBadRequest},
		"huge header":    {"GET /v1/status HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n", http.StatusRequestHeaderFieldsTooLarge},
		"huge body":      {post("/v1/attach", huge), http.StatusBadRequest},
		"half a body":    {post("/v1/attach", `{"domain":"g1"`), http.StatusBadRequest},
		"unknown field":  {post("/v1/attach", `{"domain":"g1","volume":"c1","force":true}`), http.StatusBadRequest},
		"wrong type":     {post("/v1/attach", `{"domain":["g1"]}`), http.StatusBadRequest},
		"deep nesting":   {post("/v1/attach", strings.Repeat("[", 60000)), http.StatusBadRequest},
		"unknown path":   {post("/v1/format", `{}`), http.StatusNotFound},
		"path upwards":   {post("/v1/volumes/..%2f..%2fc1/delete", `{}`), http.StatusNotFound},
		"wrong method":   {"GET /v1/attach HTTP/1.0\r\n\r\n", http.StatusMethodNotAllowed},
		"unknown method": {"FROB /v1/status HTTP/1.0\r\n\r\n", http.StatusMethodNotAllowed},
	} {
		if got := ask(t, socket, c.request); !strings.Contains(got, fmt.Sprintf(" %d ", c.code)) {
			t.Errorf("%s: want status %d, got %.200q", what, c.code, got)
		}
	}
	b.assertWorks(t)

	// Another user: kept out by the socket's permissions, and by the daemon should these be gone.
	foreign := func(path string, curl ...string) string {
		t.Helper()
		out, _ := b.Run(t.Context(), "setpriv", append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", "curl", "-sS", "-w", " code %{http_code}",
			"--unix-socket", "/run/virt-cow/" + api.DaemonSocket, "http://x" + path}, curl...)...)
		return out
	}
	if out := foreign("/v1/status"); !strings.Contains(out, "code 000") {
		t.Errorf("another user comes to the control socket: %s", out)
	}
	must(t, os.Chmod(socket, 0o666))
	for _, out := range []string{
		foreign("/v1/status"), foreign("/metrics"), foreign("/v1/volumes/c1/delete", "-d", "{}"), foreign("/nowhere"),
	} {
		if !strings.Contains(out, "code 403") || !strings.Contains(out, "control group") {
			t.Errorf("another user is answered with %s", out)
		}
	}
	b.assertWorks(t)

	b.assertEngineRefuses(t)

	// Those who are slow are cut off in the end.
	slow.Wait()
	b.assertWorks(t)
	if now := b.vc.Daemon().PID; now != pid || syscall.Kill(now, 0) != nil {
		t.Errorf("the daemon was process %d and is %d", pid, now)
	}
}

// assertEngineRefuses fails unless an engine keeps out a process that may use its socket, being of QEMU's group, but is
// not the QEMU that the volume is for.
func (b *bed) assertEngineRefuses(t *testing.T) {
	t.Helper()
	_, err := b.Define(t.Context(), lab.GuestConfig{Name: "g2"})
	must(t, err)
	b.adopted(t, "c2")
	b.virsh(t, "start", "g2", "--paused")
	b.run(t, "attach", "g2", "c2", "--no-hydrate")
	before := b.await(t, "c2", "attached", attached).Engine
	out, err := b.Run(t.Context(), "setpriv", "--reuid=65534", "--regid=65534", fmt.Sprint("--groups=", qemuID),
		"qemu-img", "info", "nbd+unix:///c2?socket="+before.Socket)
	if err == nil || strings.Contains(out, "Permission denied") {
		t.Errorf("a foreign process of QEMU's group: want it refused by the engine, got %v: %s", err, out)
	}
	after := b.await(t, "c2", "served by an engine that has refused somebody", func(s *api.VolumeStatus) bool {
		return attached(s) && s.Engine.IO.Refused > before.IO.Refused
	}).Engine
	if after.PID != before.PID {
		t.Errorf("the engine says %+v, said before %+v", after, before)
	}
}

// assertWorks fails unless the daemon does what it is asked to.
func (b *bed) assertWorks(t *testing.T) {
	t.Helper()
	b.run(t, "status")
	b.run(t, "attach", "g1", "c1")
	b.await(t, "c1", "off", off)
	b.run(t, "detach", "g1", "c1")
	b.await(t, "c1", "gone", gone)
}

// ask sends something to a socket and returns what comes back until the other end closes. It may close before all was
// sent.
func ask(t *testing.T, socket, request string) string {
	t.Helper()
	c, err := net.Dial("unix", socket)
	must(t, err)
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(time.Minute)))
	if _, err = io.WriteString(c, request); err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	return string(answer)
}

// startSlow opens connections that send a byte a second of a header that never ends, until they are cut off. Waiting
// for what it returns waits for that.
func startSlow(t *testing.T, socket string, n int) *sync.WaitGroup {
	t.Helper()
	var all sync.WaitGroup
	for range n {
		c, err := net.Dial("unix", socket)
		must(t, err)
		_, err = io.WriteString(c, "GET /v1/status HTTP/1.1\r\nX: ")
		must(t, err)
		all.Go(func() {
			defer c.Close()
			for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); time.Sleep(time.Second) {
				if _, err := io.WriteString(c, "x"); err != nil {
					return
				}
			}
			t.Error("a connection that sends a byte a second is not cut off")
		})
	}
	t.Cleanup(all.Wait)
	return &all
}
