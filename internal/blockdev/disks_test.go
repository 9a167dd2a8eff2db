package blockdev

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A volume group on a partition of one LUN and on a multipath device.
func TestDisksUnder(t *testing.T) {
	dir := t.TempDir()
	put := func(device, name, uuid string, on ...string) {
		t.Helper()
		device = filepath.Join(dir, device)
		if err := os.MkdirAll(filepath.Join(device, "slaves"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(device, "uevent"), []byte("MAJOR=1\nDEVNAME="+name+"\nDEVTYPE=disk\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if uuid != "" {
			if err := os.Mkdir(filepath.Join(device, "dm"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(device, "dm/uuid"), []byte(uuid+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, o := range on {
			if err := os.Symlink(filepath.Join(dir, o), filepath.Join(device, "slaves", filepath.Base(o))); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, d := range []string{"sda", "sdb", "sdc"} {
		put(d, d, "")
	}
	put("sda/sda2", "sda2", "")
	if err := os.WriteFile(filepath.Join(dir, "sda/sda2/partition"), []byte("2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	put("dm-0", "dm-0", "mpath-3600a", "sdb", "sdc")
	put("dm-1", "dm-1", "part1-mpath-3600a", "dm-0")
	put("dm-2", "dm-2", "LVM-one", "sda/sda2")
	put("dm-3", "dm-3", "LVM-two", "sda/sda2", "dm-1")
	put("dm-4", "dm-4", "CRYPT-LUKS2-x", "dm-3")
	for device, want := range map[string][]string{
		"sda": {"/dev/sda"}, "sda/sda2": {"/dev/sda"}, "dm-0": {"/dev/dm-0"}, "dm-1": {"/dev/dm-0"}, "dm-2": {"/dev/sda"},
		"dm-3": {"/dev/dm-0", "/dev/sda"}, "dm-4": {"/dev/dm-0", "/dev/sda"},
	} {
		got, err := disksUnder(filepath.Join(dir, device), maxStack)
		slices.Sort(got)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v, want %q", device, got, err, want)
		}
	}
	put("dm-5", "dm-5", "LVM-loop", "dm-5")
	if got, err := disksUnder(filepath.Join(dir, "dm-5"), maxStack); err == nil {
		t.Errorf("a device on itself: %q", got)
	}
	if got, err := disksUnder(filepath.Join(dir, "none"), maxStack); err == nil {
		t.Errorf("no device: %q", got)
	}
}
