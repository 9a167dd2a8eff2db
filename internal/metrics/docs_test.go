package metrics

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/virt-cow/virt-cow/test/lab"
)

const (
	boardFile  = "../../docs/grafana-virt-cow.json"
	alertsFile = "../../docs/prometheus-alerts.yml"
)

// nodeOnly is what an image node exposes and a daemon does not.
func nodeOnly(t *testing.T) string {
	var own strings.Builder
	for line := range strings.Lines(scrapeNode(t)) {
		if strings.Contains(line, "virt_cow_node_") {
			own.WriteString(line)
		}
	}
	return own.String()
}

// names are the metrics that the daemon and the image node expose.
func names(t *testing.T) []string {
	var list []string
	for line := range strings.Lines(scrape(t, fleet(1)) + nodeOnly(t)) {
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, kind, _ := strings.Cut(strings.TrimSpace(rest), " ")
			if kind == "histogram" {
				list = append(list, name+"_bucket", name+"_sum", name+"_count")
			} else {
				list = append(list, name)
			}
		}
	}
	return list
}

var (
	metricName = regexp.MustCompile(`\bvirt_cow_[a-z0-9_]+\b`)
	recordName = regexp.MustCompile(`\bvirt_cow:[a-z0-9_:]+\b`)
)

// wantKnown wants every metric named in text to be exposed, and returns those it names.
func wantKnown(t *testing.T, where, text string, known []string) []string {
	t.Helper()
	used := metricName.FindAllString(text, -1)
	for _, name := range used {
		if !slices.Contains(known, name) {
			t.Errorf("%s: no metric %s", where, name)
		}
	}
	return used
}

type grid struct{ X, Y, W, H int }

type board struct {
	Title, UID string
	ID         *int
	Templating struct {
		List []struct{ Name, Type, Definition string }
	}
	Panels []struct {
		ID          int
		Type, Title string
		GridPos     grid
		Datasource  struct{ UID string }
		Targets     []struct {
			RefID, Expr string
			Datasource  struct{ UID string }
		}
	}
}

func TestBoard(t *testing.T) {
	b, err := os.ReadFile(boardFile)
	if err != nil {
		t.Fatal(err)
	}
	var d board
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	if d.Title == "" || d.UID == "" || d.ID != nil { // with an id of another Grafana it can't be imported
		t.Errorf("title %q, uid %q, id %v", d.Title, d.UID, d.ID)
	}
	known, used := names(t), []string{}
	var variables []string
	for _, v := range d.Templating.List {
		variables = append(variables, v.Name+":"+v.Type)
		used = append(used, wantKnown(t, "variable "+v.Name, v.Definition, known)...)
	}
	if !slices.Equal(variables, []string{"datasource:datasource", "host:query", "volume:query"}) {
		t.Errorf("variables %v", variables)
	}
	ids, cells := map[int]bool{}, map[[2]int]string{}
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("panel %s: id %d twice", p.Title, p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := cells[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("panel %s at %+v: over %q or outside", p.Title, p.GridPos, other)
				}
				cells[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if len(p.Targets) == 0 || p.Datasource.UID != "${datasource}" {
			t.Errorf("panel %s: %d targets of %q", p.Title, len(p.Targets), p.Datasource.UID)
		}
		for _, q := range p.Targets {
			if q.Datasource.UID != "${datasource}" || !strings.Contains(q.Expr, "$host") {
				t.Errorf("panel %s: %s of %q", p.Title, q.Expr, q.Datasource.UID)
			}
			names := wantKnown(t, "panel "+p.Title, q.Expr, known)
			if len(names) == 0 {
				t.Errorf("panel %s: no metric in %s", p.Title, q.Expr)
			}
			used = append(used, names...)
		}
	}
	for _, name := range known { // what is exposed is shown
		if strings.HasPrefix(name, "virt_cow_") && !strings.HasSuffix(name, "_sum") && !strings.HasSuffix(name, "_count") &&
			name != "virt_cow_start_time_seconds" && !slices.Contains(used, name) {
			t.Errorf("the board does not show %s", name)
		}
	}
}

// docs/METRICS.md has a line for each metric, with its kind, and for no other.
func TestDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/METRICS.md")
	if err != nil {
		t.Fatal(err)
	}
	want, got := map[string]bool{}, map[string]bool{}
	for line := range strings.Lines(scrape(t, fleet(1)) + nodeOnly(t)) {
		if rest, ok := strings.CutPrefix(line, "# TYPE virt_cow_"); ok {
			want["virt_cow_"+strings.TrimSpace(rest)] = true
		}
	}
	for line := range strings.Lines(string(b)) {
		if cells := strings.Split(line, "|"); len(cells) == 6 && strings.Contains(cells[1], "virt_cow_") {
			got[strings.Trim(cells[1], " `")+" "+strings.TrimSpace(cells[2])] = true
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("documented\n%q\nexposed\n%q", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
}

// What the board asks is PromQL: promtool reads it as rules.
func TestBoardQueries(t *testing.T) {
	promtool := promtool(t)
	b, err := os.ReadFile(boardFile)
	if err != nil {
		t.Fatal(err)
	}
	var d board
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	type rule struct {
		Record string `json:"record"`
		Expr   string `json:"expr"`
	}
	rules := []rule{}
	variables := strings.NewReplacer("$__rate_interval", "5m", "$host", ".*", "$volume", ".*")
	for _, p := range d.Panels {
		for _, q := range p.Targets {
			rules = append(rules, rule{fmt.Sprintf("panel_%d_%s", p.ID, q.RefID), variables.Replace(q.Expr)})
		}
	}
	file := filepath.Join(t.TempDir(), "rules.yml") // JSON is YAML
	b, err = json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "board", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), promtool, "check", "rules", file).CombinedOutput(); err != nil || len(rules) == 0 {
		t.Errorf("%d queries: %v\n%s", len(rules), err, out)
	}
}

func TestAlerts(t *testing.T) {
	b, err := os.ReadFile(alertsFile)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	wantKnown(t, alertsFile, text, names(t))
	for _, name := range recordName.FindAllString(text, -1) {
		if !strings.Contains(text, "record: "+name+"\n") {
			t.Errorf("%s is recorded nowhere", name)
		}
	}
	alerts := strings.Count(text, "- alert: ")
	for _, part := range []string{"severity: ", "summary: ", "description: "} {
		if n := strings.Count(text, part); n != alerts {
			t.Errorf("%d alerts and %d times %q", alerts, n, part)
		}
	}
	promtool := promtool(t)
	for _, args := range [][]string{{"check", "rules", alertsFile}, {"test", "rules", filepath.Join("testdata", "alerts.yml")}} {
		if out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// promtool also finds all wrong that the whole exposition may have.
func TestExposition(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), promtool(t), "check", "metrics")
	var own strings.Builder
	for line := range strings.Lines(scrape(t, fleet(3)) + nodeOnly(t)) {
		if strings.Contains(line, "virt_cow_") {
			own.WriteString(line)
		}
	}
	cmd.Stdin = strings.NewReader(own.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func promtool(t *testing.T) string {
	t.Helper()
	if p, err := exec.LookPath("promtool"); err == nil {
		return p
	}
	dir, err := lab.CacheDir()
	if err == nil {
		p := filepath.Join(dir, "promtool")
		if _, err = os.Stat(p); err == nil {
			return p
		}
	}
	if os.Getenv(lab.RequireEnv) == "1" {
		t.Fatal(err)
	}
	t.Skip("SKIPPED: no promtool: run scripts/deps.sh: ", err)
	return ""
}
