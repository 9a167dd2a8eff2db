package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/virt-cow/virt-cow/test/lab"
)

// The plugins of hooks/plugins, as they are shipped, on what they are for.

func TestMain(m *testing.M) {
	lab.Main()
	os.Exit(m.Run())
}

// needs skips a test where a program that the example needs is missing.
func needs(t *testing.T, programs ...string) {
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv(lab.RequireEnv) == "1" {
				t.Fatal(err)
			}
			t.Skip("SKIPPED: ", err, ": run scripts/deps.sh")
		}
	}
}

// example installs a plugin as its comment says: a link to it, and its configuration beside that.
func (s *site) example(name, link, conf string) {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "hooks", "plugins", name))
	if err != nil {
		s.t.Fatal(err)
	}
	installed := filepath.Join(s.state, name)
	if err := os.WriteFile(installed, b, 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Symlink(installed, link); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(link+".conf", []byte(conf), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func TestWebhook(t *testing.T) {
	t.Parallel()
	needs(t, "curl")
	type post struct {
		method, auth, kind string
		body               []byte
	}
	posts := make(chan post, 100)
	var busy atomic.Int32 // answers 503 so often
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if busy.Add(-1) >= 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		b, _ := io.ReadAll(r.Body)
		posts <- post{r.Method, r.Header.Get("Authorization"), r.Header.Get("Content-Type"), b}
	}))
	defer server.Close()
	s := newSite(t, deadline)
	link := filepath.Join(s.dir, "50-alerts")
	s.example("webhook", link, fmt.Sprintf("url = \"%s/virt-cow\"\nheader = \"Authorization: Bearer s3cret\"\n", server.URL))

	busy.Store(1) // tried again
	for _, event := range After {
		e := attach("v1")
		e.Event = event
		s.runner.Tell(e)
	}
	for _, event := range After {
		p := <-posts
		var doc struct {
			Event  string
			Volume Volume
		}
		if err := json.Unmarshal(p.body, &doc); err != nil || doc.Event != event || doc.Volume.Name != "v1" {
			t.Errorf("%s: %v: %s", event, err, p.body)
		}
		if p.method != http.MethodPost || p.auth != "Bearer s3cret" || p.kind != "application/json" {
			t.Errorf("%s: %+v", event, p)
		}
	}
	for _, event := range append([]string{"cut"}, Before...) { // asked nothing, whoever listens
		e := attach("v1")
		e.Event = event
		if err := s.runner.Ask(t.Context(), e); err != nil {
			t.Error(err)
		}
	}
	if s.runner.Failures() != 0 {
		t.Errorf("%d failures\n%s", s.runner.Failures(), s.log)
	}

	if err := os.Chmod(link+".conf", 0o640); err != nil {
		t.Fatal(err)
	}
	s.runner.Tell(told("v1", 0))
	s.await("an open secret is refused", func() bool { return s.runner.Failures() == 1 })
	s.wantLog("chmod 600")
	if err := os.Remove(link + ".conf"); err != nil {
		t.Fatal(err)
	}
	s.runner.Tell(told("v1", 0))
	s.await("no configuration", func() bool { return s.runner.Failures() == 2 })
	if len(posts) != 0 {
		t.Error("posted all the same")
	}
	if strings.Contains(s.log.String(), "s3cret") {
		t.Error("the log has the secret")
	}
}

// contract is what every provider must do.
func contract(t *testing.T, p *Provider, exists func(path string) bool) {
	t.Helper()
	ctx := t.Context()
	const name, size = "web-1.test_x", 8 << 20
	if c, err := p.Capabilities(ctx); err != nil || c.Schema < 1 {
		t.Fatalf("capabilities: %+v, %v", c, err)
	}
	if _, err := p.Resolve(ctx, name); !errors.Is(err, ErrNotFound) {
		t.Fatalf("resolve before create: %v", err)
	}
	var wg sync.WaitGroup
	paths := make([]string, 3)
	for i := range paths { // at once, and so more than once
		wg.Go(func() {
			var err error
			if paths[i], err = p.Create(ctx, name, size); err != nil {
				t.Errorf("create: %v", err)
			}
		})
	}
	wg.Wait()
	path := paths[0]
	if paths[1] != path || paths[2] != path || !exists(path) {
		t.Fatalf("create gave %q", paths)
	}
	if got, err := p.Resolve(ctx, name); err != nil || got != path {
		t.Errorf("resolve: %q, %v", got, err)
	}
	if _, err := p.Create(ctx, name, 2*size); !errors.Is(err, ErrProvider) || !strings.Contains(err.Error(), "fewer than") {
		t.Errorf("create of a larger one of the same name: %v", err)
	}
	if _, err := p.Create(ctx, name, size/2); err != nil {
		t.Errorf("create of a smaller one of the same name: %v", err)
	}
	if err := p.Delete(ctx, name, path+"x"); !errors.Is(err, ErrProvider) || !exists(path) {
		t.Errorf("delete of another path: %v", err)
	}
	for range 2 {
		if err := p.Delete(ctx, name, path); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if exists(path) {
		t.Error("still there")
	}
	if _, err := p.Resolve(ctx, name); !errors.Is(err, ErrNotFound) {
		t.Errorf("resolve after delete: %v", err)
	}
}

func TestProviderFolder(t *testing.T) {
	t.Parallel()
	needs(t, "jq")
	s := newSite(t, deadline)
	folder := filepath.Join(s.state, "a folder's stores")
	link := filepath.Join(ProvidersDir(s.dir), "nfs")
	s.example("provider-folder", link, "# a comment\nfolder="+folder+"\n")
	p, err := s.runner.Provider("nfs")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Create(t.Context(), "v1", 4096); !errors.Is(err, ErrProvider) || !strings.Contains(err.Error(), "mount it") {
		t.Errorf("without its folder: %v", err)
	}
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	contract(t, p, func(path string) bool { st, err := os.Stat(path); return err == nil && st.Size() == 8<<20 })

	// A call that was killed between the two steps of create is repeated.
	if err := os.WriteFile(filepath.Join(folder, "v2.store"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if path, err := p.Create(t.Context(), "v2", 4096); err != nil || path != filepath.Join(folder, "v2.store") {
		t.Errorf("got %s, %v", path, err)
	}
}

func TestProviderLibvirtPool(t *testing.T) {
	t.Parallel()
	needs(t, "jq", "virsh")
	h := lab.For(t, lab.Config{Name: "pool"})
	pool := filepath.Join(h.Dir, "pool")
	for _, args := range [][]string{
		{"pool-define-as", "guests", "dir", "--target", pool}, {"pool-build", "guests"}, {"pool-start", "guests"},
	} {
		if _, err := h.Run(t.Context(), "virsh", append([]string{"-c", "qemu:///system"}, args...)...); err != nil {
			t.Fatal(err)
		}
	}
	s := newSite(t, deadline)
	conf := "pool=guests\nconnect=qemu+unix:///system?socket=" + h.LibvirtSocket() + "\n"
	s.example("provider-libvirt-pool", filepath.Join(ProvidersDir(s.dir), "guests"), conf+"thin=no\n")
	p, err := s.runner.Provider("guests")
	if err != nil {
		t.Fatal(err)
	}
	contract(t, p, func(path string) bool { st, err := os.Stat(path); return err == nil && st.Size() == 8<<20 })

	blocks := map[string]int64{}
	s.example("provider-libvirt-pool", filepath.Join(ProvidersDir(s.dir), "thin"), conf+"thin=yes\n")
	thin, err := s.runner.Provider("thin")
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]*Provider{"full": p, "thin": thin} {
		path, err := p.Create(t.Context(), name, 8<<20)
		if err != nil {
			t.Fatal(err)
		}
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		blocks[name] = st.Blocks * 512
	}
	if blocks["full"] < 8<<20 || blocks["thin"] > 1<<20 {
		t.Errorf("bytes taken: %v", blocks)
	}

	// What another host put into the pool is found; a libvirt that is not there is not a missing store.
	if err := os.WriteFile(filepath.Join(pool, "elsewhere.store"), make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if path, err := p.Resolve(t.Context(), "elsewhere"); err != nil || path != filepath.Join(pool, "elsewhere.store") {
		t.Errorf("got %s, %v", path, err)
	}
	if _, err := h.Run(t.Context(), "virsh", "-c", "qemu:///system", "pool-destroy", "guests"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Resolve(t.Context(), "elsewhere"); !errors.Is(err, ErrProvider) || errors.Is(err, ErrNotFound) {
		t.Errorf("with the pool stopped: %v", err)
	}
	if err := p.Delete(t.Context(), "elsewhere", ""); !errors.Is(err, ErrProvider) {
		t.Errorf("delete with the pool stopped: %v", err)
	}
}
