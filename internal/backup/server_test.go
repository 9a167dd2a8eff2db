package backup

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/peer"
)

// ask asks as the host hv1 does.
func (r *rig) ask(path string, in any) (int, api.Error) {
	r.t.Helper()
	b, ok := in.([]byte)
	if !ok {
		var err error
		if b, err = json.Marshal(in); err != nil {
			r.t.Fatal(err)
		}
	}
	w := httptest.NewRecorder()
	req := httptest.NewRequest(http.MethodPost, path, bytes.NewReader(b))
	r.node.Handler().ServeHTTP(w, req.WithContext(peer.With(req.Context(), peer.Names{DNS: []string{"hv1"}})))
	var e api.Error
	if w.Code != http.StatusOK {
		if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil {
			r.t.Error(err)
		}
	}
	return w.Code, e
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	own := api.ReserveRequest{Domain: "web", UUID: domain, Host: "hv1", Address: "hv1:16589"}
	others := own
	others.Address = "hv2:16589"
	for _, c := range []struct {
		path string
		in   any
		code int
		busy bool
	}{
		{api.PathNodeReserve, others, 403, false},
		{api.PathNodeReserve, []byte("{"), 400, false},
		{api.PathNodeReserve, []byte(`{"domian":"x"}`), 400, false},
		{api.PathNodeReserve, api.ReserveRequest{Domain: "web", UUID: "x", Address: "hv1"}, 400, false},
		{api.PathNodeReserve, own, 200, false},
		{api.PathNodeReserve, own, 409, true},
		{api.PathNodeJobs, struct{}{}, 200, false},
		{api.PathNodeJob, api.JobRequest{Job: domain}, 404, false},
		{api.PathNodeCancel, api.JobRequest{Job: domain}, 404, false},
		{api.PathNodeStart, api.StartRequest{Job: domain}, 404, false},
	} {
		code, e := r.ask(c.path, c.in)
		if code != c.code || (e.Code == api.ErrorBusy) != c.busy {
			t.Errorf("%s %s: %d %+v", c.path, c.in, code, e)
		}
	}
}

// Commands of this host ask on a socket that only root may use.
func TestLocal(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- r.node.ServeLocal(ctx, dir, http.NotFoundHandler()) }()
	job := r.reserve()
	c := api.NewNode(dir)
	var list *api.JobList
	var err error
	for end := time.Now().Add(wait); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if list, err = c.BackupJobs(ctx); err == nil {
			break
		}
	}
	if err != nil || len(list.Jobs) != 1 || list.Jobs[0].Job != job {
		t.Fatal(list, err)
	}
	if s, err := c.CancelBackup(ctx, api.JobRequest{Job: job}); err != nil || s.State != api.JobCancelled {
		t.Error(s, err)
	}
	if s, err := c.BackupJob(ctx, api.JobRequest{Job: job}); err != nil || s.State != api.JobCancelled {
		t.Error(s, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); left != nil {
		t.Error(left)
	}
}

// A question for a change is answered when there is one.
func TestLongPoll(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	job := r.reserve()
	first, err := r.node.Job(t.Context(), api.JobRequest{Job: job})
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan api.JobStatus)
	go func() {
		s, _ := r.node.Job(t.Context(), api.JobRequest{Job: job, Changed: first.Changed})
		got <- s
	}()
	if _, err := r.node.Cancel(t.Context(), api.JobRequest{Job: job}); err != nil {
		t.Fatal(err)
	}
	if s := <-got; s.State != api.JobCancelled || s.Changed == first.Changed {
		t.Errorf("%+v", s)
	}
}
