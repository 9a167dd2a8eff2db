package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/virt-cow/virt-cow/internal/api"
)

func daemon(_ context.Context, h *Host) []Finding {
	const why = "without it no guest gets a volume, and what fails stays so; guests that run go on"
	switch err := h.daemonErr; {
	case errors.Is(err, api.ErrNotRunning):
		return []Finding{{Result: Problem, Seen: "it does not run", Why: why, Mend: "systemctl enable --now virt-cow; journalctl -u virt-cow"}}
	case errors.Is(err, fs.ErrPermission):
		return skipped("its socket is not for this user; run it as root")
	case err != nil:
		return []Finding{{
			Result: Problem, Seen: "it does not answer: " + err.Error(), Why: why,
			Mend: "journalctl -u virt-cow; systemctl restart virt-cow",
		}}
	}
	s := h.daemon
	var found []Finding
	if s.Version != h.Version {
		found = append(found, Finding{
			Result: Warning, Seen: fmt.Sprintf("it is version %s, this program %s", s.Version, h.Version),
			Why: "an upgrade is not in effect before the daemon is the new one", Mend: "systemctl restart virt-cow # guests do not notice",
		})
	}
	for _, d := range s.Domains {
		found = append(found, Finding{
			Result: Problem, Seen: "domain " + d.Domain + ": " + d.Error, Why: "its disks are not as they should be; it is tried again",
			Mend: "virt-cow status; virsh dumpxml " + quote(d.Domain),
		})
	}
	for _, v := range s.Volumes {
		if v.Error != "" || v.State == api.VolumeFailed {
			found = append(found, Finding{
				Result: Problem, Seen: "volume " + v.Volume + ": " + v.Error, Why: "it is not served as it should be; it is tried again",
				Mend: "virt-cow volume show " + v.Volume + "; virt-cow store verify " + quote(v.Store),
			})
		}
	}
	if found != nil {
		return found
	}
	return well("version %s, pid %d", s.Version, s.PID)
}

// engines looks at those that the daemon has.
func engines(_ context.Context, h *Host) []Finding {
	if h.daemon == nil {
		return skipped("the daemon does not answer")
	}
	var found []Finding
	var old []string
	running := 0
	for _, v := range h.daemon.Volumes {
		if v.PID != 0 {
			running++
		}
		if v.Old {
			old = append(old, v.Volume)
		}
		e := v.Engine
		switch {
		case e == nil:
		case e.Error != "":
			found = append(found, Finding{
				Result: Problem, Seen: "volume " + v.Volume + ": FLUSH fails: " + e.Error,
				Why:  "what its guest wrote since may be lost in a power cut; after a failed flush no later one can be trusted",
				Mend: "dmesg # about what " + v.Store + " is on; then shut the guest down and start it",
			})
		case e.Hydration != nil && e.Hydration.State == api.HydrationFailed:
			found = append(found, Finding{
				Result: Warning, Seen: "volume " + v.Volume + ": hydration failed: " + e.Hydration.Error,
				Why: "the clone still needs its master", Mend: "virt-cow hydrate start " + v.Volume,
			})
		}
	}
	if old != nil {
		found = append(found, Finding{
			Result: Warning, Seen: fmt.Sprintf("%d of %d run an old binary: %s", len(old), running, some(old)),
			Why: "what the upgrade mends is not in effect for them", Mend: "virt-cow volume restart --old # one at a time; guests do not notice",
		})
	}
	if found != nil {
		return found
	}
	return well("%d run, all of this version", running)
}

// controlSocket looks at who may use it: whoever may can give any store to any guest.
func controlSocket(_ context.Context, h *Host) []Finding {
	path := h.Config.Config.RunDir + "/" + api.DaemonSocket
	info, err := os.Lstat(h.path(path))
	if errors.Is(err, fs.ErrNotExist) {
		return skipped("there is none")
	} else if err != nil {
		return unread(err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return skipped("%s: the system does not tell its owner", path)
	}
	group, gid := h.Config.Config.Control.Group, uint32(0)
	if group != "" {
		n, known := h.groupID(group)
		if !known {
			return []Finding{{
				Result: Problem, Seen: "control.group is " + group + ", but there is no such group",
				Why: "its members can't use virt-cow", Mend: "groupadd --system " + quote(group) + " && systemctl restart virt-cow",
			}}
		}
		gid = n
	}
	mode := info.Mode().Perm()
	if mode&0o007 != 0 || mode&0o200 == 0 || st.Gid != gid && mode&0o060 != 0 || group != "" && mode&0o060 != 0o060 {
		return []Finding{{
			Result: Problem, Seen: fmt.Sprintf("%s has mode %#o and group id %d, not 0660 and %d", path, mode, st.Gid, gid),
			Why: "whoever may use it can give any store to any guest; whoever should and may not can't work", Mend: "systemctl restart virt-cow",
		}}
	}
	return well("%s has mode %#o", path, mode)
}
