package hook

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// TestGivenIsNotReady: without a daemon a guest starts if its engines are there; not on one whose volume is another host's.
func TestGivenIsNotReady(t *testing.T) {
	dir, err := os.MkdirTemp("", "vch") // short: a socket is in here
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", api.ControlPath(filepath.Join(dir, "v.sock")))
	if err != nil {
		t.Fatal(err)
	}
	status := api.EngineStatus{ControlVersion: api.ControlVersion, Volume: "v"}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(status) })}
	go server.Serve(l)
	defer server.Close()
	c, dom := Config{RunDir: dir}, libvirtx.Domain{Name: "g", UUID: uuid.New()}
	if err := c.served(t.Context(), dom, "v"); err != nil {
		t.Fatal(err)
	}
	status.Handover = &api.Handover{Role: api.RoleGiver, State: "given", Peer: "ha"}
	if err := c.served(t.Context(), dom, "v"); err == nil || !strings.Contains(err.Error(), "to ha") {
		t.Error(err)
	}
}
