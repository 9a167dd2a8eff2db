package main

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// rusage is what the kernel says this process has used, counted in microseconds.
func rusage(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestCPUTime reads the clock of this very process between two readings of its resource usage, after having
// burnt some CPU in threads that ended.
func TestCPUTime(t *testing.T) {
	const slack = 20 * time.Millisecond // rusage splits user from system time by ticks
	for start := rusage(t); rusage(t) < start+100*time.Millisecond; {
	}
	before := rusage(t)
	got, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	after := rusage(t)
	if got < before-slack || got > after+slack {
		t.Errorf("CPU time %v, want between %v and %v", got, before, after)
	}
}

func TestCPUTimeOfTheDead(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Skipf("SKIP: no program true: %v", err)
	}
	if d, err := cpuTime(cmd.Process.Pid); err == nil {
		t.Errorf("a process that ended has a clock: %v", d)
	}
}

func TestMemoryParse(t *testing.T) {
	m := memory{}
	m.parse("Name:\tvirt-cow\nVmRSS:\t   12345 kB\nThreads:\t7\n")
	m.parse("55d0-7ffd ---p 00000000 00:00 0    [rollup]\nPss:                9876 kB\nPrivate_Clean:        10 kB\nPrivate_Dirty:      2000 kB\n")
	if m["VmRSS"] != 12345 || m["Pss"] != 9876 || m.private() != 2010 || len(m) != 4 {
		t.Errorf("parsed %v", m)
	}
}

func TestProcessMemory(t *testing.T) {
	m, err := processMemory(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if m["VmRSS"] <= 0 || m["Pss"] <= 0 || m.private() <= 0 {
		t.Errorf("this process has no memory: %v", m)
	}
}
