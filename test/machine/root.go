package machine

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// bootInside is the first process: it makes the machine's file system its root and becomes the machine's init.
func bootInside(dir, tree, init string) error {
	runtime.LockOSThread() // a control group namespace is a thread's
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("control group namespace: %w", err)
	}
	if err := setUp(dir, tree); err != nil {
		return err
	}
	args := inits[init]
	err := syscall.Exec(args[0], args, []string{"container=virt-cow-test", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"})
	return fmt.Errorf("%s: %w", args[0], err)
}

// Devices that a container has.
var devices = map[string]uint64{
	"null": unix.Mkdev(1, 3), "zero": unix.Mkdev(1, 5), "full": unix.Mkdev(1, 7),
	"random": unix.Mkdev(1, 8), "urandom": unix.Mkdev(1, 9), "tty": unix.Mkdev(5, 0),
}

func setUp(dir, tree string) error {
	root := filepath.Join(dir, "root")
	in := func(path string) string { return filepath.Join(root, path) }
	mount := func(what, where, kind string, flags uintptr, data string) error {
		if err := os.MkdirAll(where, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(what, where, kind, flags, data); err != nil {
			return fmt.Errorf("mount %s: %w", where, err)
		}
		return nil
	}
	overlay := "lowerdir=" + tree + ",upperdir=" + filepath.Join(dir, "upper") + ",workdir=" + filepath.Join(dir, "work")
	for _, m := range []struct {
		what, where, kind string
		flags             uintptr
		data              string
	}{
		{"overlay", root, "overlay", 0, overlay},
		{"proc", in("proc"), "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", in("sys"), "sysfs", unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"cgroup2", in("sys/fs/cgroup"), "cgroup2", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"tmpfs", in("dev"), "tmpfs", unix.MS_NOSUID, "mode=755"},
		{"devpts", in("dev/pts"), "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620"},
		{"tmpfs", in("run"), "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		{filepath.Join(dir, "share"), in("share"), "", unix.MS_BIND, ""},
	} {
		if m.where == root { // nothing mounted from here on is seen outside
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return fmt.Errorf("make mounts private: %w", err)
			}
		}
		if err := mount(m.what, m.where, m.kind, m.flags, m.data); err != nil {
			return err
		}
	}
	for name, number := range devices {
		if err := unix.Mknod(in("dev/"+name), unix.S_IFCHR|0o666, int(number)); err != nil {
			return fmt.Errorf("/dev/%s: %w", name, err)
		}
		if err := os.Chmod(in("dev/"+name), 0o666); err != nil {
			return err
		}
	}
	for link, to := range map[string]string{"dev/fd": "/proc/self/fd", "dev/ptmx": "pts/ptmx"} {
		if err := os.Symlink(to, in(link)); err != nil {
			return err
		}
	}
	id, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		return err
	}
	for path, text := range map[string]string{
		"etc/machine-id": strings.ReplaceAll(string(id), "-", ""), "etc/hostname": "machine\n",
	} {
		if err := os.WriteFile(in(path), []byte(text), 0o444); err != nil {
			return err
		}
	}
	if err := unix.Sethostname([]byte("machine")); err != nil {
		return err
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "mnt"); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount("/mnt", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the host's files: %w", err)
	}
	return os.Chdir("/")
}
