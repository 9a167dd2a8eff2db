package top

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/virt-cow/virt-cow/internal/api"
)

func status(pid int, io api.IOCounters, h *api.Hydration) *api.DaemonStatus {
	return &api.DaemonStatus{Volumes: []api.VolumeStatus{
		{Volume: "v", State: api.VolumeAttached, Engine: &api.EngineStatus{PID: pid, IO: io, Hydration: h}},
		{Volume: "off", State: api.VolumeOff},
	}}
}

func TestRates(t *testing.T) {
	var m Meter
	begin := time.Unix(1000, 0)
	running := func(done int64) *api.Hydration {
		return &api.Hydration{State: api.HydrationRunning, Done: done, Total: 1000}
	}
	fast, slow := &api.Histogram{}, &api.Histogram{}
	fast.Counts[5], slow.Counts[5] = 100, 1090
	slow.Counts[12] = 10
	if r := m.Look(status(1, api.IOCounters{Reads: 50}, running(100)), begin); len(r) != 0 {
		t.Errorf("rates of one look: %v", r)
	}
	m.Look(status(1, api.IOCounters{Reads: 50, Latency: map[string]*api.Histogram{"read": fast}}, running(100)), begin)
	r := m.Look(status(1, api.IOCounters{
		Reads: 150, Writes: 20, Flushes: 2, ReadBytes: 4096, WriteBytes: 8192, Hydrated: 10, Latency: map[string]*api.Histogram{"read": slow},
	}, running(300)), begin.Add(2*time.Second))["v"]
	want := Rates{Reads: 50, Writes: 10, Flushes: 1, ReadBytes: 2048, WriteBytes: 4096, Hydrated: 5, P99: 32, Left: 7}
	if r == nil || *r != want {
		t.Errorf("%+v, want %+v", r, want)
	}
	// The speed is smoothed: 0.3 of 300 a second, 0.7 of 100.
	r = m.Look(status(1, api.IOCounters{Reads: 150}, running(600)), begin.Add(3*time.Second))["v"]
	if math.Abs(r.Left-400.0/160) > 1e-9 || r.Reads != 0 {
		t.Errorf("%+v", r)
	}
	if r := m.Look(status(2, api.IOCounters{Reads: 5}, running(600)), begin.Add(4*time.Second)); r["v"] != nil {
		t.Errorf("a new process's counters are compared with the old one's: %+v", r["v"])
	}
	if r := m.Look(status(2, api.IOCounters{Reads: 3}, nil), begin.Add(5*time.Second))["v"]; r.Reads != 0 || r.Left != 0 {
		t.Errorf("%+v", r)
	}
	if r := m.Look(status(2, api.IOCounters{}, nil), begin); r["v"] != nil {
		t.Error("rates although the clock went back")
	}
}

func TestTableFits(t *testing.T) {
	volumes := []api.VolumeStatus{
		{Volume: strings.Repeat("v", 64), Domain: "g\x1b[2Jü", Target: "vda", State: api.VolumeAttached, Old: true, Engine: &api.EngineStatus{
			Hydration: &api.Hydration{State: api.HydrationRunning, Done: 1 << 39, Total: 1 << 40},
		}},
		{Volume: "b", State: api.VolumeFailed},
	}
	rates := map[string]*Rates{volumes[0].Volume: {Reads: 12345, ReadBytes: 1 << 31, P99: 4096, Left: 4000}}
	for _, width := range []int{0, 1, 2, 10, 40, 80, 120, 400} {
		lines := Table(volumes, rates, width)
		if len(lines) != 3 {
			t.Fatal(lines)
		}
		for _, l := range lines {
			if utf8.RuneCountInString(l) > width || strings.Contains(l, "\x1b") {
				t.Errorf("%d: %q", width, l)
			}
		}
	}
	wide := Table(volumes, rates, 400)
	for _, want := range []string{"g?[2Jü", "12.3k", "2.0G", "4ms", "[======      ]  50% ETA 1h6m", "old binary"} {
		if !strings.Contains(wide[1], want) {
			t.Errorf("no %q in %q", want, wide[1])
		}
	}
	if narrow := Table(volumes, rates, 90)[0]; !strings.HasPrefix(narrow, "VOLUME") || !strings.Contains(narrow, "STATE") || strings.Contains(narrow, "NOTE") {
		t.Errorf("%q", narrow)
	}
}

func TestNotes(t *testing.T) {
	engine := &api.EngineStatus{Cache: "off", Grants: []api.Grant{{}}}
	for want, v := range map[string]api.VolumeStatus{
		"":                                {Engine: &api.EngineStatus{Cache: "on"}},
		"cache off, 1 granted":            {Engine: engine},
		"migrating out":                   {Migration: &api.MigrationStatus{Direction: "out"}},
		"WAITS, old binary, migrating in": {Old: true, Migration: &api.MigrationStatus{Direction: "in", Waits: "x"}},
		"cache off, migrating in, receiver idle": {Migration: &api.MigrationStatus{Direction: "in"}, Engine: &api.EngineStatus{
			Cache: "off", Handover: &api.Handover{Role: "receiver", State: "idle"}}},
		"WAITS, receiver active, 3 requests held": {Engine: &api.EngineStatus{Handover: &api.Handover{Role: "receiver", State: "active", Held: 3, Waits: "x"}}},
	} {
		if got := Note(&v); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestWrap(t *testing.T) {
	for line, want := range map[string][]string{
		"":                     {""},
		"one two":              {"one two"},
		"one two three":        {"one two", "  three"},
		"a-very-long-word two": {"a-very-long-word", "  two"},
		"ää öö üü ab":          {"ää öö üü", "  ab"},
	} {
		if got := Wrap(line, 9); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

func TestForPeople(t *testing.T) {
	for n, want := range map[float64]string{0: "0", 9999: "9999", 10000: "10.0k", 999400: "999.4k", 999600: "1.0M", 2.5e9: "2.5G"} {
		if got := Count(n); got != want {
			t.Errorf("%f: %s, want %s", n, got, want)
		}
	}
	for n, want := range map[float64]string{0: "0", 1: "1B", 1023: "1023B", 1024: "1.0K", 10 << 10: "10K", 1<<20 - 1: "1.0M", 1 << 62: "4.0E"} {
		if got := Bytes(n); got != want {
			t.Errorf("%f: %s, want %s", n, got, want)
		}
	}
	for s, want := range map[float64]string{0: "0s", 59.4: "59s", 59.6: "1m0s", 3600: "1h0m", 90000: "1d1h", 1e300: "11574d1h"} {
		if got := Duration(s); got != want {
			t.Errorf("%f: %s, want %s", s, got, want)
		}
	}
}

func TestKeysAndFrame(t *testing.T) {
	if got := keysOf("x\x1b[Aj\x1b[6~\x1bq"); !slices.Equal(got, []Key{Up, Down, PageDown, Quit}) {
		t.Error(got)
	}
	f := frame([]string{"one", "two is long", "three"}, 0, 5, 2)
	if f != "\x1b[H\x1b[7mone\x1b[K\x1b[0m\x1b[K\r\ntwo …\x1b[K\x1b[J" {
		t.Errorf("%q", f)
	}
}
