package serve

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/nbd"
)

// post sends a request as it is, and returns what came back.
func post(t *testing.T, socket, method, path, body string) (int, map[string]any) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	r, err := http.NewRequestWithContext(t.Context(), method, "http://virt-cow"+path, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer map[string]any
	if err := json.Unmarshal(b, &answer); err != nil {
		t.Fatalf("%s %s: %s: %v", method, path, b, err)
	}
	return resp.StatusCode, answer
}

// covers says what of a recorded answer is missing in one of today, or has another type.
func covers(t *testing.T, at string, recorded, now any) {
	t.Helper()
	want, object := recorded.(map[string]any)
	if !object {
		if fmt.Sprintf("%T", recorded) != fmt.Sprintf("%T", now) {
			t.Errorf("%s was %T, is %T", at, recorded, now)
		}
		return
	}
	got, _ := now.(map[string]any)
	for key, value := range want {
		if _, there := got[key]; !there {
			t.Errorf("%s.%s is missing", at, key)
			continue
		}
		covers(t, at+"."+key, value, got[key])
	}
}

// A daemon of control version 1 sends what it always sent, and finds in the answers all that it knows. The recorded
// answer is one of such an engine.
func TestControlVersion1(t *testing.T) {
	text, err := os.ReadFile("testdata/v1-status.json")
	if err != nil {
		t.Fatal(err)
	}
	var recorded map[string]any
	if err := json.Unmarshal(bytes.Replace(text, []byte("PID"), []byte("1"), 1), &recorded); err != nil {
		t.Fatal(err)
	}
	delete(recorded, "master") // this volume has none
	c, _ := config(t)
	stop := start(t, c)
	defer stop()
	socket := api.ControlPath(c.Socket)
	for _, r := range []struct {
		method, path, body string
		code               int
		also               map[string]any // beside the recorded answer
	}{
		{"GET", "/v1/status", "", 200, nil},
		{"POST", "/v1/suspend", `{"deadlineMillis":60000}`, 200, map[string]any{"suspended": true}},
		{"POST", "/v1/suspend", `{"deadlineMillis":60000}`, 409, nil},
		{"POST", "/v1/resume", "{}", 200, nil},
		{"POST", "/v1/resume", "{}", 409, nil},
		{"POST", "/v1/hydration", `{"rate":1048576}`, 200, map[string]any{"hydration": map[string]any{"rate": 1.0}}},
		{"POST", "/v1/hydration", `{"run":false}`, 200, nil},
		{"POST", "/v1/hydration", `{"run":true,"rate":0}`, 200, nil},
		{"POST", "/v1/hydration", `{"rate":-1}`, 400, nil},
		{"POST", "/v1/suspend", `{"deadlineMillis":0}`, 400, nil},
		{"POST", "/v1/stop", "{}", 200, nil},
	} {
		code, answer := post(t, socket, r.method, r.path, r.body)
		if code != r.code {
			t.Errorf("%s %s: %d %v, want %d", r.path, r.body, code, answer, r.code)
		}
		if code != 200 {
			if text, _ := answer["error"].(string); text == "" {
				t.Errorf("%s %s: no error in %v", r.path, r.body, answer)
			}
			continue
		}
		covers(t, r.path, recorded, answer)
		if r.also != nil {
			covers(t, r.path, r.also, answer)
		}
	}
}

func TestClientRequests(t *testing.T) {
	c, _ := config(t)
	stop := start(t, c)
	defer stop()
	socket := api.ControlPath(c.Socket)
	peer := `{"domain":"g","uuid":"5a5a5a5a-5a5a-4a5a-8a5a-5a5a5a5a5a5a","pidFile":"/run/g.pid"}`
	for _, r := range []struct {
		body string
		code int
		has  bool // a client, afterwards
	}{
		{`{"client":` + peer + `}`, 200, true},
		{`{}`, 400, true}, // left out by mistake: that opens nothing
		{`{"client":7}`, 400, true},
		{`{"client":{}}`, 400, true},
		{`{"client":{"domain":"g","uuid":"x","pidFile":"/p"}}`, 400, true},
		{`{"client":null}`, 200, false},
	} {
		if code, answer := post(t, socket, "POST", api.PathEngineClient, r.body); code != r.code {
			t.Errorf("%s: %d %v", r.body, code, answer)
		}
		if _, answer := post(t, socket, "GET", api.PathEngineStatus, ""); (answer["client"] != nil) != r.has {
			t.Errorf("after %s: %v", r.body, answer["client"])
		}
	}
}

// Idle, slow and senseless clients on the control socket: others are answered, and the disk does not notice.
func TestControlUnderSiege(t *testing.T) {
	c, _ := config(t)
	stop := start(t, c)
	defer stop()
	socket := api.ControlPath(c.Socket)
	dev, err := nbd.Dial(t.Context(), "nbd+unix:///?socket="+c.Socket, nbd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var besiegers sync.WaitGroup
	defer besiegers.Wait()
	defer cancel()
	besiege := func(n int, siege func(c net.Conn)) {
		for range n {
			c, err := net.Dial("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			context.AfterFunc(ctx, func() { c.Close() })
			besiegers.Go(func() { siege(c) })
		}
	}
	besiege(200, func(net.Conn) {}) // idle
	besiege(20, func(c net.Conn) {  // a byte at a time, for ever
		for _, b := range bytes.Repeat([]byte("GET /v1/status HTTP/1.1\r\nX-Slow: 1\r\n"), 1000) {
			if _, err := c.Write([]byte{b}); err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	besiege(10, func(c net.Conn) { // no end
		for {
			if _, err := c.Write(bytes.Repeat([]byte("garbage\x00\xff"), 4096)); err != nil {
				return
			}
		}
	})
	besiege(10, func(c net.Conn) { // asks, and never reads
		for {
			if _, err := c.Write([]byte("GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
				return
			}
		}
	})
	e := api.NewEngine(socket)
	p := blockdev.Alloc(4096)
	defer blockdev.Free(p)
	for range 200 {
		if _, err := dev.WriteAt(p, 0); err != nil {
			t.Fatal(err)
		}
		if err := dev.Flush(); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Status(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	besiege(200, func(net.Conn) {}) // more than there is room for: those before them are sent away
	patience, end := context.WithTimeout(t.Context(), time.Minute)
	defer end()
	if _, err := e.Status(patience); err != nil {
		t.Errorf("never answered again: %v", err)
	}
	if _, err := dev.WriteAt(p, 0); err != nil {
		t.Error(err)
	}
}
