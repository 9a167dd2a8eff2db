package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/launch"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/test/lab"
)

// patience bounds what a test waits for.
const patience = 2 * time.Minute

var buildProgram = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "vcd")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "virt-cow")
	out, err := exec.Command("go", "build", "-tags=virtcow_lean", "-o", path, "../../cmd/virt-cow").CombinedOutput()
	if err != nil {
		os.Stderr.Write(out)
	}
	return path, err
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := buildProgram(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// newRealDaemon is a test daemon whose engines are real, and end with the test.
func newRealDaemon(t *testing.T) *Daemon {
	t.Helper()
	program, err := buildProgram()
	if err != nil {
		t.Fatal(err)
	}
	d := newTestDaemonWith(t, func(c *Config) {
		c.Launcher = launch.NewChild(program, c.RunDir, c.RunDir)
		c.Inventory.Program = program
	})
	t.Cleanup(func() { // before that of newTestDaemon
		d.mu.Lock()
		var all []*volume
		for _, v := range d.volumes {
			v.held, v.prepared = "", time.Time{}
			all = append(all, v)
		}
		d.mu.Unlock()
		for _, v := range all {
			d.mu.Lock()
			m := v.domain
			d.mu.Unlock()
			if err := d.stopVolume(context.Background(), v, m, api.VolumeOff); err != nil {
				t.Error(err)
			}
		}
	})
	return d
}

// create makes a volume of a MiB.
func (d *Daemon) create(t *testing.T, name string) api.VolumeInfo {
	t.Helper()
	v, err := d.Create(t.Context(), api.CreateRequest{Name: name, Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// script makes a program.
func script(t *testing.T, path, text string) {
	t.Helper()
	if err := lab.WriteProgram(path, []byte("#!/bin/sh\n"+text+"\n")); err != nil {
		t.Fatal(err)
	}
}

// eventually waits for something.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if is() {
			return
		}
	}
	t.Fatalf("waited in vain: %s", what)
}

// answers is an engine in this process that gives one answer to all it is asked, after what held says.
type answers struct {
	mu     sync.Mutex
	status api.EngineStatus
	asked  []string
	held   chan struct{} // nil: at once
}

func (d *Daemon) answering(t *testing.T, name string, s api.EngineStatus) *answers {
	t.Helper()
	s.PID, s.Volume, s.ControlVersion = os.Getpid(), name, api.ControlVersion
	a := &answers{status: s}
	l, err := net.Listen("unix", d.controlPath(name))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: a}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return a
}

func (a *answers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	held := a.held
	a.asked = append(a.asked, r.URL.Path)
	a.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-r.Context().Done():
			return
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.URL.Path == api.PathEngineClient {
		var in api.ClientRequest
		if json.NewDecoder(r.Body).Decode(&in) == nil {
			a.status.Client = in.Client
		}
	}
	_ = json.NewEncoder(w).Encode(a.status)
}

func (a *answers) client() *api.Peer {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.status.Client
}

// said is a libvirt that says always the same, and takes note of what it is asked to do.
type said struct {
	libvirtx.Conn
	mu        sync.Mutex
	state     libvirtx.State
	wants     []libvirtx.Want
	xml       string
	attach    error
	metadata  error // of SetMetadata
	resumes   int
	detached  []string
	asNothing bool // knows no domain
}

func (c *said) Metadata(context.Context, libvirtx.Domain) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asNothing {
		return "", libvirtx.ErrNoDomain
	}
	return libvirtx.FormatWants(c.wants)
}

func (c *said) SetMetadata(_ context.Context, _ libvirtx.Domain, element string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	c.wants, err = libvirtx.ParseWants(element)
	if c.metadata != nil {
		return c.metadata
	}
	return err
}

func (c *said) State(context.Context, libvirtx.Domain) (libvirtx.State, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state, nil
}

func (c *said) XML(context.Context, libvirtx.Domain) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return "<domain><name>g</name><devices>" + c.xml + "</devices></domain>", nil
}

func (c *said) Attach(context.Context, libvirtx.Domain, string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.attach
}

func (c *said) Detach(_ context.Context, _ libvirtx.Domain, alias string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.detached = append(c.detached, alias)
	return nil
}

func (c *said) Resume(context.Context, libvirtx.Domain) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resumes++
	return nil
}

// disk is a running guest's disk of a volume.
func (d *Daemon) disk(volume, target, alias string) string {
	return `<disk type='network' device='disk'><source protocol='nbd'><host transport='unix' socket='` + d.socketPath(volume) +
		`'/></source><target dev='` + target + `'/><alias name='` + alias + `'/></disk>`
}

// domainHere is a domain of which the test plays the goroutine.
func (d *Daemon) domainHere(name string) *domain {
	return newDomain(d, libvirtx.Domain{Name: name, UUID: uuid.NewSHA1(uuid.NameSpaceOID, []byte(name))})
}

// lookedUp is a libvirt with one domain.
type lookedUp struct {
	*said
	id libvirtx.Domain
}

func (c lookedUp) Lookup(context.Context, string) (libvirtx.Domain, error) { return c.id, nil }

// failing starts no engine.
type failing struct{ launch.Launcher }

func (failing) Start(context.Context, *api.EngineSpec, string) (*launch.Process, error) {
	return nil, errors.New("no engine today")
}

func (c *said) Domains(context.Context) ([]libvirtx.Domain, error) { return nil, nil }
