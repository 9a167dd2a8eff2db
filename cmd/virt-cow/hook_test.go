package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
)

// hookTable reads the table of docs/HOOKS.md: its head and its rows.
func hookTable(t *testing.T) (head []string, rows [][]string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/HOOKS.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), "\n| call |")
	if !found {
		t.Fatal("docs/HOOKS.md has no table that begins with | call |")
	}
	for line := range strings.Lines("| call |" + table) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			break
		}
		var fields []string
		for f := range strings.SplitSeq(strings.Trim(line, "|"), "|") {
			fields = append(fields, strings.Trim(strings.TrimSpace(f), "`"))
		}
		switch {
		case head == nil:
			head = fields
		case fields[0] != "---":
			rows = append(rows, fields)
		}
	}
	return head, rows
}

// TestHookTable runs the hook for every field of the table in docs/HOOKS.md, as script and as program.
func TestHookTable(t *testing.T) {
	head, rows := hookTable(t)
	states := head[2:]
	if len(states) != len(daemonStates) || len(rows) < 17 {
		t.Fatalf("the table has %d states and %d rows", len(states), len(rows))
	}
	b := newHookBed(t)
	b.run("store", "create", "--size", "1M", "--name", "web1", "web1.cow").exits(0)
	engine := b.serve("web1.cow")
	var all sync.WaitGroup
	some := make(chan struct{}, 48) // most of them wait
	defer all.Wait()
	for _, row := range rows {
		if len(row) != len(head) {
			t.Fatalf("%d fields in %q", len(row), row)
		}
		for i, state := range states {
			if daemonStates[state] == nil {
				t.Fatalf("the table has a state %q that this test does not know", state)
			}
			for _, variant := range daemonStates[state] {
				for _, argv := range [][]string{{b.script}, {program, "hook"}} {
					all.Go(func() {
						some <- struct{}{}
						defer func() { <-some }()
						name := fmt.Sprintf("%s %s, %s, %s %s", filepath.Base(argv[0]), row[0], row[1], state, variant)
						t.Run(name, func(t *testing.T) { b.field(t, argv, engine, row[0], row[1], state, variant, row[2+i]) })
					})
				}
			}
		}
	}
}

func (b *hookBed) field(t *testing.T, argv []string, engine *server, call, domain, state, variant, want string) {
	d := b.daemon(t, state, variant, domain == "ours, served")
	xml := hookDomain("g1", "/run/other.sock")
	if domain != "foreign" {
		xml = hookDomain("g1", "/run/other.sock", filepath.Join(d.dir, "web1.sock"))
	}
	if domain == "ours, served" && variant != "no folder" {
		if err := os.Symlink(api.ControlPath(engine.socket), filepath.Join(d.dir, "web1.ctl")); err != nil {
			t.Fatal(err)
		}
	} else if domain == "ours, served" {
		return // without the folder there is no socket of an engine either
	}
	if call == "any other" {
		call = "frobnicate middle"
	}
	operation, phase, _ := strings.Cut(call, " ")
	listens := !slices.Contains([]string{"accepts nothing", "not HTTP"}, variant) // and notes what it is asked
	var code, runs int
	var said string
	for again := true; again; {
		r := b.hook(t.Context(), d.dir, d.timeout, xml, append(slices.Clone(argv), "g1", operation, phase, "-")...)
		if d.user != 0 {
			r.SysProcAttr.Credential = &syscall.Credential{Uid: d.user, Gid: d.user}
		}
		code, said = r.outcome(t), r.stderr.String()
		runs++
		// Telling it may take a second, which is too little now and then on a busy machine.
		for range 100 {
			if again = want == "told" && listens && runs < 10 && len(d.called()) == 0; !again {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	calls := d.called()
	var ok bool
	switch want {
	case "on":
		ok = code == 0 && said == "" && len(calls) == 0
	case "asked":
		ok = code == 0 && said == "" && slices.Equal(calls, []string{api.PathDaemonPrepare})
	case "told":
		ok = code == 0 && said == "" && (!listens || len(calls) > 0 && len(calls) <= runs && slices.Equal(slices.Compact(calls), []string{api.PathDaemonNotice}))
	case "warned":
		ok = code == 0 && strings.Contains(said, "without the daemon") && strings.Count(said, "\n") == 1
	case "veto":
		ok = code == 1 && strings.Contains(said, "domain g1") && len(said) < 1200 && saysWhy(variant, said)
	default:
		t.Fatalf("the table has an outcome %q that this test does not know", want)
	}
	if !ok {
		t.Errorf("%q: want %s, got exit code %d, calls %q, %q", argv, want, code, calls, said)
	}
}

// saysWhy checks that a veto names what is wrong.
func saysWhy(variant, said string) bool {
	why := map[string]string{
		"error": "store /s of volume web1 is open on host; b since noon", "page": "500 Internal Server Error",
		"garbage": "no proper answer", "hangs up": "no proper answer", "midway": "no proper answer", "not HTTP": "no proper answer",
		"silent": "no answer within 15s", "endless": "no answer within 15s", "accepts nothing": "no answer within 15s",
		"no socket": "systemctl start virt-cow", "stale socket": "systemctl start virt-cow", "no folder": "systemctl start virt-cow",
		"mode": "permission denied",
	}[variant]
	return why != "" && strings.Contains(said, why)
}
