package libvirtx

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrNoDomain says that libvirt knows no such domain.
	ErrNoDomain = errors.New("no such domain")
	// ErrGone says that the connection was lost or dropped; a new one must be dialled.
	ErrGone = errors.New("connection to libvirt lost")
	// ErrNoAnswer says that a call was given up. libvirt may still do what it was asked to.
	ErrNoAnswer = errors.New("no answer from libvirt")
	// ErrNoDevice says that the domain has no such device.
	ErrNoDevice = errors.New("no such device")
	// ErrNoSlot says that no free PCI slot is left to plug a disk into.
	ErrNoSlot = errors.New("no free PCI slot for another disk: give the domain more <controller type='pci' model='pcie-root-port'/>, it needs a restart")
	// ErrNoController says that a domain has no SCSI controller.
	ErrNoController = errors.New("no SCSI controller: give the domain <controller type='scsi' model='virtio-scsi'/>, virsh attach-device --live --config plugs it in, or use another bus")
	// ErrNoMetadata says that a domain has no element of ours. Metadata returns "" instead.
	ErrNoMetadata = errors.New("no metadata element of virt-cow")
	// ErrNoPool says that libvirt knows no such storage pool.
	ErrNoPool = errors.New("no such storage pool")
	// ErrNoVolume says that a storage pool has no such volume.
	ErrNoVolume = errors.New("no such volume in the storage pool")
	// ErrExists says that a storage pool has a volume of that name already.
	ErrExists = errors.New("the storage pool has a volume of that name already")
	// ErrPool says that a storage pool can't be used as it is, or for this.
	ErrPool = errors.New("storage pool can't be used")
)

// What libvirt calls its errors (virErrorNumber).
const (
	codeNoSupport     = 3
	codeNoDomain      = 42
	codeNoPool        = 49
	codeNoVolume      = 50
	codeNoMetadata    = 80
	codeVolumeExists  = 90
	codeDeviceMissing = 99
)

// Known gives one of libvirt's errors, with its virErrorNumber and its text, the sentinel of this package that
// applies; any other it returns as it is. It is for the drivers.
func Known(err error, code int, text string) error {
	var known error
	switch {
	case code == codeNoDomain:
		known = ErrNoDomain
	case code == codeNoPool:
		known = ErrNoPool
	case code == codeNoVolume:
		known = ErrNoVolume
	case code == codeNoMetadata:
		known = ErrNoMetadata
	case code == codeVolumeExists:
		known = ErrExists
	case code == codeNoSupport && strings.Contains(text, "storage"):
		known = ErrPool
	case code == codeDeviceMissing, strings.Contains(text, "no device found with alias"): // libvirt 9.0 calls it an internal error
		known = ErrNoDevice
	case strings.Contains(text, "No more available PCI slots"):
		known = ErrNoSlot
	default:
		return err
	}
	return fmt.Errorf("%w (libvirt: %w)", known, err)
}
