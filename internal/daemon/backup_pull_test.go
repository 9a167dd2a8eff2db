package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/nbd"
	"github.com/virt-cow/virt-cow/internal/peer"
	"github.com/virt-cow/virt-cow/test/lab/pki"
)

// identityOf has a certificate with these names.
func identityOf(t *testing.T, a *pki.Authority, names ...string) peer.Files {
	t.Helper()
	p, err := a.Server(names...)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := p.WriteServer(dir, a); err != nil {
		t.Fatal(err)
	}
	return peer.Files{CA: dir + "/" + pki.CACert, Cert: dir + "/" + pki.ServerCert, Key: dir + "/" + pki.ServerKey}
}

// The image node gets a volume as of the cut, and nobody else does, while the engine goes on.
func TestPull(t *testing.T) {
	d, n, _ := newBackupDaemon(t)
	a, err := pki.New("ours")
	if err != nil {
		t.Fatal(err)
	}
	const from, to = 20000, 29999 // some are free, and the kernel gives them nobody who asks it for any
	d.config.Backup.Pull = PullConfig{Listen: "127.0.0.1", From: from, To: to, Files: identityOf(t, a, "127.0.0.1")}
	d.config.Backup.Node = "node:16590"
	id := peer.NewIdentity(identityOf(t, a, "node"), zerolog.Nop())

	was, later := bytes.Repeat([]byte("at the cut      "), 1<<12), bytes.Repeat([]byte("after the cut   "), 1<<12)
	write := func(b []byte) {
		t.Helper()
		c, err := nbd.Dial(t.Context(), "nbd+unix:///one?socket="+d.socketPath("one"), nbd.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.WriteAt(b, 128<<10); err != nil {
			t.Fatal(err)
		}
	}
	write(was)
	s, err := d.Backup(t.Context(), api.BackupRequest{Domain: "g", Quiesce: api.QuiesceOff})
	if err != nil {
		t.Fatal(err)
	}
	write(later)
	disk := n.started[0].Manifest.Disks[0]
	ask := api.PeerPull{PeerSnapshot: api.PeerSnapshot{Volume: disk.UUID, Snapshot: disk.Snapshot, Cut: s.Job, Job: s.Job}, Size: disk.Size}
	call := func(who, path string, in any) (*api.PullAnswer, int, string) {
		t.Helper()
		b, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, path, bytes.NewReader(b))
		d.peerHandler().ServeHTTP(w, r.WithContext(peer.With(r.Context(), peer.Names{DNS: []string{who}})))
		var a api.PullAnswer
		_ = json.Unmarshal(w.Body.Bytes(), &a)
		return &a, w.Code, w.Body.String()
	}
	for _, path := range []string{api.PathPeerPull, api.PathPeerPullLook} {
		if _, code, body := call("hb", path, ask); code != http.StatusForbidden {
			t.Errorf("%s: %d %s", path, code, body)
		}
		bad := ask
		bad.Snapshot = "../etc"
		if _, code, body := call("node", path, bad); code != http.StatusBadRequest {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	if _, code, _ := call("node", api.PathPeerPullLook, ask); code != http.StatusNotFound {
		t.Errorf("a look of no export: %d", code)
	}
	if o, code, body := call("node", api.PathPeerOwner, ask.PeerSnapshot); code != http.StatusOK || !o.Owned {
		t.Errorf("%d %s", code, body)
	}

	open := func() (*api.PullAnswer, *nbd.Client) {
		t.Helper()
		var answer *api.PullAnswer
		var code int
		var body string
		eventually(t, "the export before has ended", func() bool {
			answer, code, body = call("node", api.PathPeerPull, ask)
			return code != http.StatusConflict
		})
		if code != http.StatusOK || answer.Error != "" || answer.Port < from || answer.Port > to || !answer.Owned || answer.Epoch != disk.Epoch {
			t.Fatalf("%d %s", code, body)
		}
		at := fmt.Sprintf("127.0.0.1:%d", answer.Port)
		config, explain, err := id.To(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		c, err := nbd.Dial(t.Context(), "nbds://"+at+"/"+answer.Export, nbd.Options{TLS: config})
		if err != nil {
			t.Fatal(explain(err))
		}
		t.Cleanup(func() { c.Close() })
		return answer, c
	}
	answer, c := open()
	got := make([]byte, len(was))
	if _, err := c.ReadAt(got, 128<<10); err != nil || !bytes.Equal(got, was) || !c.Info().ReadOnly || c.Info().Size != disk.Size {
		t.Errorf("it is not as of the cut: %v, %q", err, got[:16])
	}
	ask.Export = answer.Export
	if l, code, body := call("node", api.PathPeerPullLook, ask); code != http.StatusOK || l.Error != "" || !l.Owned {
		t.Errorf("%d %s", code, body)
	}

	// The next one takes its place; then that one hangs, and is given up.
	again, c := open()
	if again.Export == answer.Export {
		t.Error("the same name again")
	}
	if _, code, _ := call("node", api.PathPeerPullLook, ask); code != http.StatusNotFound {
		t.Errorf("a look of the one before: %d", code)
	}
	x := d.exportOf(disk.Snapshot)
	if err := x.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// It may go on for a moment.
	if err := unix.Waitid(unix.P_PID, x.cmd.Process.Pid, nil, unix.WSTOPPED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := x.ask(api.PullLook{}, 50*time.Millisecond); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Error(err)
	}
	<-x.gone
	if _, err := c.ReadAt(got, 128<<10); err == nil {
		t.Error("it still answers")
	}

	// Broken is said for good; so is a snapshot that is of something else.
	e, err := d.engineOf(d.volumeNamed("one"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	answer, _ = open()
	ask.Export = answer.Export
	if _, err := e.client.RemoveSnapshot(ctx, api.SnapshotRequest{UUID: disk.Snapshot}); err != nil {
		t.Fatal(err)
	}
	if l, code, body := call("node", api.PathPeerPullLook, ask); code != http.StatusOK || !l.Final || !strings.Contains(l.Error, "snapshot is gone") {
		t.Errorf("%d %s", code, body)
	}
	if l, code, body := call("node", api.PathPeerPull, ask); code != http.StatusOK || !l.Final {
		t.Errorf("%d %s", code, body)
	}
	x = d.exportOf(disk.Snapshot)
	if x != nil {
		<-x.gone
	}
	n.end(s.Job, api.JobDone)
	d.clean(t)
}
