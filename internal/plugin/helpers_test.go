package plugin

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// deadline bounds what is bound to happen soon.
const deadline = 2 * time.Minute

// site is a folder of plugins, one of providers beside it, and a Runner on both.
type site struct {
	t      *testing.T
	dir    string // plugins.d
	state  string // where plugins of the test leave something
	log    *syncBuffer
	runner *Runner
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newSite(t *testing.T, timeout time.Duration) *site {
	t.Helper()
	root := t.TempDir()
	s := &site{t: t, dir: filepath.Join(root, "plugins.d"), state: filepath.Join(root, "state"), log: &syncBuffer{}}
	for _, d := range []string{root, s.dir, s.state, ProvidersDir(s.dir)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(d, 0o755); err != nil { // whatever the umask
			t.Fatal(err)
		}
	}
	s.runner = New(Config{Dir: s.dir, Timeout: timeout, ProviderTimeout: timeout, Host: "hv1", Version: "v0", Log: zerolog.New(s.log)})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s.runner.Close(ctx)
	})
	return s
}

// plugin installs an event plugin: a shell script, with the folder for its traces in $S.
func (s *site) plugin(name, body string) string { return s.script(filepath.Join(s.dir, name), body) }

func (s *site) provider(name, body string) string {
	return s.script(filepath.Join(ProvidersDir(s.dir), name), body)
}

func (s *site) script(path, body string) string {
	s.t.Helper()
	tmp := filepath.Join(s.state, ".script")
	if err := os.WriteFile(tmp, []byte("#!/bin/sh\nS="+s.state+"\n"+body+"\n"), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// trace is what plugins wrote to a file of $S, "" while there is none.
func (s *site) trace(name string) string {
	b, err := os.ReadFile(filepath.Join(s.state, name))
	if err != nil && !os.IsNotExist(err) {
		s.t.Fatal(err)
	}
	return string(b)
}

// await polls.
func (s *site) await(what string, ok func() bool) {
	s.t.Helper()
	for end := time.Now().Add(deadline); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("still not: %s\n%s", what, s.log)
		}
	}
}

func (s *site) wantLog(part string) {
	s.t.Helper()
	if !strings.Contains(s.log.String(), part) {
		s.t.Errorf("the log does not have %q:\n%.4000s", part, s.log)
	}
}

func attach(volume string) Event {
	return Event{
		Event: EventAttach, Target: "vdb",
		Volume: Volume{Name: volume, UUID: "5f0e2e0c-5a6b-4d2b-9c0a-1f8f3d6f7a10", Store: "/dev/mapper/lun7"},
		Domain: Domain{Name: "g1", UUID: "c1d2e3f4-0000-4000-8000-000000000001"},
	}
}
