package doctor

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/config"
	"github.com/virt-cow/virt-cow/internal/peer"
)

// forBoth gives this host a certificate that other hosts of the test, which are on this machine, have as well.
func (h *host) forBoth() *peer.Identity {
	h.t.Helper()
	h.certificates(func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "localhost") })
	at := func(p string) string { return filepath.Join(h.dir, p) }
	return peer.NewIdentity(peer.Files{
		CA: at("/etc/pki/CA/cacert.pem"), Cert: at("/etc/pki/libvirt/servercert.pem"), Key: at("/etc/pki/libvirt/private/serverkey.pem"),
	}, zerolog.Nop())
}

// other is another host that speaks TLS and lets in who has this name, with what it answers; it returns its port.
func (h *host) other(id *peer.Identity, believes, path string, answer http.HandlerFunc) (port string) {
	h.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	hosts, err := peer.ParseHosts([]string{believes})
	if err != nil {
		h.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+path, answer)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s := peer.Server{Identity: id, Hosts: hosts, Handler: mux, Log: zerolog.Nop()}
		_ = s.Serve(ctx, l)
	}()
	h.t.Cleanup(func() { cancel(); <-ended })
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port
}

func says(code int, v any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(v)
	}
}

func (h *host) wants(check string, result Result, text string) {
	h.t.Helper()
	all := h.examine()
	var of []Finding
	for _, f := range all {
		if f.Check == check {
			of = append(of, f)
			if bad := f.Result == Warning || f.Result == Problem; f.Seen == "" || bad && (f.Why == "" || f.Mend == "") {
				h.t.Errorf("half a finding: %+v", f)
			}
		}
	}
	if !slices.ContainsFunc(of, func(f Finding) bool {
		return f.Result == result && strings.Contains(f.Seen+"\n"+f.Why+"\n"+f.Mend, text)
	}) {
		h.t.Errorf("want %s with %q, found: %+v", result, text, of)
	}
}

// A hypervisor looks at its image node.
func TestImageNodeFromAHypervisor(t *testing.T) {
	up := api.NodeStatus{Archive: api.ArchiveStatus{Up: true}}
	for name, c := range map[string]struct {
		answer   http.HandlerFunc
		believes string
		result   Result
		says     string
	}{
		"well":        {says(200, up), "localhost", OK, "localhost answers, and has its archive"},
		"no archive":  {says(200, api.NodeStatus{Archive: api.ArchiveStatus{Error: "not mounted"}}), "localhost", Problem, "on localhost: virt-cow archive check"},
		"older":       {http.NotFound, "localhost", OK, "of an older version"},
		"not listed":  {says(200, up), "hv9.example.com", Problem, `on localhost: add "hv1.example.com" to hosts in [image_node]`},
		"not running": {nil, "localhost", Problem, "systemctl enable --now virt-cow-image-node"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			id := h.forBoth()
			port := "1"
			if c.answer != nil {
				port = h.other(id, c.believes, api.PathNodeStatus, c.answer)
			}
			h.config = "[backup]\nnode = \"localhost:" + port + "\"\n"
			h.tcp("40CD", "0A")
			h.wants("image node", c.result, c.says)
		})
	}
	t.Run("its certificate", func(t *testing.T) {
		t.Parallel()
		h := newHost(t)
		id := h.forBoth()
		h.config = "[backup]\nnode = \"127.0.0.1:" + h.other(id, "localhost", api.PathNodeStatus, says(200, up)) + "\"\n"
		h.wants("image node", Problem, "not for 127.0.0.1")
	})
	t.Run("no certificate", func(t *testing.T) {
		t.Parallel()
		h := newHost(t)
		h.remove("/etc/pki")
		h.status = nil
		h.config = "[backup]\nnode = \"localhost:1\"\n"
		h.wants("certificates", Problem, "nor backed up")
		h.wants("image node", Problem, "no certificate to show")
	})
	t.Run("nobody listens here", func(t *testing.T) {
		t.Parallel()
		h := newHost(t)
		h.config = "[backup]\nnode = \"localhost:1\"\n"
		h.tcp("40CE", "0A")
		h.wants("image node", Problem, "nobody listens at :16589, where the image node asks")
	})
}

// An image node looks at itself, and at its hosts.
func TestImageNodeItself(t *testing.T) {
	const conf = "[archive]\nuri = \"/a\"\n[image_node]\n"
	ready := func(h *host) {
		h.file("/etc/virt-cow/archive.passphrase", "x")
		h.mode("/etc/virt-cow/archive.passphrase", 0o600)
		h.file("/dev/disk/by-id/scsi-1", "")
		h.tcp("40CE", "0A")
	}
	type outcome struct {
		result Result
		says   string
	}
	for name, c := range map[string]struct {
		status *api.NodeStatus // nil: it does not run
		config string
		change func(h *host)
		want   []outcome
	}{
		"well":             {&api.NodeStatus{Archive: api.ArchiveStatus{Up: true}}, conf + "hosts = [\"*.example.com\"]", nil, []outcome{{OK, "its archive is there, maintained from here"}}},
		"another's upkeep": {&api.NodeStatus{Archive: api.ArchiveStatus{Up: true, NotOurs: true}}, conf + "hosts = [\"*.example.com\"]", nil, []outcome{{OK, "by another host"}}},
		"not running":      {nil, conf + "hosts = [\"*.example.com\"]", func(h *host) { h.tcp("40CD", "0A") }, []outcome{{Problem, "nobody listens at :16590"}, {Problem, "the image node is"}}},
		"nobody may ask":   {&api.NodeStatus{Archive: api.ArchiveStatus{Up: true}}, conf, nil, []outcome{{Warning, "image_node.hosts is empty"}}},
		"not well": {&api.NodeStatus{
			Archive: api.ArchiveStatus{Error: "gone"}, Running: []api.JobStatus{{Job: "j1", Domain: "web", Waits: "the archive"}},
			Backups: []api.BackupStatus{{Domain: "db", State: api.JobFailed, Error: "snapshot is broken"}},
		}, conf + "hosts = [\"*.example.com\"]\nfolders = [\"/srv/none\"]", func(h *host) {
			h.remove("/dev")
			h.mode("/etc/virt-cow/archive.passphrase", 0o644)
		}, []outcome{
			{Problem, "the archive: gone"}, {Warning, "virt-cow backup watch j1"}, {Warning, "systemctl start virt-cow-backup@db"},
			{Problem, "chmod 600 /etc/virt-cow/archive.passphrase"}, {Warning, "not there: /srv/none"}, {Warning, "no disk is where"},
		}},
		"no passphrase": {&api.NodeStatus{Archive: api.ArchiveStatus{Up: true, MaintenanceError: "no space"}}, conf + "hosts = [\"*.example.com\"]",
			func(h *host) { h.remove("/etc/virt-cow") }, []outcome{{Problem, "virt-cow archive create"}, {Warning, "the archive's maintenance fails: no space"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.config = c.config
			ready(h)
			if c.change != nil {
				c.change(h)
			}
			if c.status != nil {
				h.node(c.status)
			}
			h.status = nil
			for _, f := range h.examine() {
				if f.Result == Problem && slices.Contains(ofHypervisors, f.Check) {
					t.Errorf("of an image node that is no hypervisor: %+v", f)
				}
			}
			for _, w := range c.want {
				h.wants("image node", w.result, w.says)
			}
		})
	}
}

// node answers on the image node's socket.
func (h *host) node(s *api.NodeStatus) {
	h.t.Helper()
	l, err := net.Listen("unix", filepath.Join(h.dir, "/run/virt-cow/"+api.NodeSocket))
	if err != nil {
		h.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+api.PathNodeStatus, says(200, s))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	go server.Serve(l)
	h.t.Cleanup(func() { server.Close() })
}

// The other way: the hosts that the image node's configuration names take it for theirs, or it says which does not.
func TestImageNodeAsksHosts(t *testing.T) {
	for name, c := range map[string]struct {
		code int
		says string
	}{
		"well":            {400, ""},
		"another's":       {403, "node in [backup]"},
		"does not listen": {0, "on localhost: virt-cow doctor"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			id := h.forBoth()
			address := "localhost:1"
			if c.code != 0 {
				address = "localhost:" + h.other(id, "localhost", api.PathPeerAttest, says(c.code, api.Error{Message: "the image node here is other"}))
			}
			found := (&Host{Root: h.dir, Config: config.Parse(nil, "")}).askHosts(t.Context(), []string{"*.example.com", address})
			if c.says == "" && found != nil || c.says != "" && (len(found) != 1 || !strings.Contains(fmt.Sprint(found), c.says)) {
				t.Errorf("%+v", found)
			}
		})
	}
}
