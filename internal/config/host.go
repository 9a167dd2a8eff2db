package config

import (
	"errors"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// CheckHost finds what is wrong with the configuration on this host: groups that are not there, a run folder that
// would survive a reboot.
func (e *Effective) CheckHost() []Problem {
	var v validation
	v.groupExists("control.group", e.Config.Control.Group)
	if g := e.Config.Engine.Group; g != "auto" {
		v.groupExists("engine.group", g)
	}
	for key, dir := range map[string]string{"run_dir": e.Config.RunDir, "state_dir": e.Config.StateDir, "store_dir": e.Config.StoreDir} {
		if info, err := os.Stat(dir); err == nil && !info.IsDir() {
			v.add(key, "is %s, which is no folder", dir)
		}
	}
	if tmpfs, known := OnTmpfs(e.Config.RunDir); known && !tmpfs {
		v.warn("run_dir", "is %s, which is not on a tmpfs: what must not survive a reboot would, and each first write of a chunk "+
			"costs a disk's time; use a folder below /run", e.Config.RunDir)
	}
	return e.located(v.problems)
}

// OnTmpfs says whether a folder, or the nearest one above it that exists, is on a tmpfs; known is false if there is
// no telling.
func OnTmpfs(dir string) (tmpfs, known bool) {
	for ; ; dir = filepath.Dir(dir) {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		switch {
		case err == nil:
			return st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC, true
		case !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir):
			return false, false
		}
	}
}

func (v *validation) groupExists(key, group string) {
	if group == "" {
		return
	}
	if _, err := user.LookupGroup(group); err != nil {
		v.add(key, "is %q, but there is no such group: make it with `groupadd --system %s`, or change the configuration", group, group)
	}
}
