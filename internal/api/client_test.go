package api

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// answering serves one fixed answer on a daemon's socket and returns the run folder.
func answering(t *testing.T, code int, body string) string {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, DaemonSocket))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		io.WriteString(w, body)
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return dir
}

func TestClientReadsAnswers(t *testing.T) {
	for _, c := range []struct {
		code  int
		body  string
		error string // "" for none
	}{
		{200, `{"pid":7,"volumes":[{"volume":"a","state":"attached"}]}`, ""},
		{404, `{"error":"no volume a"}`, "no volume a"},
		{500, `<html>`, "500 Internal Server Error: <html>"},
		{200, `{"pid":`, "unexpected end of JSON"},
		{200, `[]`, "cannot unmarshal"},
	} {
		s, err := NewDaemon(answering(t, c.code, c.body)).Status(t.Context())
		if c.error == "" {
			if err != nil || s.PID != 7 || len(s.Volumes) != 1 {
				t.Errorf("%d %s: %+v %v", c.code, c.body, s, err)
			}
			continue
		}
		var remote *RemoteError
		if err == nil || !strings.Contains(err.Error(), c.error) || errors.As(err, &remote) != (c.code != 200) || remote != nil && remote.Code != c.code {
			t.Errorf("%d %s: want an error with %q, got %v", c.code, c.body, c.error, err)
		}
	}
}

// A daemon that does not know a path answers with no JSON, as Go's server does by itself.
func TestOlderDaemon(t *testing.T) {
	for body, older := range map[string]bool{"404 page not found\n": true, `{"error":"no volume a"}`: false} {
		_, err := NewDaemon(answering(t, 404, body)).Cache(t.Context(), "a", CacheRequest{Mode: CacheOff})
		var remote *RemoteError
		if !errors.As(err, &remote) || remote.Older != older || strings.Contains(err.Error(), "is older than this program") != older {
			t.Errorf("%s: %v", body, err)
		}
	}
}

func TestNothingAnswers(t *testing.T) {
	dir := t.TempDir()
	if _, err := NewDaemon(dir).Status(t.Context()); !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), "systemctl start virt-cow") {
		t.Error(err)
	}
	// A socket whose process was killed.
	l, err := net.Listen("unix", filepath.Join(dir, "e.ctl"))
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if _, err := os.Stat(filepath.Join(dir, "e.ctl")); err != nil {
		t.Fatal(err)
	}
	if _, err := NewEngine(filepath.Join(dir, "e.ctl")).Status(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Error(err)
	}
}

func TestCallEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "e.ctl")
	l, err := net.Listen("unix", path) // accepts nothing: the kernel completes the connection, nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := NewEngine(path).Status(ctx)
		ended <- err
	}()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
