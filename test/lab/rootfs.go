package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// RootEnv names the folder with the root file system of hosts whose Config has none, such as that of another Debian
// (scripts/deps.sh trixie): libvirtd, virsh, QEMU and all else that runs on a host is then from there.
const RootEnv = "VIRT_COW_LAB_ROOT"

// rootOf is the root file system for a host, "" for this machine's.
func rootOf(c Config) string {
	if c.Root != "" {
		return c.Root
	}
	return os.Getenv(RootEnv)
}

// hypervisor are the programs that only hosts run.
var hypervisor = []string{"libvirtd", "virsh", "qemu-system-x86_64"}

// checkRoot says what a root file system lacks, wrapping ErrMissing.
func checkRoot(root string) error {
	for _, p := range append([]string{"busybox", "ip", "bridge"}, hypervisor...) {
		found := false
		for _, dir := range []string{"usr/bin", "usr/sbin"} {
			_, err := os.Stat(filepath.Join(root, dir, p))
			found = found || err == nil
		}
		if !found {
			return fmt.Errorf("%w: no %s in the root file system %s", ErrMissing, p, root)
		}
	}
	return nil
}

// outsideFolders are the machine's folders that a host with a root file system of its own has at the same paths: where
// hosts and tests have their files, the guest's kernel, and the source tree, where a program may have been built.
func outsideFolders() ([]string, error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	source, err := moduleRoot()
	return []string{os.TempDir(), cache, source}, err
}

// enterRoot has this mount namespace's processes see a root file system, in which what they write is not kept, and in
// it some of the machine's folders at the same paths.
func enterRoot(o order) error {
	root, scratch := o.Root, filepath.Join(o.Dir, "root")
	if err := unix.Mount("tmpfs", scratch, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount %s: %w", scratch, err)
	}
	upper, work, merged := filepath.Join(scratch, "upper"), filepath.Join(scratch, "work"), filepath.Join(scratch, "merged")
	for _, d := range []string{upper, work, merged} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("overlay", merged, "overlay", 0, "lowerdir="+root+",upperdir="+upper+",workdir="+work); err != nil {
		return fmt.Errorf("overlay over %s: %w", root, err)
	}
	bind := func(dir string, flags uintptr) error {
		where := filepath.Join(merged, dir)
		if err := os.MkdirAll(where, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(dir, where, "", unix.MS_BIND|flags, ""); err != nil {
			return fmt.Errorf("bind %s in %s: %w", dir, root, err)
		}
		return nil
	}
	for _, dir := range o.Outside { // without what is mounted below: the scratch folder may be
		if err := bind(dir, 0); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/dev", "/sys"} {
		if err := bind(dir, unix.MS_REC); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{"machine-id": o.MachineID + "\n", "hosts": "127.0.0.1 localhost\n"} {
		if err := os.WriteFile(filepath.Join(merged, "etc", name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	const old = "mnt"
	if err := errors.Join(os.MkdirAll(filepath.Join(merged, old), 0o755), os.Chdir(merged)); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", old); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount("/"+old, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the machine's root: %w", err)
	}
	return os.Chdir("/")
}
