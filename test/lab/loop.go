package lab

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const loopMajor = 7

// loop is a loop device. It is gone when the last who has it open has closed it: this program, and what runs on the
// host that it belongs to.
type loop struct {
	f      *os.File
	number int
}

// Loop makes a loop device over a file for this machine itself, writable and with direct I/O; its Name is the device's path.
// Close it; it is gone when the last who has it open has closed it.
func Loop(path string) (*os.File, error) {
	l, err := attachLoop(path, 0, false)
	if err != nil {
		return nil, err
	}
	return l.f, nil
}

// attachLoop makes a loop device over a file.
func attachLoop(path string, sector int, readOnly bool) (*loop, error) {
	mode := os.O_RDWR
	config := unix.LoopConfig{Size: uint32(sector)}
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	if readOnly {
		mode = os.O_RDONLY
		config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	back, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, err
	}
	defer back.Close()
	config.Fd = uint32(back.Fd())
	copy(config.Info.File_name[:len(config.Info.File_name)-1], path)
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: loop devices: %w", ErrMissing, err)
	}
	defer control.Close()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		l, err := tryLoop(control, mode, &config)
		// Somebody else took it between the question and the answer.
		if err == nil || !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return l, err
		}
	}
}

func tryLoop(control *os.File, mode int, config *unix.LoopConfig) (*loop, error) {
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, fmt.Errorf("free loop device: %w", err)
	}
	f, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), mode, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlLoopConfigure(int(f.Fd()), config); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s over %s: %w", f.Name(), unix.ByteSliceToString(config.Info.File_name[:]), err)
	}
	return &loop{f: f, number: n}, nil
}
