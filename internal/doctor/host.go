package doctor

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/config"
)

func configuration(_ context.Context, h *Host) []Finding {
	var found []Finding
	problems := h.Config.Problems()
	if h.Root == "" {
		problems = append(problems, h.Config.CheckHost()...)
	}
	for _, p := range problems {
		if p.Key == "run_dir" && p.Warning && strings.Contains(p.Message, "tmpfs") {
			continue // a check of its own
		}
		f := Finding{Result: Problem, Seen: p.String(), Why: "the daemon does not start with it", Mend: "virt-cow config check"}
		if p.Warning {
			f.Result, f.Why = Warning, "it works, but not well"
		}
		found = append(found, f)
	}
	if found != nil {
		return found
	}
	if h.Config.File == "" {
		return well("no file, all defaults")
	}
	return well("%s", h.Config.File)
}

func runFolder(_ context.Context, h *Host) []Finding {
	dir := h.Config.Config.RunDir
	switch tmpfs, known := config.OnTmpfs(h.path(dir)); {
	case !known:
		return skipped("%s: no telling what file system it is on", dir)
	case !tmpfs:
		return []Finding{{
			Result: Warning, Seen: dir + " is not on a tmpfs",
			Why:  "a reboot must empty it: old sockets and caches mislead the next daemon; and a disk makes first writes slow",
			Mend: "mount -t tmpfs tmpfs " + quote(dir) + " # while nothing is served; or set run_dir in the configuration to a folder below /run",
		}}
	}
	return well("%s is on a tmpfs", dir)
}

func machineID(_ context.Context, h *Host) []Finding {
	if id := h.Config.Config.Engine.HostUUID; id != "" {
		return well("engine.host_uuid %s stands for it", id)
	}
	id, err := h.read("/etc/machine-id")
	const why = "stores are owned by hosts; two hosts that look like one would both write to a volume"
	switch {
	case err != nil || id == "" || id == "uninitialized":
		return []Finding{{Result: Problem, Seen: "/etc/machine-id is missing or empty", Why: why, Mend: "systemd-machine-id-setup"}}
	case len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "":
		return []Finding{{
			Result: Problem, Seen: fmt.Sprintf("/etc/machine-id is %q, which is no machine id", id), Why: why,
			Mend: "rm /etc/machine-id && systemd-machine-id-setup",
		}}
	case strings.Count(id, id[:1]) == len(id) || strings.HasPrefix(id, "0123456789abcdef") || strings.HasSuffix(id, "00000000"):
		return []Finding{{
			Result: Problem, Seen: "/etc/machine-id is " + id + ", which others may well have too", Why: why,
			Mend: "rm /etc/machine-id && systemd-machine-id-setup # with no guest running",
		}}
	}
	return well("%s", id)
}

func clock(_ context.Context, h *Host) []Finding {
	var t unix.Timex
	state, err := h.Adjtime(&t)
	if err != nil {
		return skipped("the kernel does not tell: %v", err)
	}
	const timeError = 5 // TIME_ERROR
	if state == timeError || t.Status&unix.STA_UNSYNC != 0 {
		return []Finding{{
			Result: Warning, Seen: "the kernel's clock is not synchronised",
			Why:  "what hosts write into headers and logs has times; they are compared by people when a volume is recovered",
			Mend: "timedatectl set-ntp true || apt-get install chrony",
		}}
	}
	return well("synchronised, at most %s off", strconv.FormatInt(t.Maxerror/1000, 10)+" ms")
}

func ioUring(_ context.Context, h *Host) []Finding {
	value, err := h.read("/proc/sys/kernel/io_uring_disabled")
	if err != nil || value == "0" { // kernels before 6.6 have no such switch
		return well("not switched off")
	}
	return []Finding{{
		Result: Warning, Seen: "kernel.io_uring_disabled is " + value,
		Why:  "engines then serve with one thread a request, which costs several times the processor time",
		Mend: "echo kernel.io_uring_disabled=0 >/etc/sysctl.d/50-virt-cow.conf && sysctl --system && virt-cow volume restart --all",
	}}
}

// What an engine or the daemon should be allowed at least.
const (
	leastFiles   = 4096
	leastMemlock = 8 << 20
)

func limits(_ context.Context, h *Host) []Finding {
	var found []Finding
	for name, pid := range h.processes() {
		text, err := h.read(fmt.Sprintf("/proc/%d/limits", pid))
		if err != nil {
			continue
		}
		for _, l := range []struct {
			line  string
			least uint64
			set   string
		}{{"Max open files", leastFiles, "LimitNOFILE=1048576"}, {"Max locked memory", leastMemlock, "LimitMEMLOCK=infinity"}} {
			if value, ok := limitOf(text, l.line); ok && value < l.least {
				found = append(found, Finding{
					Result: Warning, Seen: fmt.Sprintf("%s (pid %d): %s is %d", name, pid, strings.ToLower(l.line), value),
					Why:  "with many connections or buffers it comes to its limit, and requests fail",
					Mend: "set " + l.set + " in its unit (systemctl edit), or ulimit where it is started, then restart it",
				})
			}
		}
	}
	used, err1 := h.number("/proc/sys/fs/aio-nr")
	most, err2 := h.number("/proc/sys/fs/aio-max-nr")
	if err1 == nil && err2 == nil && used > most/10*9 {
		found = append(found, Finding{
			Result: Warning, Seen: fmt.Sprintf("%d of %d fs.aio requests are taken", used, most),
			Why: "guests with io='native' disks fail to start when none is left", Mend: "echo fs.aio-max-nr=1048576 >/etc/sysctl.d/50-aio.conf && sysctl --system",
		})
	}
	if found == nil {
		return well("enough for files, locked memory and aio")
	}
	return found
}

// processes are those of the daemon and its engines.
func (h *Host) processes() map[string]int {
	all := map[string]int{}
	if h.daemon != nil {
		all["daemon"] = h.daemon.PID
		for _, v := range h.daemon.Volumes {
			if v.PID != 0 {
				all["engine of "+v.Volume] = v.PID
			}
		}
	}
	return all
}

func (h *Host) number(path string) (uint64, error) {
	text, err := h.read(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(text, 10, 64)
}

// limitOf reads the soft limit of one line of /proc/PID/limits.
func limitOf(text, name string) (value uint64, ok bool) {
	for line := range strings.Lines(text) {
		if rest, is := strings.CutPrefix(line, name); is {
			fields := strings.Fields(rest)
			if len(fields) == 0 || fields[0] == "unlimited" {
				return 0, false
			}
			n, err := strconv.ParseUint(fields[0], 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

func room(_ context.Context, h *Host) []Finding {
	c := &h.Config.Config
	var found []Finding
	for _, d := range []struct{ path, why string }{
		{c.StoreDir, "a store in it that can't grow stops its guest at the next first write"},
		{c.StateDir, "volumes can't be made, adopted or deleted without a catalogue"},
		{c.RunDir, "an engine needs room for its exception cache, or it does not start"},
	} {
		var st unix.Statfs_t
		if err := unix.Statfs(h.path(d.path), &st); err != nil {
			continue
		}
		free, total := st.Bavail*uint64(st.Bsize), st.Blocks*uint64(st.Bsize)
		inodes := st.Files == 0 || st.Ffree > st.Files/100
		f := Finding{Result: OK, Why: d.why, Mend: "df -h " + quote(d.path) + " # make room, or move it"}
		f.Seen = fmt.Sprintf("%s: %d MiB free of %d", d.path, free>>20, total>>20)
		switch {
		case total == 0:
			continue
		case free < total/100 && free < 1<<30 || !inodes:
			f.Result = Problem
		case free < total/20 && free < 10<<30:
			f.Result = Warning
		}
		if !inodes {
			f.Seen += ", and hardly an inode"
		}
		if f.Result == OK {
			f.Why, f.Mend = "", ""
		}
		found = append(found, f)
	}
	if found == nil {
		return skipped("none of the folders is there yet")
	}
	return found
}
