package uring

import (
	"os"
	"regexp"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// A ring's thread gets no signals: under many of them the kernel cancelled some of 9000 writes to a sparse file, one time in a few
// thousand, and with those that Go sends left some for ever.
func TestSignalsAreBlocked(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := blocked(t)
	r := ring(t, 8)
	if b := blocked(t); b&bit(unix.SIGURG) == 0 || b&bit(unix.SIGTERM) == 0 || b&bit(unix.SIGSEGV) != 0 {
		t.Errorf("blocked: %#x", b)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if b := blocked(t); b != before {
		t.Errorf("blocked after the end: %#x, before %#x", b, before)
	}
}

func bit(s unix.Signal) uint64 { return 1 << (s - 1) }

// blocked are the signals that this thread does not get.
func blocked(t *testing.T) uint64 {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^SigBlk:\s*([0-9a-f]+)$`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("%s", b)
	}
	mask, err := strconv.ParseUint(string(m[1]), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return mask
}
