package daemon

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// TestDrivesEngineOfVersion1: an engine that an older program started is adopted with the record of that program's
// daemon, and is asked for nothing that it does not know. Its answer is one that such an engine gave.
func TestDrivesEngineOfVersion1(t *testing.T) {
	t.Parallel()
	d := newTestDaemon(t)
	d.config.Version = "2"
	recorded, err := os.ReadFile("testdata/engine-v1-status.json")
	if err != nil {
		t.Fatal(err)
	}
	status := strings.Replace(string(recorded), "PID", fmt.Sprint(os.Getpid()), 1)
	var mu sync.Mutex
	var asked []string
	mux := http.NewServeMux()
	for _, path := range []string{
		api.PathEngineStatus, api.PathEngineHydration, api.PathEngineSuspend, api.PathEngineResume, api.PathEngineStop,
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, r.URL.Path)
			fmt.Fprint(w, status)
		})
	}
	l, err := net.Listen("unix", d.controlPath("v"))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: mux}
	go s.Serve(l)
	defer s.Close()
	record := `{"version":1,"want":{"volume":"v","store":"/s/v.vcow","target":"vdb"}}`
	if err := os.WriteFile(d.specPath("v"), []byte(record), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := d.adopt(); err != nil {
		t.Fatal(err)
	}
	m := newDomain(d, libvirtx.Domain{Name: "g", UUID: uuid.New()})
	v, err := d.claim(m, libvirtx.Want{Volume: "v", Store: "/s/v.vcow", Target: "vdb"}, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.startVolume(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	run := true
	got, err := d.Hydration(t.Context(), api.VolumeHydrationRequest{Volume: "v", HydrationRequest: api.HydrationRequest{Run: &run}})
	if err == nil || !strings.Contains(err.Error(), "libvirt") { // the domain's metadata can't be written in this test
		t.Fatal(got, err)
	}
	if s := d.volumeStatus(t.Context(), v); !s.Old || s.PID != os.Getpid() || s.Engine.Hydration.Total != 8<<20 {
		t.Errorf("%+v", s)
	}
	mu.Lock()
	defer mu.Unlock()
	if slices.Contains(asked, api.PathEngineClient) {
		t.Error("asked for what came with version 2")
	}
}
