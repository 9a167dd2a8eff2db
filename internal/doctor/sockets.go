package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/virt-cow/virt-cow/internal/api"
)

// nbdSockets looks at whether QEMU may connect to them.
func nbdSockets(_ context.Context, h *Host) []Finding {
	dir := h.Config.Config.RunDir
	user, group := h.qemuUser()
	if user == "root" || user == "0" {
		return well("QEMU is root, which may connect to all")
	}
	info, err := os.Stat(h.path(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return skipped("there is no %s yet", dir)
	} else if err != nil {
		return unread(err)
	}
	const why = "QEMU is refused its disk with \"Permission denied\", and the guest does not start or does not get it"
	if info.Mode().Perm()&0o001 == 0 {
		return []Finding{{Result: Problem, Seen: fmt.Sprintf("%s has mode %#o: %s can't get into it", dir, info.Mode().Perm(), user), Why: why,
			Mend: "chmod 755 " + quote(dir)}}
	}
	gids := h.groupsOf(user, group)
	uid, _ := h.userID(user)
	var closed []string
	sockets := h.glob(dir + "/*.sock")
	for _, s := range sockets {
		st, err := os.Lstat(h.path(s))
		if name := filepath.Base(s); err != nil || name == api.DaemonSocket || name == api.NodeSocket { // not for QEMU
			continue
		}
		sys, ok := st.Sys().(*syscall.Stat_t)
		mode := st.Mode().Perm()
		if ok && mode&0o006 != 0o006 && !(mode&0o060 == 0o060 && slices.Contains(gids, sys.Gid)) && !(sys.Uid == uid && mode&0o600 == 0o600) {
			closed = append(closed, s)
		}
	}
	if closed != nil {
		return []Finding{{
			Result: Problem, Seen: fmt.Sprintf("%s (group %s), as which QEMU runs, may not use %s", user, group, some(closed)), Why: why,
			Mend: fmt.Sprintf("set group = %q in [engine] of /etc/virt-cow/config.toml, then systemctl restart virt-cow; until the engines are "+
				"restarted: chgrp %s %s && chmod 660 %s", group, quote(group), quoteAll(closed), quoteAll(closed)),
		}}
	}
	return well("%s may use all", user)
}

// qemuUser is as whom libvirt runs QEMU.
func (h *Host) qemuUser() (user, group string) {
	user, group = strings.TrimPrefix(h.qemuConf("user"), "+"), strings.TrimPrefix(h.qemuConf("group"), "+")
	for _, name := range []string{"libvirt-qemu", "qemu"} { // what distributions build in
		if _, known := h.userID(name); known && user == "" {
			user = name
		}
		if _, known := h.groupID(name); known && group == "" {
			group = name
		}
	}
	if user == "" {
		user = "root"
	}
	if group == "" {
		group = user
	}
	return user, group
}

func (h *Host) userID(name string) (uint32, bool)  { return h.account("/etc/passwd", name) }
func (h *Host) groupID(name string) (uint32, bool) { return h.account("/etc/group", name) }

// account finds the number of a user or group, which may be given by its number.
func (h *Host) account(file, name string) (uint32, bool) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(n), true
	}
	text, err := h.read(file)
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(text) {
		if f := strings.Split(line, ":"); len(f) > 2 && f[0] == name {
			n, err := strconv.ParseUint(f[2], 10, 32)
			return uint32(n), err == nil
		}
	}
	return 0, false
}

// groupsOf are the groups a user's QEMU has: the one libvirt gives it, and those it is a member of.
func (h *Host) groupsOf(user, group string) []uint32 {
	var gids []uint32
	if gid, ok := h.groupID(group); ok {
		gids = append(gids, gid)
	}
	text, err := h.read("/etc/group")
	if err != nil {
		return gids
	}
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) > 3 && slices.Contains(strings.Split(f[3], ","), user) {
			if n, err := strconv.ParseUint(f[2], 10, 32); err == nil {
				gids = append(gids, uint32(n))
			}
		}
	}
	return gids
}
