package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// TestServerThatFails: a server which can't start is an error that carries what it said, at once.
func TestServerThatFails(t *testing.T) {
	argv := []string{"sh", "-c", "echo no such overlay >&2; exit 3"}
	_, err := startServer(t.Context(), argv, nil, filepath.Join(t.TempDir(), "n.sock"))
	if err == nil || !strings.Contains(err.Error(), "no such overlay") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("error %v, want its words and its exit status", err)
	}
}

// TestServerInterrupted: an interrupt while a server starts ends the server too.
func TestServerInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	begin := time.Now()
	_, err := startServer(ctx, []string{"sleep", "600"}, nil, filepath.Join(t.TempDir(), "n.sock"))
	if err == nil || !strings.Contains(err.Error(), context.Canceled.Error()) {
		t.Errorf("error %v, want canceled", err)
	}
	if d := time.Since(begin); d > startTimeout {
		t.Errorf("took %v", d)
	}
}

// TestOneCell runs a cell for real against every peer this machine has, on a master of 16 MiB, and checks
// what must hold on any machine: each chunk was written once, flushed for every 32, and nothing is left.
func TestOneCell(t *testing.T) {
	parent := t.TempDir()
	o := &options{Bin: "no-virt-cow-here", Dir: parent, Size: 16 << 20, Chunk: 64 << 10, Runtime: time.Second, Rounds: 1}
	b, err := newBench(o, zerolog.New(zerolog.NewTestWriter(t)))
	if err != nil {
		t.Skipf("SKIP: nothing can be measured here: %v", err)
	}
	if err := b.makeMaster(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := makeLogs(b); err != nil {
		t.Fatal(err)
	}
	f := &fleet{b: b, live: map[string]*instance{}}
	for _, p := range b.peers {
		s, err := f.measure(t.Context(), p, cell{rw: "randwrite", bs: blockSize, state: first, sync: true, depth: 16})
		if err != nil {
			t.Errorf("%s: %v", p.name, err)
			continue
		}
		if s.Requests != 256 || s.Syncs != 8 || s.IOPS <= 0 || s.P99 < s.P50 || s.CPU <= 0 {
			t.Errorf("%s: %+v, want 256 writes, 8 flushes and figures", p.name, s)
		}
		s, err = f.measure(t.Context(), p, cell{rw: "read", bs: 256 << 10, state: untouched, depth: 1})
		if err != nil || s.Requests < 64 {
			t.Errorf("%s: %+v, %v, want a read of the whole disk", p.name, s, err)
		}
	}
	if err := f.close(); err != nil {
		t.Error(err)
	}
	b.close()
	if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if _, err := exec.LookPath("nbdkit"); err != nil {
		t.Log("SKIP: nbdkit's part, it is not installed")
	}
}
