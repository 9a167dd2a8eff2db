package reserve

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// PERSISTENT RESERVE IN and its service actions.
const (
	opReserveIn = 0x5e

	actionReadKeys           = 0x00
	actionReadReservation    = 0x01
	actionReportCapabilities = 0x02
)

// maxKeys bounds how many registrations are read. A LUN that has more is refused.
const maxKeys = 1024

// Read asks the LUN for its registrations and its reservation.
func Read(dev *blockdev.File) (State, error) {
	if err := usable(dev); err != nil {
		return State{}, err
	}
	s, err := read(dev)
	if err != nil {
		return State{}, fmt.Errorf("%s: read reservations: %w", dev.Info().Name, err)
	}
	return s, nil
}

// read makes of two answers one that was true at one time: nothing but the reservation may change between them that
// the generation does not show.
func read(dev *blockdev.File) (State, error) {
	for range attempts {
		keys, err := reserveIn(dev, actionReadKeys, 8+8*maxKeys)
		if err != nil {
			return State{}, err
		}
		held, err := reserveIn(dev, actionReadReservation, 8+16)
		if err != nil {
			return State{}, err
		}
		s, err := decode(keys, held)
		if !errors.Is(err, errChanged) {
			return s, err
		}
	}
	return State{}, errChanged
}

var errChanged = fmt.Errorf("%w: other hosts register all the time: try again", ErrConflict)

func decode(keys, held []byte) (State, error) {
	list, err := parameters(keys)
	if err != nil {
		return State{}, err
	}
	if len(list)%8 != 0 {
		return State{}, fmt.Errorf("keys in %d bytes", len(list))
	}
	s := State{Generation: binary.BigEndian.Uint32(keys)}
	for key := range slices.Chunk(list, 8) {
		s.Keys = append(s.Keys, binary.BigEndian.Uint64(key))
	}
	if list, err = parameters(held); err != nil {
		return State{}, err
	}
	if binary.BigEndian.Uint32(held) != s.Generation {
		return State{}, errChanged
	}
	if len(list) == 0 {
		return s, nil
	}
	if len(list) < 16 {
		return State{}, fmt.Errorf("a reservation in %d bytes", len(list))
	}
	s.Holder, s.Type = binary.BigEndian.Uint64(list), Type(list[13]&0xf)
	return s, nil
}

// parameters is what follows the generation and the length of an answer.
func parameters(answer []byte) ([]byte, error) {
	if len(answer) < 8 {
		return nil, fmt.Errorf("an answer of %d bytes", len(answer))
	}
	n := binary.BigEndian.Uint32(answer[4:])
	if int64(n) > int64(len(answer)-8) {
		return nil, fmt.Errorf("an answer of %d bytes announces %d more: too many registrations", len(answer), n)
	}
	return answer[8 : 8+n], nil
}

// capable says whether the LUN has the kind of reservation that is needed.
func capable(dev *blockdev.File) (bool, error) {
	if _, err := read(dev); err != nil {
		return false, fmt.Errorf("%s: read reservations: %w", dev.Info().Name, err)
	}
	answer, err := reserveIn(dev, actionReportCapabilities, 8)
	if errors.Is(err, blockdev.ErrNotSupported) { // older than SPC-3: only trying would tell
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("%s: read capabilities of reservations: %w", dev.Info().Name, err)
	}
	return hasType(answer), nil
}

func hasType(capabilities []byte) bool {
	if len(capabilities) < 6 || capabilities[3]&0x80 == 0 { // no type mask
		return true
	}
	return capabilities[4]&0x20 != 0 // WR_EX_RO
}

// sgHeader is struct sg_io_hdr of scsi/sg.h.
type sgHeader struct {
	interfaceID, direction                    int32
	commandLen, maxSense                      uint8
	iovecs                                    uint16
	dataLen                                   uint32
	data, command, sense                      unsafe.Pointer
	timeout, flags                            uint32
	packID                                    int32
	_                                         unsafe.Pointer
	status, maskedStatus, msgStatus, senseLen uint8
	hostStatus, driverStatus                  uint16
	residue                                   int32
	duration, info                            uint32
}

const (
	sgFromDevice = -3
	sgTimeout    = 30_000 // ms
)

// reserveIn sends a PERSISTENT RESERVE IN and returns its answer, size bytes at most.
func reserveIn(dev *blockdev.File, action byte, size int) ([]byte, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	data, command, sense := make([]byte, size), make([]byte, 10), make([]byte, 64)
	command[0], command[1] = opReserveIn, action
	binary.BigEndian.PutUint16(command[7:], uint16(size))
	for _, b := range [][]byte{data, command, sense} {
		pin.Pin(&b[0])
	}
	for n := 1; ; n++ {
		h := &sgHeader{
			interfaceID: 'S', direction: sgFromDevice, commandLen: uint8(len(command)), maxSense: uint8(len(sense)),
			dataLen: uint32(size), data: unsafe.Pointer(&data[0]), command: unsafe.Pointer(&command[0]), sense: unsafe.Pointer(&sense[0]),
			timeout: sgTimeout,
		}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dev.Fd()), sgIO, uintptr(unsafe.Pointer(h)))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return nil, ioctlError(errno)
		}
		again, err := h.result(sense)
		if err == nil {
			return data[:max(0, min(size, size-int(h.residue)))], nil
		}
		if !again || n == attempts {
			return nil, err
		}
		time.Sleep(retryAfter)
	}
}

// sgIO is SG_IO of scsi/sg.h.
const sgIO = 0x2285

// Sense keys and additional codes.
const (
	senseIllegalRequest = 0x5
	senseUnitAttention  = 0x6

	illegalOpcode = 0x20
	illegalField  = 0x24
)

// result judges how a command ended; again says that another try may do better.
func (h *sgHeader) result(sense []byte) (again bool, err error) {
	if h.status == statusGood && h.hostStatus == 0 {
		return false, nil
	}
	key, code := senseOf(sense[:min(int(h.senseLen), len(sense))])
	switch {
	case h.status == statusConflict:
		return false, ErrConflict
	case h.status == statusCheckCondition && key == senseIllegalRequest && (code == illegalOpcode || code == illegalField):
		return false, blockdev.ErrNotSupported
	}
	again = h.status == statusBusy || h.status == statusTaskSetFull || h.status == statusCheckCondition && key == senseUnitAttention
	return again, fmt.Errorf("SCSI status %#x, sense %#x/%#x, host status %#x: %w", h.status, key, code, h.hostStatus, unix.EIO)
}

// senseOf decodes sense data, fixed (70h, 71h) or with descriptors (72h, 73h).
func senseOf(b []byte) (key, code byte) {
	switch {
	case len(b) >= 14 && b[0]&0x7e == 0x70:
		return b[2] & 0xf, b[12]
	case len(b) >= 4 && b[0]&0x7e == 0x72:
		return b[1] & 0xf, b[2]
	}
	return 0, 0
}
