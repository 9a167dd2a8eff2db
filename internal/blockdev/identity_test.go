package blockdev

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What a kernel with two paths, a multipath device over them and a partition would have in its sysfs.
func TestIdentityOfPaths(t *testing.T) {
	dir := t.TempDir()
	put := func(path, text string) {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := func(from, to string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, from)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(dir, to), filepath.Join(dir, from)); err != nil {
			t.Fatal(err)
		}
	}
	put("devices/dm-0/dm/uuid", "mpath-3600a\n")
	for _, disk := range []string{"sda", "sdb"} {
		put("devices/"+disk+"/device/wwid", "naa.600a\n")
		link("devices/"+disk+"/holders/dm-0", "devices/dm-0")
	}
	put("devices/sdc/device/wwid", "naa.600c\n")
	put("devices/sdc/sdc2/partition", "2\n")
	put("devices/dm-1/dm/uuid", "part1-mpath-3600a\n")
	put("devices/dm-2/dm/uuid", "LVM-abcdef\n")
	put("devices/dm-3/dm/uuid", "\n")
	for name, to := range map[string]string{"8:0": "sda", "8:16": "sdb", "8:32": "sdc", "8:34": "sdc/sdc2", "253:0": "dm-0", "7:0": "loop0",
		"253:1": "dm-1", "253:2": "dm-2", "253:3": "dm-3"} {
		link("dev/block/"+name, "devices/"+to)
	}
	for _, c := range []struct {
		major, minor    uint32
		wwid, multipath string
	}{
		{8, 0, "naa.600a", "mpath-3600a"}, {8, 16, "naa.600a", "mpath-3600a"}, {253, 0, "mpath-3600a", ""},
		{8, 32, "naa.600c", ""}, {8, 34, "naa.600c-part2", ""}, {7, 0, "", ""}, {1, 1, "", ""},
	} {
		rdev := unix.Mkdev(c.major, c.minor)
		if got := wwid(dir, rdev); got != c.wwid {
			t.Errorf("%d:%d: WWID %q, want %q", c.major, c.minor, got, c.wwid)
		}
		if got := multipathOf(dir, rdev); got != c.multipath {
			t.Errorf("%d:%d: multipath device %q, want %q", c.major, c.minor, got, c.multipath)
		}
	}
	put("devices/loop0/size", "1\n")
	for _, c := range []struct {
		major, minor uint32
		layer        string
	}{
		{8, 0, ""}, {8, 34, "partition"}, {253, 0, "mpath"}, {253, 1, "part1-mpath"}, {253, 2, "LVM"}, {253, 3, "dm"}, {7, 0, ""},
	} {
		if got, err := layer(dir, unix.Mkdev(c.major, c.minor)); err != nil || got != c.layer {
			t.Errorf("%d:%d: layer %q, %v, want %q", c.major, c.minor, got, err, c.layer)
		}
	}
	if got, err := layer(dir, unix.Mkdev(1, 1)); err == nil {
		t.Errorf("layer of a device that sysfs does not have: %q", got)
	}
}
