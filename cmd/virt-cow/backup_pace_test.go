package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
)

// Rates are of the last while, ETA of them, and a job that went back to its checkpoint has no rates of before.
func TestPace(t *testing.T) {
	t.Parallel()
	const mi = 1 << 20
	began := time.Unix(1_700_000_000, 0)
	s := api.JobStatus{State: api.JobCopying, Started: began.Unix(), Size: 1000 * mi}
	fill, low := int64(250*mi), int64(0)
	s.Disks = []api.JobDisk{{Target: "vda", Size: 500 * mi, Saved: &low}, {Target: "vdb", Size: 500 * mi, Saved: &fill}, {Target: "vdc", Size: 500 * mi}}
	var p pace
	now := began
	for range 100 { // for a minute and forty seconds 1 MiB/s, a tenth of it written
		s.Seen, s.Read, s.Written, s.Zero = s.Seen+mi, s.Read+mi, s.Written+mi/10, s.Zero+mi/2
		now = now.Add(time.Second)
		p.add(now, &s)
	}
	for range 20 { // and then ten
		s.Seen, s.Read, s.Written = s.Seen+10*mi, s.Read+10*mi, s.Written+mi
		now = now.Add(time.Second)
		p.add(now, &s)
	}
	got, want := p.progress(&s).text(&s, now), " 30.0% (300 MiB of 1000 MiB) in 2m0s, ETA 1m10s, read 10 MiB/s, write 1 MiB/s, snapshot of vdb 50.0% full, sparse 5.0%, reused 0.0%"
	if got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	s.Seen, s.Read, s.Written = 200*mi, 200*mi, 20*mi
	p.add(now.Add(time.Second), &s)
	if got := p.progress(&s); got.ReadRate != 0 || got.ETA != nil {
		t.Errorf("%+v", got)
	}
}

// Who does not want to wait for a migration does not wait the daemon's ten minutes.
func TestWaitOfBackup(t *testing.T) {
	t.Parallel()
	for wait, want := range map[time.Duration]int64{0: 1, 300 * time.Millisecond: 1, 1500 * time.Millisecond: 2, 10 * time.Minute: 600, -time.Minute: -60} {
		if got := (&BackupFlags{Wait: wait}).request().WaitSeconds; got != want {
			t.Errorf("--wait %v: %d seconds, want %d", wait, got, want)
		}
	}
}

// Only another backup of the domain is a reason to skip it, which a timer's unit takes for well.
func TestBackupRefused(t *testing.T) {
	t.Parallel()
	env := &Env{RunDir: t.TempDir(), Stdout: io.Discard, Stderr: io.Discard, Context: t.Context()}
	l, err := net.Listen("unix", filepath.Join(env.RunDir, api.DaemonSocket))
	if err != nil {
		t.Fatal(err)
	}
	var refusal api.Error
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusConflict)
		_ = json.NewEncoder(w).Encode(refusal)
	})}
	go s.Serve(l)
	defer s.Close()
	for code, want := range map[string]int{api.ErrorBusy: exitLocked, "": exitFailed} {
		refusal = api.Error{Message: "no", Code: code}
		if got := exitCode((&BackupFlags{}).run(env, api.BackupRequest{Domain: "g"})); got != want {
			t.Errorf("refused with 409 and code %q: exit code %d, want %d", code, got, want)
		}
	}
}

// Who does not wait for the cut any longer has not called it off.
func TestBackupInterrupted(t *testing.T) {
	t.Parallel()
	env := &Env{RunDir: t.TempDir(), Stdout: io.Discard, Stderr: io.Discard}
	l, err := net.Listen("unix", filepath.Join(env.RunDir, api.DaemonSocket))
	if err != nil {
		t.Fatal(err)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	env.Context = ctx
	s := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadAll(r.Body)
		interrupt()
		<-r.Context().Done()
	})}
	go s.Serve(l)
	defer s.Close()
	if err := (&BackupFlags{}).run(env, api.BackupRequest{Domain: "g"}); err == nil || !strings.Contains(err.Error(), "goes on") {
		t.Error(err)
	}
}
