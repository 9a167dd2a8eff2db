package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// processClock is the clock id of a process's CPU time, as clock_getcpuclockid(3) makes it: the
// complement of the pid, shifted, with CPUCLOCK_SCHED in the low bits (include/linux/posix-timers.h).
func processClock(pid int) int32 { return int32(^pid<<3 | 2) }

// cpuTime is the user and system time a process has used: all its threads, those which have ended and the
// kernel's io_uring workers too. It counts nanoseconds, where /proc/PID/stat counts hundredths of a second.
func cpuTime(pid int) (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(processClock(pid), &ts); err != nil {
		return 0, fmt.Errorf("CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// memory is what a process holds, in KiB, by its name in /proc/PID/status and /proc/PID/smaps_rollup.
type memory map[string]int64

// processMemory reads VmRSS, Pss and the private pages of a process.
func processMemory(pid int) (memory, error) {
	m := memory{}
	for _, file := range []string{"status", "smaps_rollup"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
		if err != nil {
			return nil, err
		}
		m.parse(string(b))
	}
	for _, name := range []string{"VmRSS", "Pss", "Private_Dirty"} {
		if _, ok := m[name]; !ok {
			return nil, fmt.Errorf("/proc/%d: no %s", pid, name)
		}
	}
	return m, nil
}

// parse takes the lines "Name:  123 kB".
func (m memory) parse(text string) {
	for sc := bufio.NewScanner(strings.NewReader(text)); sc.Scan(); {
		name, rest, ok := strings.Cut(sc.Text(), ":")
		f := strings.Fields(rest)
		if !ok || len(f) != 2 || f[1] != "kB" {
			continue
		}
		if v, err := strconv.ParseInt(f[0], 10, 64); err == nil {
			m[name] = v
		}
	}
}

// private is what would be free again if the process ended, in KiB.
func (m memory) private() int64 { return m["Private_Clean"] + m["Private_Dirty"] }
