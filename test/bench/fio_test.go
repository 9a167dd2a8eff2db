package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func output(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The files are what fio 3.33 wrote: a read, a replay with flushes, and a write refused with ENOSPC.
func TestParseFio(t *testing.T) {
	for name, want := range map[string]sample{
		"read.json": {Requests: 40826, Seconds: 1.001, IOPS: 40785.214785, MBps: 167.056239, P50: 197.632, P99: 6258.688, Max: 23644.984},
		"replay.json": {Requests: 1024, Syncs: 32, Seconds: 0.058, IOPS: 17655.172414, MBps: 72.315586,
			P50: 175.104, P99: 8093.696, Max: 11526.864, SyncP99: 872.448},
	} {
		got, err := parseFio(output(t, name))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got != want {
			t.Errorf("%s:\n got %+v\nwant %+v", name, got, want)
		}
	}
}

func TestParseFioErrors(t *testing.T) {
	if _, err := parseFio(output(t, "failed.json")); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("failed job: %v, want ENOSPC", err)
	}
	for _, text := range []string{"", "fio: no such engine\n", "{\n \"jobs\" : [] }", "{\n \"jobs\" : [ {\"error\": 0} ] }"} {
		if s, err := parseFio([]byte(text)); err == nil {
			t.Errorf("%q: %+v, want an error", text, s)
		}
	}
}

func TestFioArgs(t *testing.T) {
	args := fioArgs("/d/n.sock", load{rw: "randread", bs: 4096, depth: 16, runtime: 1500 * time.Millisecond})
	for _, want := range []string{"--uri=nbd+unix:///?socket=/d/n.sock", "--rw=randread", "--bs=4096", "--iodepth=16", "--runtime=1500ms", "--time_based"} {
		if !slices.Contains(args, want) {
			t.Errorf("no %s in %q", want, args)
		}
	}
	args = fioArgs("/d/n.sock", load{rw: "write", bs: 4096, depth: 1, once: true, flush: true})
	if s := strings.Join(args, " "); strings.Contains(s, "time_based") || strings.Contains(s, "runtime") || !slices.Contains(args, "--end_fsync=1") {
		t.Errorf("a pass over the disk: %q", args)
	}
	args = fioArgs("/d/n.sock", load{rw: "randwrite", bs: 4096, depth: 1, replay: "/d/l"})
	if !slices.Contains(args, "--read_iolog=/d/l") || !slices.Contains(args, "--number_ios=1") || slices.Contains(args, "--rw=randwrite") {
		t.Errorf("a replay: %q", args)
	}
}
