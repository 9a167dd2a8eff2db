package inventory

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// devices knows the names of block devices. root is /dev.
type devices struct{ root string }

// stableDirs hold links that udev makes from what a device is, not from when it was found; the best first.
var stableDirs = []string{"disk/by-id", "mapper", "disk/by-path", "disk/by-uuid", "disk/by-partuuid"}

// stable refuses a path of a block device that may be another device's after the next boot.
func (d devices) stable(path string) error {
	rdev, ok := blockDevice(path)
	if !ok || d.isStable(path) {
		return nil
	}
	names := d.names(rdev)
	if len(names) == 0 {
		return fmt.Errorf("%w: %s: this name may be another device's after the next boot, and it has no other: "+
			"use a device that has a name in %s", ErrInvalid, path, filepath.Join(d.root, "disk/by-id"))
	}
	return fmt.Errorf("%w: %s: this name may be another device's after the next boot: use %s", ErrInvalid, path, strings.Join(names, " or "))
}

// isStable: links in stableDirs, and /dev/VG/LV.
func (d devices) isStable(path string) bool {
	rel, err := filepath.Rel(d.root, filepath.Clean(path))
	if err != nil || strings.HasPrefix(rel, "..") {
		return false
	}
	dir := filepath.Dir(rel)
	return slices.Contains(stableDirs, dir) || d.isLV(rel)
}

// isLV: LVM links /dev/VG/LV to a device mapper node; links elsewhere under /dev may be anything.
func (d devices) isLV(rel string) bool {
	if strings.Count(rel, "/") != 1 {
		return false
	}
	to, err := os.Readlink(filepath.Join(d.root, rel))
	if err != nil {
		return false
	}
	base := filepath.Base(to)
	return strings.HasPrefix(base, "dm-") || filepath.Dir(to) == "../mapper" || filepath.Dir(to) == filepath.Join(d.root, "mapper")
}

// names are the stable names of a device.
func (d devices) names(rdev uint64) []string {
	var names []string
	for _, dir := range stableDirs {
		entries, _ := os.ReadDir(filepath.Join(d.root, dir)) // most hosts lack some
		for _, e := range entries {
			path := filepath.Join(d.root, dir, e.Name())
			if got, ok := blockDevice(path); ok && got == rdev {
				names = append(names, path)
			}
		}
	}
	lvs, _ := filepath.Glob(filepath.Join(d.root, "*", "*"))
	for _, path := range lvs {
		rel, _ := filepath.Rel(d.root, path)
		if got, ok := blockDevice(path); ok && got == rdev && d.isLV(rel) && !slices.Contains(names, path) {
			names = append(names, path)
		}
	}
	return names
}

// best is the name to keep for what has all these paths: a stable one, in the order of stableDirs.
func (d devices) best(paths []string) string {
	for _, dir := range stableDirs {
		for _, p := range paths {
			if filepath.Dir(p) == filepath.Join(d.root, dir) {
				return p
			}
		}
	}
	return paths[0]
}

// blockDevice returns the number of the block device that a path leads to.
func blockDevice(path string) (rdev uint64, ok bool) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, false
	}
	return st.Rdev, true
}

// thing is what a path leads to: a block device by its number, whatever node it was opened by, or a file.
type thing struct {
	rdev, dev, ino uint64
}

// thingAt is false where there is nothing.
func thingAt(path string) (thing, bool) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return thing{}, false
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return thing{rdev: st.Rdev}, true
	}
	return thing{dev: st.Dev, ino: st.Ino}, true
}

// sameThing says whether two paths are equal, or lead to the same file or device now.
func sameThing(a, b string) bool {
	if a == b {
		return true
	}
	ta, ok := thingAt(a)
	if !ok {
		return false
	}
	tb, ok := thingAt(b)
	return ok && ta == tb
}
