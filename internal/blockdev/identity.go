package blockdev

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// sysfs is where the kernel tells of its devices.
const sysfs = "/sys"

// maxWWID bounds a WWID, bytes.
const maxWWID = 256

// WWID is the world wide identifier of a block device, "" where it has none.
func (d *File) WWID() string {
	if !d.block {
		return ""
	}
	return wwid(sysfs, d.id.Rdev)
}

// WWIDOf is that of the block device at a path, "" where there is none, or it has none. Nothing is opened.
func WWIDOf(path string) string {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return ""
	}
	return wwid(sysfs, st.Rdev)
}

func wwid(sysfs string, rdev uint64) string {
	dir := sysfsOf(sysfs, rdev)
	part := "" // a partition has its disk's, and its number
	if b, err := os.ReadFile(filepath.Join(dir, "partition")); err == nil {
		part = "-part" + strings.TrimSpace(string(b))
		if disk, err := filepath.EvalSymlinks(dir); err == nil {
			dir = filepath.Dir(disk)
		}
	}
	for _, name := range []string{"dm/uuid", "wwid", "device/wwid"} {
		if id := attribute(dir, name); id != "" && len(id)+len(part) <= maxWWID {
			return id + part
		}
	}
	return ""
}

func sysfsOf(sysfs string, rdev uint64) string {
	return filepath.Join(sysfs, fmt.Sprintf("dev/block/%d:%d", unix.Major(rdev), unix.Minor(rdev)))
}

// Layer says what a block device is on its host: "" a disk of its own, "partition", or who made it with the device mapper,
// as its UUID begins there ("LVM", "mpath", "part1-mpath"; "dm" where it has none).
func (d *File) Layer() (string, error) {
	if !d.block {
		return "", nil
	}
	return layer(sysfs, d.id.Rdev)
}

func layer(sysfs string, rdev uint64) (string, error) {
	dir := sysfsOf(sysfs, rdev)
	if _, err := os.Stat(dir); err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		return "partition", nil
	}
	if _, err := os.Stat(filepath.Join(dir, "dm")); err != nil {
		return "", nil
	}
	id := attribute(dir, "dm/uuid")
	if i := strings.LastIndexByte(id, '-'); i > 0 && strings.HasPrefix(id, "part") {
		return id[:i], nil
	}
	if maker, _, found := strings.Cut(id, "-"); found {
		return maker, nil
	}
	return "dm", nil
}

func attribute(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(bytes.ToValidUTF8(b, nil)))
}

// Identity is the same for two openings of one thing, by whatever path of this host: a file's number, a device's
// WWID, and for a path of a multipath device that device's. onPath says that it is such a path, which is not the one
// to use.
func (d *File) Identity() (id string, onPath bool) {
	if !d.block {
		return fmt.Sprintf("file %d:%d", d.id.Dev, d.id.Ino), false
	}
	if m := multipathOf(sysfs, d.id.Rdev); m != "" {
		return "wwid " + m, true
	}
	if w := d.WWID(); w != "" {
		return "wwid " + w, false
	}
	return fmt.Sprintf("device %d:%d", unix.Major(d.id.Rdev), unix.Minor(d.id.Rdev)), false
}

// multipathOf is the WWID of the multipath device that a device is a path of, "" where it is none.
func multipathOf(sysfs string, rdev uint64) string {
	holders, _ := filepath.Glob(filepath.Join(sysfsOf(sysfs, rdev), "holders", "*"))
	for _, h := range holders {
		if id := attribute(h, "dm/uuid"); strings.HasPrefix(id, "mpath-") {
			return id
		}
	}
	return ""
}
