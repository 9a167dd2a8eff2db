// Package reserve keeps a LUN for the hosts that are registered with it, by SCSI persistent reservations (SPC-4, 5.13
// "Reservations" and 6.15, 6.16 PERSISTENT RESERVE IN and OUT): what a dead host's takeover needs as proof that the host
// writes no more.
//
// Each host registers a key of its own with the LUN. The reservation is Write Exclusive – Registrants Only: who is
// registered writes, everybody reads. A host that is preempted is no longer registered, so the LUN refuses its writes
// with RESERVATION CONFLICT, EBADE to a program, and also those that are on their way and arrive hours later. What the LUN had
// already begun is aborted.
//
// What to know:
//
//   - A reservation is of a whole LUN and a registration of one host's session with it (an I_T nexus), not of a volume, a
//     partition or a process. All that this host has on the LUN is let in and kept out together; ErrPart says that a
//     device is but a part of one.
//   - Who holds the reservation does not matter, only that somebody does: when the holder unregisters, the reservation
//     ends and with it all protection, until another registrant calls Register or Preempt.
//   - Register lets a host in again that was preempted. So it is for a host that has nothing open on the LUN; one that
//     has asks Read whether it still is registered.
//   - Keys and reservation survive the LUN's power cuts (APTPL, which Linux always asks for) and the host's reboots.
//
// Changes go through Linux's ioctls IOC_PR_* (linux/pr.h), which for a multipath device reach every path. Nothing in
// kernels before 7.0 reads keys back, so that is done with SG_IO (scsi/sg.h).
package reserve

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

var (
	// ErrConflict says that the LUN refuses because of other reservations or registrations than were expected.
	ErrConflict = errors.New("reservation conflict")
	// ErrNotRegistered says that a key is not, or no longer, registered with the LUN.
	ErrNotRegistered = errors.New("not registered with the LUN")
	// ErrPart says that a device is a part of one or several LUNs (its blockdev.File.Disks), and only they can be
	// reserved.
	ErrPart = errors.New("not a whole LUN")
)

// Type is how a LUN is reserved, by SPC-4's number.
type Type uint8

// The types that matter here.
const (
	TypeNone                          Type = 0
	TypeWriteExclusiveRegistrantsOnly Type = 5
)

// State is what a LUN says of its registrations and its reservation.
type State struct {
	Generation uint32   // changes with every registration and preemption
	Keys       []uint64 // registered; one that is on several paths is there as often
	Type       Type     // TypeNone: not reserved
	Holder     uint64   // key of who holds the reservation, if it is reserved
}

// Registered says whether a key is.
func (s State) Registered(key uint64) bool { return slices.Contains(s.Keys, key) }

// Key is the key of a host in one of its boots; never 0, which means none.
func Key(host, boot uuid.UUID) uint64 {
	sum := sha256.Sum256(slices.Concat([]byte("virt-cow reservation key"), host[:], boot[:]))
	return max(binary.BigEndian.Uint64(sum[:]), 1)
}

// Supported says whether a device is a LUN that can be reserved so. It changes nothing. ErrPart: not this device, but
// perhaps what it is a part of.
func Supported(dev *blockdev.File) (bool, error) {
	err := usable(dev)
	if err == nil {
		var can bool
		if can, err = capable(dev); err == nil {
			return can, nil
		}
	}
	if errors.Is(err, blockdev.ErrNotSupported) {
		return false, nil
	}
	return false, err
}

// usable returns ErrPart or blockdev.ErrNotSupported for what can't be reserved. Linux would pass a reservation of a
// partition (before 6.5) or of a logical volume on one disk down to the disk, and so keep others out of what is not asked
// for.
func usable(dev *blockdev.File) error {
	if !dev.IsBlockDevice() {
		return fmt.Errorf("%s: reservations: %w", dev.Info().Name, blockdev.ErrNotSupported)
	}
	if id, onPath := dev.Identity(); onPath {
		return fmt.Errorf("%s: %w but one path of a multipath device (%s): reserve that", dev.Info().Name, ErrPart, id)
	}
	layer, err := dev.Layer()
	if err != nil {
		return fmt.Errorf("%s: %w", dev.Info().Name, err)
	}
	switch {
	case layer == "" || layer == "mpath":
		return nil
	case strings.HasPrefix(layer, "part"):
		return fmt.Errorf("%s: %w but a partition: reserve the disk that it is on", dev.Info().Name, ErrPart)
	default:
		return fmt.Errorf("%s: %w but a device of the device mapper (%s): reserve the disks that it is on", dev.Info().Name, ErrPart, layer)
	}
}

// Register registers this host's key, whatever key its session had before, and sees to it that the LUN is reserved for
// registrants. It may be repeated. ErrConflict: other software has the LUN reserved in another way.
func Register(dev *blockdev.File, key uint64) error {
	if err := usable(dev); err != nil {
		return err
	}
	if key == 0 {
		return fmt.Errorf("%s: register: no key", dev.Info().Name)
	}
	if err := register(dev, 0, key, flagIgnoreKey); err != nil {
		return failed(dev, "register", key, err)
	}
	return hold(dev, key)
}

// hold reserves the LUN where nobody does, and makes sure of it.
func hold(dev *blockdev.File, key uint64) error {
	// Whoever held it may unregister between two commands.
	for range attempts {
		s, err := Read(dev)
		switch {
		case err != nil:
			return err
		case !s.Registered(key):
			return fmt.Errorf("%s: reserve with key %#x: %w, or not any more: another host may have preempted this one",
				dev.Info().Name, key, ErrNotRegistered)
		case s.Type == TypeWriteExclusiveRegistrantsOnly:
			return nil
		case s.Type != TypeNone:
			return fmt.Errorf("%s: %w: other software has it reserved with type %d and key %#x", dev.Info().Name, ErrConflict, s.Type, s.Holder)
		}
		if err := reserve(dev, key); err != nil && !errors.Is(err, ErrConflict) {
			return failed(dev, "reserve", key, err)
		}
	}
	return fmt.Errorf("%s: reserve with key %#x: %w: other hosts come and go too fast: try again", dev.Info().Name, key, ErrConflict)
}

// Preempt takes another host's registration away, aborts what the LUN is doing for it, and makes sure that the LUN is reserved
// for those that remain: without an error, nothing that host sent or will send is written from now on, until it registers
// again. This host must be registered with its key, mine.
//
// Where theirs is not registered the error is ErrNotRegistered. That host's writes are refused then too, from now on, but
// nobody has aborted what the LUN may still be doing for it: it is proof only if the host is known to have been
// registered while it wrote. ErrConflict: another host preempts at the same time.
func Preempt(dev *blockdev.File, mine, theirs uint64) error {
	if err := usable(dev); err != nil {
		return err
	}
	if mine == 0 || theirs == 0 || mine == theirs {
		return fmt.Errorf("%s: preempt key %#x with key %#x: two different keys are needed", dev.Info().Name, theirs, mine)
	}
	// Without a reservation a preemption makes none, and would stop nobody.
	if err := hold(dev, mine); err != nil {
		return err
	}
	s, err := Read(dev)
	if err != nil {
		return err
	}
	if !s.Registered(theirs) {
		return fmt.Errorf("%s: preempt key %#x: %w", dev.Info().Name, theirs, ErrNotRegistered)
	}
	if err := preempt(dev, mine, theirs); err != nil {
		return failed(dev, "preempt", theirs, err)
	}
	if s, err = Read(dev); err != nil {
		return err
	}
	if s.Registered(theirs) {
		return fmt.Errorf("%s: preempt key %#x: %w: it is registered again: is that host alive?", dev.Info().Name, theirs, ErrConflict)
	}
	return hold(dev, mine)
}

// Unregister takes this host's key back, and with it the reservation if this host holds it. A key that is not registered
// any more is no error.
func Unregister(dev *blockdev.File, key uint64) error {
	if err := usable(dev); err != nil {
		return err
	}
	if key == 0 {
		return fmt.Errorf("%s: unregister: no key", dev.Info().Name)
	}
	err := register(dev, key, 0, 0)
	if err == nil {
		return nil
	}
	if s, rerr := Read(dev); rerr == nil && !s.Registered(key) {
		return nil
	}
	return failed(dev, "unregister", key, err)
}

func failed(dev *blockdev.File, what string, key uint64, err error) error {
	return fmt.Errorf("%s: %s key %#x: %w", dev.Info().Name, what, key, err)
}
