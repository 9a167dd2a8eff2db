package peer

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/test/lab/pki"
)

// wait is how long a test polls for what must come.
const wait = 60 * time.Second

// authorities, one that hosts believe and one that they don't.
var ours, theirs = sync.OnceValue(func() *pki.Authority { return authority("ours") }),
	sync.OnceValue(func() *pki.Authority { return authority("theirs") })

func authority(name string) *pki.Authority {
	a, err := pki.New(name)
	if err != nil {
		panic(err)
	}
	return a
}

func issue(t testing.TB, a *pki.Authority, r pki.Request) *pki.Pair {
	t.Helper()
	p, err := a.Issue(r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// server is a request for a good host's certificate.
func server(names ...string) pki.Request { return pki.Request{Names: names, Server: true} }

// logs is what was logged.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// await waits for a text in the log.
func (l *logs) await(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(wait); !strings.Contains(l.String(), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %q in the log:\n%s", text, l)
		}
	}
}

// host is a folder with certificates.
type host struct {
	dir   string
	files Files
	log   *logs
	id    *Identity
}

func files(dir string) Files {
	return Files{CA: filepath.Join(dir, pki.CACert), Cert: filepath.Join(dir, pki.ServerCert), Key: filepath.Join(dir, pki.ServerKey)}
}

// newHost believes an authority, and shows a certificate, if not nil.
func newHost(t *testing.T, believes *pki.Authority, shows *pki.Pair) *host {
	t.Helper()
	h := &host{dir: t.TempDir(), log: new(logs)}
	h.files = files(h.dir)
	if shows != nil {
		h.put(t, believes, shows)
	}
	h.id = NewIdentity(h.files, zerolog.New(h.log))
	return h
}

func (h *host) put(t *testing.T, believes *pki.Authority, shows *pki.Pair) {
	t.Helper()
	if err := shows.WriteServer(h.dir, believes); err != nil {
		t.Fatal(err)
	}
}

func (h *host) client() *Client { return &Client{Identity: h.id, Timeout: wait} }

// Question and answer of the test's handler.
type (
	sayIn  struct{ Say string }
	sayOut struct {
		Said   string
		By     string
		IsHost bool
	}
)

// running is a Server that runs.
type running struct {
	*host
	address string
	mu      sync.Mutex
	asked   int
}

func (r *running) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

// serve runs a server until the test ends, which then waits for all of its goroutines.
func (h *host) serve(t *testing.T, hosts ...string) *running {
	t.Helper()
	return h.serveAt(t, "127.0.0.1:0", wait, hosts...)
}

func (h *host) serveAt(t *testing.T, listen string, patience time.Duration, hosts ...string) *running {
	t.Helper()
	may, err := ParseHosts(hosts)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		t.Skipf("%s: %v", listen, err)
	}
	r := &running{host: h, address: l.Addr().String()}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /say", r.say)
	mux.HandleFunc("POST /hang", func(_ http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body) // only then does the server watch for the other side's going
		<-req.Context().Done()
	})
	mux.HandleFunc("POST /much", func(w http.ResponseWriter, req *http.Request) { _, _ = w.Write(make([]byte, 2*maxAnswer)) })
	mux.HandleFunc("POST /odd", func(w http.ResponseWriter, req *http.Request) { _, _ = w.Write([]byte("<html>")) })
	mux.HandleFunc("POST /gone", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	s := &Server{Identity: h.id, Hosts: may, Handler: mux, Log: zerolog.New(h.log), patience: patience}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *running) say(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.asked++
	r.mu.Unlock()
	zerolog.Ctx(req.Context()).Info().Msg("handled")
	var in sayIn
	if err := json.NewDecoder(req.Body).Decode(&in); err != nil || in.Say == "fail" {
		w.WriteHeader(http.StatusConflict)
		message := "it is in use"
		if err != nil {
			message = err.Error()
		}
		_ = json.NewEncoder(w).Encode(api.Error{Message: message})
		return
	}
	who := From(req.Context())
	_ = json.NewEncoder(w).Encode(sayOut{Said: in.Say, By: who.String(), IsHost: who.Match("hb.test")})
}

// dialled asks with more and more time, until that was enough to get a connection: whoever did not run for so long has none.
func dialled(ask func(time.Duration) error, timeout time.Duration) error {
	for ; ; timeout *= 2 {
		if err := ask(timeout); err == nil || timeout > wait || !strings.Contains(err.Error(), "no connection within") {
			return err
		}
	}
}

// secrets are texts of a key that must be in no log.
func secrets(t *testing.T, f Files) []string {
	t.Helper()
	b, err := os.ReadFile(f.Key)
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")[1:2]
}
