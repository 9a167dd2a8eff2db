package lab

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"syscall"

	"golang.org/x/sys/unix"
)

// asides is where a host of a site has the machine's own /dev and /etc. It is below /run, and in no folder that is
// ever removed with what is in it.
const asides = "/run/aside"

// byID is where a host of a site finds its disks, as udev has them.
const byID = "/dev/disk/by-id"

var loopDevice = regexp.MustCompile(`^loop[0-9]+$`)

// ownFolders gives a host of a site a /run, a /dev without the machine's loop devices, and an /etc in which there can
// be more than the machine has.
func ownFolders() error {
	if err := mountRun(); err != nil {
		return err
	}
	if err := ownFolder("/dev", ownDevice); err != nil {
		return err
	}
	if err := os.MkdirAll(byID, 0o755); err != nil {
		return err
	}
	if err := ownFolder("/etc", func(name, aside string, _ fs.FileInfo) error {
		return os.Symlink(aside, filepath.Join("/etc", name))
	}); err != nil {
		return err
	}
	if err := os.Remove("/etc/pki"); err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.Mkdir("/etc/pki", 0o755)
}

// ownFolder puts an empty folder over one of the machine, and has each put into it what was there: its name, where it
// is to be had, and what it is. Symbolic links are copied.
func ownFolder(dir string, each func(name, aside string, info fs.FileInfo) error) error {
	aside := filepath.Join(asides, dir)
	if err := os.MkdirAll(aside, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(dir, aside, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", dir, err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID, "mode=755"); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	entries, err := os.ReadDir(aside)
	if err != nil {
		return err
	}
	for _, e := range entries {
		from := filepath.Join(aside, e.Name())
		info, err := os.Lstat(from)
		if err != nil {
			return err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			err = each(e.Name(), from, info)
		} else if to, rerr := os.Readlink(from); rerr != nil {
			err = rerr
		} else {
			err = os.Symlink(to, filepath.Join(dir, e.Name()))
		}
		if err != nil {
			return fmt.Errorf("%s of the host: %w", dir, err)
		}
	}
	return nil
}

// ownDevice makes a device node, or binds a folder such as /dev/pts.
func ownDevice(name, aside string, info fs.FileInfo) error {
	path := filepath.Join("/dev", name)
	switch mode := info.Mode(); {
	case loopDevice.MatchString(name), name == "disk":
		return nil
	case mode.IsDir():
		if err := os.Mkdir(path, mode.Perm()); err != nil {
			return err
		}
		return unix.Mount(aside, path, "", unix.MS_BIND|unix.MS_REC, "")
	case mode&fs.ModeDevice != 0:
		st := info.Sys().(*syscall.Stat_t)
		if err := unix.Mknod(path, st.Mode, int(st.Rdev)); err != nil {
			return err
		}
		return os.Chmod(path, mode.Perm())
	}
	return nil
}
