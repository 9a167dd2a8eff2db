package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
)

func hydration(s *server, r api.HydrationRequest) *api.EngineStatus {
	s.b.t.Helper()
	st, err := s.engine().Hydration(context.Background(), r)
	if err != nil {
		s.b.t.Fatal(err)
	}
	return st
}

func TestStatusAndStop(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.image("m.raw", mib)
	b.clone("c.vcow", "m.raw")
	s := b.serve("c.vcow", "--rate", "1M")
	dev := s.dial()
	write(t, dev, noise(1, 512), 0)
	flush(t, dev)
	st := s.status()
	if st.Volume != "c" || st.PID != s.cmd.Process.Pid || st.Store != b.path("c.vcow") || st.Socket != s.socket || st.Size != mib ||
		st.ControlVersion != api.ControlVersion || st.Target != "clone" || st.Master != b.path("m.raw") || st.Cache != "on" ||
		st.Connections != 1 || st.IO.Writes != 1 || st.IO.WriteBytes != 512 || st.IO.Flushes != 1 || st.IO.Copied == 0 ||
		st.Hydration.State != api.HydrationPaused || st.Hydration.Rate != mib || st.UUID != b.info("c.vcow").UUID {
		t.Errorf("%+v, hydration %+v", st, st.Hydration)
	}
	for kind, want := range map[string]uint64{"read": st.IO.Reads, "write": 1, "flush": 1} {
		eventually(t, fmt.Sprintf("latencies of %d requests to %s", want, kind), func() bool { // counted after the reply
			n := uint64(0)
			for _, c := range s.status().IO.Latency[kind].Counts {
				n += c
			}
			return n == want
		})
	}
	if err := s.engine().Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.wait(0)
	if i := b.info("c.vcow"); i.Owner != nil {
		t.Error("stop left the owner")
	}
	if _, err := s.engine().Status(context.Background()); !errors.Is(err, api.ErrNotRunning) {
		t.Errorf("status of what was stopped: %v", err)
	}
}

func TestRateChangesWhileHydrating(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	master := b.image("m.raw", 24*mib)
	b.clone("c.vcow", "m.raw")
	s := b.serve("c.vcow", "--hydrate", "--rate", "4K")
	eventually(t, "hydration runs", func() bool { return s.status().Hydration.State == api.HydrationRunning })
	if st := s.status(); st.Hydration.Rate != 4096 || st.Hydration.Done == st.Hydration.Total {
		t.Errorf("%+v", st.Hydration)
	}
	yes, no, zero := true, false, int64(0)
	if st := hydration(s, api.HydrationRequest{Run: &no}); st.Hydration.State != api.HydrationPaused {
		t.Errorf("paused: %+v", st.Hydration)
	}
	done := s.status().Hydration.Done
	hydration(s, api.HydrationRequest{Run: &yes})
	if now := s.status().Hydration; now.Done < done || now.State != api.HydrationRunning {
		t.Errorf("after pause at %d: %+v", done, now)
	}
	time.Sleep(500 * time.Millisecond) // the copies now wait for their turn at the old rate
	// At 4 KiB a second this would take more than an hour.
	hydration(s, api.HydrationRequest{Rate: &zero})
	s.hydrated()
	holds(t, s.dial(), master, 0)
	if st := s.status(); st.Target != "linear" || st.Master != "" {
		t.Errorf("cut loose: %+v", st)
	}
	bad := int64(-1)
	if _, err := s.engine().Hydration(context.Background(), api.HydrationRequest{Rate: &bad}); err == nil || !strings.Contains(err.Error(), "rate -1") {
		t.Errorf("negative rate: %v", err)
	}
	hydration(s, api.HydrationRequest{Run: &yes}) // does nothing: it is done
	s.stop()
}

func TestSuspendAndResume(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.run("store", "create", "--size", "1M", b.path("c.vcow")).exits(0)
	s := b.serve("c.vcow")
	dev := s.dial()
	ctx := context.Background()
	if _, err := s.engine().Resume(ctx); err == nil || !strings.Contains(err.Error(), "not suspended") {
		t.Errorf("resume of what runs: %v", err)
	}
	for _, deadline := range []int64{0, -5, 1 << 62} {
		if _, err := s.engine().Suspend(ctx, api.SuspendRequest{DeadlineMillis: deadline}); err == nil || !strings.Contains(err.Error(), "deadlineMillis") {
			t.Errorf("deadline %d: %v", deadline, err)
		}
	}
	st, err := s.engine().Suspend(ctx, api.SuspendRequest{DeadlineMillis: 3600_000})
	if err != nil || !st.Suspended {
		t.Fatalf("%+v, %v", st, err)
	}
	if _, err := s.engine().Suspend(ctx, api.SuspendRequest{DeadlineMillis: 1000}); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("a second suspension: %v", err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := dev.WriteAt(noise(1, 512), 0)
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("a write went through a suspension: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if st, err = s.engine().Resume(ctx); err != nil || st.Suspended {
		t.Fatalf("%+v, %v", st, err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	// Nobody resumes: the deadline does.
	if _, err := s.engine().Suspend(ctx, api.SuspendRequest{DeadlineMillis: 100}); err != nil {
		t.Fatal(err)
	}
	write(t, dev, noise(2, 512), 512)
	if _, err := s.engine().Resume(ctx); err == nil || !strings.Contains(err.Error(), "deadline") {
		t.Errorf("resume after the deadline: %v", err)
	}
	holds(t, dev, noise(1, 512), 0)
	s.stop()
}

func TestGarbageOnTheSockets(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.image("m.raw", mib)
	b.clone("c.vcow", "m.raw")
	s := b.serve("c.vcow")
	control := api.ControlPath(s.socket)
	dev := s.dial()
	for _, socket := range []string{control, s.socket} {
		for _, text := range []string{"", "\x00\x01\x02\xff", "GET / HTTP/9.9\r\n\r\n", strings.Repeat("A", 1<<20), "POST /v1/stop HTTP/1.1\r\n\r\n"} {
			c, err := net.Dial("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write([]byte(text)) // it may hang up at any byte
			c.Close()
		}
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", control)
	}}}
	defer client.CloseIdleConnections()
	for _, c := range []struct {
		method, path, body string
		code               int
	}{
		{"GET", "/", "", 404},
		{"GET", "/v1/stop", "", 405},
		{"DELETE", "/v1/status", "", 405},
		{"POST", "/v1/suspend", "", 400},
		{"POST", "/v1/suspend", "{", 400},
		{"POST", "/v1/suspend", `{"deadlineMillis":"soon"}`, 400},
		{"POST", "/v1/suspend", `{"deadlineMillis":1e99}`, 400},
		{"POST", "/v1/suspend", `[]`, 400},
		{"POST", "/v1/hydration", `{"run":"maybe"}`, 400},
		{"POST", "/v1/hydration", `{"rate":1.5}`, 400},
		{"POST", "/v1/hydration", `{"pad":"` + strings.Repeat("x", 1<<20) + `"}`, 400},
		{"POST", "/v1/resume", "", 409},
	} {
		r, err := http.NewRequest(c.method, "http://engine"+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.code {
			t.Errorf("%s %s %.40s: %d %s, want %d", c.method, c.path, c.body, resp.StatusCode, answer, c.code)
		}
	}
	if s.ended() { // the stop above had no host and no complete header
		t.Fatal("garbage ended the engine")
	}
	write(t, dev, noise(1, 512), 0)
	holds(t, dev, noise(1, 512), 0)
	s.stop()
}

// Nothing of a request is held back because many ask at once.
func TestManyControlClients(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.run("store", "create", "--size", "1M", b.path("c.vcow")).exits(0)
	s := b.serve("c.vcow")
	errs := make(chan error, 32)
	for i := range cap(errs) {
		go func() {
			switch i % 4 {
			case 0:
				_, err := s.engine().Suspend(context.Background(), api.SuspendRequest{DeadlineMillis: 50})
				if err != nil && !strings.Contains(err.Error(), "already") {
					errs <- fmt.Errorf("suspend: %w", err)
					return
				}
			case 1:
				_, err := s.engine().Resume(context.Background())
				if err != nil && !strings.Contains(err.Error(), "not suspended") && !strings.Contains(err.Error(), "deadline") {
					errs <- fmt.Errorf("resume: %w", err)
					return
				}
			default:
				if _, err := s.engine().Status(context.Background()); err != nil {
					errs <- fmt.Errorf("status: %w", err)
					return
				}
			}
			errs <- nil
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	eventually(t, "all suspensions end", func() bool { return !s.status().Suspended })
	s.stop()
}
