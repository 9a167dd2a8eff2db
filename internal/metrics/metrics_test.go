package metrics

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/handover"
)

// engine is what a busy one says.
func engine(i int) *api.EngineStatus {
	h := &api.Histogram{Micros: 2_500_000}
	for b := range h.Counts {
		h.Counts[b] = uint64(b)
	}
	return &api.EngineStatus{
		Size: 1 << 30, Cache: "on", Connections: 1, Started: 1_700_000_000 + int64(i),
		Hydration: &api.Hydration{State: api.HydrationRunning, Done: 1 << 20, Total: 1 << 30, Rate: 50_000_000},
		IO: api.IOCounters{
			Reads: 10, Writes: 20, Flushes: 3, ReadBytes: 40960, WriteBytes: 1000, Copied: 500, Hydrated: 1500, Commits: 2, Errors: 1, Refused: 4,
			Latency: map[string]*api.Histogram{"read": h, "write": h, "flush": h, "unheard of": h},
		},
	}
}

// fleet is a daemon with n volumes.
func fleet(n int) *api.DaemonStatus {
	s := &api.DaemonStatus{
		Version: "v1.2", Started: 1_700_000_000, Catalogue: 2 * n, Libvirt: api.LibvirtStatus{Connected: true},
		Domains: []api.DomainStatus{{Domain: "g1", Error: "no free PCI port"}},
		Counters: api.Counters{Reconciles: 1, ReconcileErrors: 2, EngineRestarts: 3, Resumes: 4, Reconnects: 5, PluginFailures: 6, Vetoes: 7,
			MigrationsIn: 8, MigrationsOut: 9, MigrationsFailed: 10, Takeovers: 11},
	}
	for i := range n {
		s.Volumes = append(s.Volumes, api.VolumeStatus{
			Volume: fmt.Sprintf("vol%d", i), Domain: fmt.Sprintf("g%d", i), State: api.VolumeAttached, PID: 1000 + i, Engine: engine(i),
		})
	}
	s.Backups = []api.BackupStatus{{
		Domain: "g0", State: api.JobDone, Grade: api.GradeFS, Begun: 1_700_000_000, Ended: 1_700_000_090, LastSuccess: 1_700_000_090,
		HeldMicros: 2500, Size: 3 << 30, Read: 2 << 30, Written: 1 << 30, MaybeFrozen: true,
		WritesBefore: &api.WriteLatency{Writes: 10, MeanMicros: 500, P99Micros: 1024}, WritesDuring: &api.WriteLatency{Writes: 9, MeanMicros: 2000, P99Micros: 8192},
	}}
	s.Snapshots = []api.SnapshotNote{{Volume: "vol0", Stale: true}, {Volume: "vol1"}}
	handOver(&s.Volumes[0])
	return s
}

// node is an image node with a backup that is done, and one that goes on.
func node() *api.NodeStatus {
	saved := int64(1 << 28)
	return &api.NodeStatus{
		Version: "v1.2", Started: 1_700_000_000, Jobs: map[string]int{api.JobDone: 3, api.JobCopying: 1},
		Backups: []api.BackupStatus{
			{Domain: "g0", UUID: "b", State: api.JobFailed, Begun: 1, Ended: 2}, // one of before with its name
			{Domain: "g0", UUID: "a", State: api.JobDone, Grade: api.GradeFS, Begun: 1_700_000_000, Ended: 1_700_000_090, LastSuccess: 1_700_000_090,
				HeldMicros: 2500, Size: 8 << 30, Read: 6 << 30, Zero: 3 << 30, Reused: 2 << 30, Written: 1 << 30},
			{Domain: "g1", State: api.JobCopying, Grade: api.GradeCrash, Begun: 1_700_000_000},
		},
		Running: []api.JobStatus{{
			Domain: "g1", State: api.JobCopying, Waits: "the archive", Size: 2 << 30, Seen: 1 << 30,
			Disks: []api.JobDisk{{Size: 1 << 30, Saved: &saved}, {Size: 1 << 30}},
		}},
		Archive: api.ArchiveStatus{Up: true, Seen: 1_700_000_100, Maintained: 1_700_000_050, MaintenanceError: "no space"},
	}
}

// handOver has a volume on its way to another host, stuck.
func handOver(v *api.VolumeStatus) {
	ago := time.Now().Add(-time.Hour)
	v.Engine.Epoch = 5
	v.Engine.Grants = []api.Grant{{ID: "g2", Since: ago.Unix() + 60}, {ID: "g1", Since: ago.Unix()}}
	v.Engine.Handover = &api.Handover{Role: api.RoleGiver, State: "sealed", Since: ago.UnixMilli(), Held: 3, Waits: "hv2 does not answer"}
	v.Migration = &api.MigrationStatus{ID: "m", Direction: "out", Peer: "hv2", Since: ago.Unix()}
}

func scrape(t testing.TB, s *api.DaemonStatus) string {
	t.Helper()
	return exposed(t, Handler(func(context.Context) *api.DaemonStatus { return s }))
}

// scrapeNode is what an image node exposes.
func scrapeNode(t testing.TB) string {
	t.Helper()
	return exposed(t, NodeHandler(func(context.Context) *api.NodeStatus { return node() }))
}

func exposed(t testing.TB, h http.Handler) string {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func TestNode(t *testing.T) {
	text := scrapeNode(t)
	for _, line := range []string{
		`virt_cow_build_info{goversion="go`,
		`virt_cow_node_jobs{state="done"} 3`, `virt_cow_node_jobs{state="failed"} 0`, "virt_cow_node_jobs_waiting 1",
		`virt_cow_node_backup_last_success_time_seconds{domain="g0"} 1.70000009e+09`, `virt_cow_node_backup_last_success_time_seconds{domain="g1"} 0`,
		`virt_cow_node_backup_failed{domain="g0"} 0`, `virt_cow_node_backup_grade{domain="g0",grade="fs"} 1`,
		`virt_cow_node_backup_duration_seconds{domain="g0"} 90`, `virt_cow_node_backup_hold_seconds{domain="g0"} 0.0025`,
		`virt_cow_node_backup_bytes{domain="g0",kind="zero"} 3.221225472e+09`, `virt_cow_node_backup_bytes{domain="g0",kind="written"} 1.073741824e+09`,
		`virt_cow_node_backup_done_ratio{domain="g1"} 0.5`, `virt_cow_node_backup_snapshot_fill_ratio{domain="g1"} 0.25`,
		"virt_cow_node_archive_up 1", "virt_cow_node_archive_seen_time_seconds 1.7000001e+09", "virt_cow_node_archive_maintenance_owner 1",
		"virt_cow_node_archive_maintenance_time_seconds 1.70000005e+09", "virt_cow_node_archive_maintenance_failed 1", "go_goroutines ",
	} {
		if !strings.Contains(text, line) {
			t.Errorf("no %q", line)
		}
	}
	if strings.Contains(text, `done_ratio{domain="g0"}`) || strings.Contains(text, "virt_cow_volume") {
		t.Errorf("too much:\n%s", text)
	}
	w := httptest.NewRecorder()
	NodeHandler(func(context.Context) *api.NodeStatus { return nil }).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("no status: %d", w.Code)
	}
}

func TestValues(t *testing.T) {
	s := fleet(1)
	s.Volumes = append(s.Volumes,
		api.VolumeStatus{Volume: "silent", Domain: "g\xff\"\n", State: api.VolumeFailed, PID: 7, Old: true},
		api.VolumeStatus{Volume: "old", State: api.VolumeStarting, Engine: &api.EngineStatus{Cache: "off", Suspended: true, Error: "EIO"}},
		api.VolumeStatus{Volume: "coming", State: api.VolumeIncoming, Migration: &api.MigrationStatus{
			Direction: "in", Since: time.Now().Unix() + 1000, Waits: "its engine does not start",
		}})
	text := scrape(t, s)
	for _, line := range []string{
		`virt_cow_build_info{goversion="go`,
		"virt_cow_start_time_seconds 1.7e+09\n",
		"virt_cow_libvirt_connected 1\n",
		"virt_cow_catalogue_volumes 2\n",
		`virt_cow_volumes{state="attached"} 1` + "\n",
		`virt_cow_volumes{state="failed"} 1` + "\n",
		`virt_cow_volumes{state="off"} 0` + "\n",
		"virt_cow_domains_with_errors 1\n",
		"virt_cow_engines_old 1\n",
		"virt_cow_engines_not_answering 1\n",
		"virt_cow_reconciles_total 1\n", "virt_cow_reconcile_errors_total 2\n", "virt_cow_engine_restarts_total 3\n",
		"virt_cow_guest_resumes_total 4\n", "virt_cow_libvirt_reconnects_total 5\n", "virt_cow_plugin_failures_total 6\n",
		"virt_cow_plugin_vetoes_total 7\n",
		"virt_cow_migrations_in_total 8\n", "virt_cow_migrations_out_total 9\n", "virt_cow_migrations_failed_total 10\n", "virt_cow_takeovers_total 11\n",
		`virt_cow_volumes_migrating{direction="out"} 1` + "\n", `virt_cow_volumes_migrating{direction="in"} 1` + "\n",
		`virt_cow_volumes{state="incoming"} 1` + "\n", `virt_cow_volumes{state="served"} 0` + "\n",
		`virt_cow_volume_epoch{volume="vol0"} 5` + "\n", `virt_cow_volume_grants{volume="vol0"} 2` + "\n",
		`virt_cow_volume_grants{volume="old"} 0` + "\n", `virt_cow_volume_held_requests{volume="vol0"} 3` + "\n",
		`virt_cow_volume_handover_state{role="giver",state="sealed",volume="vol0"} 1` + "\n",
		`virt_cow_volume_handover_state{role="giver",state="open",volume="vol0"} 0` + "\n",
		`virt_cow_volume_handover_state{role="receiver",state="active",volume="vol0"} 0` + "\n",
		`virt_cow_volume_waiting{volume="vol0"} 1` + "\n", `virt_cow_volume_waiting{volume="old"} 0` + "\n",
		`virt_cow_volume_waiting{volume="coming"} 1` + "\n", // by what the daemon says, of an engine that does not answer
		`virt_cow_volume_info{domain="g0",volume="vol0"} 1` + "\n",
		`virt_cow_volume_info{domain="g?\"\n",volume="silent"} 1` + "\n",
		`virt_cow_volume_info{domain="",volume="old"} 1` + "\n",
		`virt_cow_volume_engine_up{volume="silent"} 0` + "\n",
		`virt_cow_volume_engine_old{volume="silent"} 1` + "\n",
		`virt_cow_volume_failed{volume="silent"} 1` + "\n",
		`virt_cow_volume_cache_on{volume="vol0"} 1` + "\n", `virt_cow_volume_cache_on{volume="old"} 0` + "\n",
		`virt_cow_volume_suspended{volume="old"} 1` + "\n", `virt_cow_volume_flush_failed{volume="old"} 1` + "\n",
		`virt_cow_volume_operations_total{kind="write",volume="vol0"} 20` + "\n",
		`virt_cow_volume_bytes_total{kind="read",volume="vol0"} 40960` + "\n",
		`virt_cow_volume_copied_bytes_total{volume="vol0"} 500` + "\n",
		`virt_cow_volume_hydrated_bytes_total{volume="vol0"} 1500` + "\n",
		`virt_cow_volume_commits_total{volume="vol0"} 2` + "\n", `virt_cow_volume_errors_total{volume="vol0"} 1` + "\n",
		`virt_cow_volume_refused_connections_total{volume="vol0"} 4` + "\n",
		`virt_cow_volume_write_amplification_ratio{volume="vol0"} 3` + "\n",
		`virt_cow_volume_hydration_state{state="running",volume="vol0"} 1` + "\n",
		`virt_cow_volume_hydration_state{state="done",volume="vol0"} 0` + "\n",
		`virt_cow_volume_hydration_done_bytes{volume="vol0"} 1.048576e+06` + "\n",
		// 0+1+…+5 took less than 2^5 us, 0+1+…+10 less than 2^10 us, 0+1+…+25 any time.
		`virt_cow_volume_request_duration_seconds_bucket{kind="write",volume="vol0",le="3.2e-05"} 15` + "\n",
		`virt_cow_volume_request_duration_seconds_bucket{kind="write",volume="vol0",le="0.001024"} 55` + "\n",
		`virt_cow_volume_request_duration_seconds_bucket{kind="write",volume="vol0",le="16.777216"} 300` + "\n",
		`virt_cow_volume_request_duration_seconds_bucket{kind="write",volume="vol0",le="+Inf"} 325` + "\n",
		`virt_cow_volume_request_duration_seconds_sum{kind="write",volume="vol0"} 2.5` + "\n",
		"go_goroutines ", "process_resident_memory_bytes ",
	} {
		if !strings.Contains(text, line) {
			t.Errorf("no %q", line)
		}
	}
	for _, part := range []string{"unheard of", `write_amplification_ratio{volume="old"}`, `size_bytes{volume="silent"}`,
		`grant_age_seconds{volume="old"}`, `handover_state_seconds{volume="old"}`, `waiting_seconds{volume="old"}`} {
		if strings.Contains(text, part) {
			t.Errorf("has %q", part)
		}
	}
	// Ages, by this host's clock; what another host's clock says has not come yet has none.
	for name, want := range map[string][2]float64{
		`grant_age_seconds{volume="vol0"}`: {3599, 3700}, `handover_state_seconds{volume="vol0"}`: {3599, 3700},
		`waiting_seconds{volume="vol0"}`: {3599, 3700}, `waiting_seconds{volume="coming"}`: {0, 0},
	} {
		_, rest, _ := strings.Cut(text, "virt_cow_volume_"+name+" ")
		line, _, _ := strings.Cut(rest, "\n")
		if age, err := strconv.ParseFloat(line, 64); err != nil || age < want[0] || age > want[1] {
			t.Errorf("%s: %q", name, line)
		}
	}
}

func TestLint(t *testing.T) {
	problems, err := promlint.New(strings.NewReader(scrape(t, fleet(2)) + nodeOnly(t))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "virt_cow_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

// Labels are those that the package's comment says, and their values few.
func TestCardinality(t *testing.T) {
	text := scrape(t, fleet(100))
	series := 0
	labels := regexp.MustCompile(`([a-z_]+)="`)
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "virt_cow_") {
			continue
		}
		series++
		for _, m := range labels.FindAllStringSubmatch(line, -1) {
			if !slices.Contains([]string{"volume", "domain", "state", "grade", "role", "direction", "kind", "when", "le", "version", "goversion"}, m[1]) {
				t.Fatalf("label %s: %s", m[1], line)
			}
			if m[1] == "domain" && !strings.HasPrefix(line, "virt_cow_volume_info{") && !strings.HasPrefix(line, "virt_cow_backup_") {
				t.Fatalf("a domain: %s", line)
			}
		}
	}
	if series > 90*100 || series < 60*100 {
		t.Errorf("%d series for 100 volumes", series)
	}
}

// No state of the tables is without its series.
func TestHandoverStates(t *testing.T) {
	found := 0
	for s := handover.State(1); s < 64; s++ {
		name := s.String()
		if name == "" || s == handover.Closed { // whose engine has ended
			continue
		}
		found++
		if !slices.Contains(handoverStates[api.RoleGiver], name) && !slices.Contains(handoverStates[api.RoleReceiver], name) {
			t.Errorf("state %s has no series", name)
		}
	}
	if found < 10 {
		t.Errorf("only %d states", found)
	}
}

// One volume that makes no sense does not hide the others.
func TestTwice(t *testing.T) {
	s := fleet(2)
	s.Volumes = append(s.Volumes, s.Volumes[0])
	if text := scrape(t, s); !strings.Contains(text, `virt_cow_volume_size_bytes{volume="vol1"}`) {
		t.Error("the other volume is not shown")
	}
}

func TestHandlerRefuses(t *testing.T) {
	h := Handler(func(context.Context) *api.DaemonStatus { return nil })
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("no status: %d", w.Code)
	}
	w = httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/metrics", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", w.Code)
	}
	entered, release := make(chan struct{}), make(chan struct{})
	h = Handler(func(context.Context) *api.DaemonStatus { entered <- struct{}{}; <-release; return fleet(1) })
	var wg sync.WaitGroup
	for range maxScrapes {
		wg.Go(func() { h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/metrics", nil)) })
		<-entered
	}
	w = httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("one too many: %d", w.Code)
	}
	close(release)
	wg.Wait()
}

func TestServe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.2:0") // where nobody else takes the port meanwhile
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	h := Handler(func(context.Context) *api.DaemonStatus { return fleet(1) })
	var log bytes.Buffer
	if err := Serve(t.Context(), address, h, zerolog.New(&log)); err == nil || !strings.Contains(err.Error(), address) {
		t.Errorf("a taken address: %v", err)
	}
	l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, address, h, zerolog.Nop()) }()
	get := func(path string) (int, string) {
		for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			resp, err := http.Get("http://" + address + path)
			if err != nil {
				if time.Now().After(end) {
					t.Fatal(err)
				}
				continue
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			return resp.StatusCode, string(b)
		}
	}
	if code, text := get("/metrics"); code != 200 || !strings.Contains(text, "virt_cow_build_info") {
		t.Errorf("%d %s", code, text)
	}
	for _, path := range []string{"/", "/v1/status", "/debug/pprof/"} {
		if code, _ := get(path); code != 404 {
			t.Errorf("%s: %d", path, code)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func BenchmarkScrape1000(b *testing.B) {
	s := fleet(1000)
	for b.Loop() {
		scrape(b, s)
	}
}
