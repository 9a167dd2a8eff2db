package doctor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/virt-cow/virt-cow/hooks"
)

const (
	hookPath = "/etc/libvirt/hooks/qemu.d/50-virt-cow"
	hookWhy  = "without it a guest with a boot disk of ours does not start: nobody serves the volume before QEMU wants it"
)

func hook(_ context.Context, h *Host) []Finding {
	// qemu.d came with libvirt 6.5; the one script of the name qemu is as good.
	candidates := append(h.glob("/etc/libvirt/hooks/qemu.d/*"), "/etc/libvirt/hooks/qemu")
	var ours string
	var text string
	for _, c := range candidates {
		if t, err := os.ReadFile(h.path(c)); err == nil && strings.Contains(string(t), "virt-cow hook") {
			ours, text = c, string(t)
			break
		}
	}
	if ours == "" {
		return []Finding{{Result: Problem, Seen: "there is none in /etc/libvirt/hooks/qemu.d", Why: hookWhy, Mend: h.putHook(hookPath)}}
	}
	info, err := os.Stat(h.path(ours))
	if err != nil {
		return unread(err)
	}
	if info.Mode().Perm()&0o111 == 0 {
		return []Finding{{Result: Problem, Seen: ours + " is not executable: libvirt passes it over", Why: hookWhy, Mend: "chmod 755 " + quote(ours) + " && " + h.reload()}}
	}
	var found []Finding
	if text != hooks.QEMU && strings.HasPrefix(text, "#!/bin/sh\n# virt-cow's hook") {
		found = append(found, Finding{
			Result: Warning, Seen: ours + " is not the one of this version", Why: "it may miss what was mended since", Mend: h.putHook(ours),
		})
	}
	if f := h.notLoaded(ours, info, candidates); f != nil {
		found = append(found, *f)
	}
	if found != nil {
		return found
	}
	return well("%s", ours)
}

func (h *Host) putHook(path string) string {
	return fmt.Sprintf("virt-cow doctor --print-hook | install -D -m 755 /dev/stdin %s && %s", quote(path), h.reload())
}

// reload is the command that has libvirt look for hooks again.
func (h *Host) reload() string {
	if _, service, ok := h.libvirtBegan(); ok {
		return "systemctl reload " + service
	}
	if h.exists("/run/libvirt/virtqemud-sock") {
		return "systemctl reload virtqemud"
	}
	return "systemctl reload libvirtd"
}

// notLoaded tells of a hook that came after libvirt was started or reloaded, and is the first: libvirt remembers
// whether there is any.
func (h *Host) notLoaded(ours string, info os.FileInfo, all []string) *Finding {
	began, service, ok := h.libvirtBegan()
	if !ok {
		return nil
	}
	began = began.Add(time.Second) // the kernel tells when it booted in whole seconds
	changed := ctime(info)
	if !changed.After(began) {
		return nil
	}
	for _, c := range all {
		if other, err := os.Stat(h.path(c)); err == nil && c != ours && other.Mode().Perm()&0o111 != 0 && !ctime(other).After(began) {
			return nil // there was one already
		}
	}
	return &Finding{
		Result: Problem, Why: hookWhy, Mend: "systemctl reload " + service,
		Seen: fmt.Sprintf("%s is newer (%s) than %s's start or reload (%s), which remembers that there was no hook", ours,
			changed.Format(time.DateTime), service, began.Format(time.DateTime)),
	}
}

func ctime(info os.FileInfo) time.Time {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return info.ModTime()
	}
	return time.Unix(st.Ctim.Sec, st.Ctim.Nsec)
}

// libvirtBegan is when the running libvirtd or virtqemud was started, or last reloaded as far as systemd knows.
func (h *Host) libvirtBegan() (began time.Time, service string, ok bool) {
	for _, file := range []string{"/run/virtqemud.pid", "/run/libvirtd.pid", "/run/libvirt/libvirtd.pid"} {
		pid, err := h.number(file)
		if err != nil {
			continue
		}
		began, ok := h.processBegan(pid)
		if !ok {
			continue
		}
		service := strings.TrimSuffix(filepath.Base(file), ".pid")
		if t, known := h.reloaded(service); known && t.After(began) {
			began = t
		}
		return began, service, true
	}
	return time.Time{}, "", false
}

// clockTicks a second are what /proc counts time in, on every Linux.
const clockTicks = 100

func (h *Host) processBegan(pid uint64) (time.Time, bool) {
	stat, err := h.read(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return time.Time{}, false
	}
	// The name, in brackets, may have anything in it.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	system, err := h.read("/proc/stat")
	if err != nil || len(fields) < 20 {
		return time.Time{}, false
	}
	ticks, err := strconv.ParseUint(fields[19], 10, 63)
	if err != nil {
		return time.Time{}, false
	}
	for line := range strings.Lines(system) {
		if text, is := strings.CutPrefix(line, "btime "); is {
			boot, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
			return time.Unix(boot, 0).Add(time.Duration(ticks) * time.Second / clockTicks), err == nil
		}
	}
	return time.Time{}, false
}

// reloaded is when systemd last saw a unit change, which a reload does.
func (h *Host) reloaded(service string) (time.Time, bool) {
	if h.Root != "" || !h.exists("/run/systemd/system") {
		return time.Time{}, false
	}
	out, err := exec.Command("systemctl", "show", "--property=StateChangeTimestamp", "--value", "--timestamp=unix", service).Output()
	if err != nil {
		return time.Time{}, false
	}
	n, err := strconv.ParseInt(strings.TrimPrefix(strings.TrimSpace(string(out)), "@"), 10, 64)
	return time.Unix(n, 0), err == nil && n > 0
}
