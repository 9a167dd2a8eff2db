package blockdev

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Disks are the paths of the disks that a block device's data is on, by partitions, LVM and whatever else the kernel
// stacks: itself, if it is one. A multipath device counts as a disk, its paths do not.
func (d *File) Disks() ([]string, error) {
	if !d.block {
		return nil, fmt.Errorf("%s: not a block device", d.info.Name)
	}
	dir, err := filepath.EvalSymlinks(sysfsOf(sysfs, d.id.Rdev))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.info.Name, err)
	}
	disks, err := disksUnder(dir, maxStack)
	if err != nil {
		return nil, fmt.Errorf("%s: the disks it is on: %w", d.info.Name, err)
	}
	slices.Sort(disks)
	return slices.Compact(disks), nil
}

// maxStack bounds how deep devices are stacked.
const maxStack = 32

func disksUnder(dir string, deep int) ([]string, error) {
	if deep == 0 {
		return nil, fmt.Errorf("%s: too deep", dir)
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		return disksUnder(filepath.Dir(dir), deep-1)
	}
	under, err := filepath.Glob(filepath.Join(dir, "slaves", "*"))
	if err != nil {
		return nil, err
	}
	if len(under) == 0 || strings.HasPrefix(attribute(dir, "dm/uuid"), "mpath-") {
		for line := range strings.Lines(attribute(dir, "uevent")) {
			if name, found := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); found {
				return []string{filepath.Join("/dev", name)}, nil
			}
		}
		return nil, fmt.Errorf("%s: has no name", dir)
	}
	var disks []string
	for _, path := range under {
		device, err := filepath.EvalSymlinks(path)
		if err != nil {
			return nil, err
		}
		more, err := disksUnder(device, deep-1)
		if err != nil {
			return nil, err
		}
		disks = append(disks, more...)
	}
	return disks, nil
}
