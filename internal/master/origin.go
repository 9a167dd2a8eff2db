package master

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// ErrOrigin says that what was found is not the raw disk that a state store was made for.
var ErrOrigin = errors.New("wrong raw disk")

// CheckRaw refuses to take a disk for a raw one that looks like something else: an image format, or a virt-cow store.
// It is for the moment a state store is made. Later the guest owns its disk, and what it writes there says nothing.
func CheckRaw(path string) error {
	f, err := openPlain(path)
	if err != nil {
		return fmt.Errorf("raw disk: %w", err)
	}
	defer f.Close()
	name, err := imageFormat(f)
	switch {
	case err != nil:
		return fmt.Errorf("raw disk: %w", err)
	case name == storeSignature:
		return fmt.Errorf("%s: %w: it holds a virt-cow store: serve or adopt that; if its bytes are a guest's raw disk: --force-raw", path, ErrFormat)
	case name != "":
		return fmt.Errorf("%s: %w but %s; if its bytes are a guest's raw disk: --force-raw. Convert it:\n  qemu-img convert -f %s -O raw %s disk.raw",
			path, ErrFormat, name, qemuFormats[name], Quote(path))
	}
	return nil
}

// OpenOrigin opens a guest's raw disk for an engine: past the page cache, locked, and as a block device for nobody
// else to mount or to build on. The context bounds the wait for who has it.
func OpenOrigin(ctx context.Context, path string, readOnly bool) (*blockdev.File, error) {
	o := blockdev.FileOptions{Direct: true, ReadOnly: readOnly, Lock: blockdev.LockShared}
	if !readOnly {
		o.Lock, o.Exclusive = blockdev.LockExclusive, true
	}
	f, err := blockdev.OpenFile(ctx, path, o)
	if err != nil {
		return nil, fmt.Errorf("raw disk: %w", err)
	}
	return f, nil
}

// IdentifyOrigin tells how a raw disk will be known again, nil where it can't be: a file that is written to has only
// its path.
func IdentifyOrigin(f *blockdev.File) *cowfmt.Identity {
	if w := f.WWID(); w != "" {
		return &cowfmt.Identity{Kind: cowfmt.IdentityWWID, WWID: w, Size: f.Info().Size}
	}
	return nil
}

// CheckOrigin compares a raw disk with the one a state store was made for. Its size is for the engine to judge: it may
// have grown.
func CheckOrigin(f *blockdev.File, want *cowfmt.Identity) error {
	got, name := IdentifyOrigin(f), f.Info().Name
	switch {
	case want == nil && got == nil:
		return nil
	case want == nil:
		return fmt.Errorf("%w: %s is LUN %s, the state store is of a disk without an identity", ErrOrigin, name, got.WWID)
	case got == nil || got.WWID != want.WWID:
		is := "has no WWID"
		if got != nil {
			is = "is LUN " + got.WWID
		}
		return fmt.Errorf("%w: %s %s, the state store is of %v", ErrOrigin, name, is, want)
	}
	return nil
}

// openPlain opens a file or block device for a look at it.
func openPlain(path string) (*os.File, error) {
	// Without O_NONBLOCK a named pipe given by mistake would block the open for ever.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil {
		if mode := st.Mode(); !mode.IsRegular() && (mode&os.ModeDevice == 0 || mode&os.ModeCharDevice != 0) {
			err = fmt.Errorf("%s: neither a regular file nor a block device", path)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// imageFormat names the image format that is on a file or device, or that it is a store; "" for neither.
func imageFormat(f *os.File) (string, error) {
	name, image, err := Signature(f)
	switch {
	case err != nil:
		return "", err
	case image:
		return name, nil
	case isFixedVHD(f):
		return "VHD", nil
	}
	return "", nil
}
