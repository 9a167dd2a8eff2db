package restore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/durable"
)

// PartSuffix is what the name of a file ends with that is not whole yet.
const PartSuffix = ".part"

// CreatePart makes an empty file that only this user may read: a guest's disk is to be in it.
func CreatePart(part string) (*os.File, error) {
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, errPart(part)
	}
	return f, err
}

// NoQEMU refuses what a QEMU has open: it has some bytes locked of each image, and no flock. ErrLocked.
func NoQEMU(f *blockdev.File) error {
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(uintptr(f.Fd()), unix.F_OFD_GETLK, &lock); err == nil && lock.Type != unix.F_UNLCK {
		return fmt.Errorf("%s: %w: a QEMU, or somebody else, has it open", f.Info().Name, blockdev.ErrLocked)
	}
	return nil
}

func errPart(part string) error {
	return fmt.Errorf("%s is there, of a restore that goes on or was cut off: remove it", part)
}

// Whole gives a file that is whole its name, unless there is something by now.
func Whole(part, path string) error {
	if err := syncFile(part); err != nil {
		return err
	}
	if err := os.Link(part, path); err != nil {
		return err
	}
	if err := os.Remove(part); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

// replace gives a file that is whole the name of one that is there.
func replace(part, path string) error {
	if err := syncFile(part); err != nil {
		return err
	}
	if err := os.Rename(part, path); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
