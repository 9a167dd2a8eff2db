package libvirtx

import (
	"errors"
	"fmt"
	"slices"
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
	// ErrNotRunning says that a domain is off or paused, where it would have to run.
	ErrNotRunning = errors.New("the domain is not running")
	// ErrTransient says that a domain has no definition that outlives its QEMU, which was asked for.
	ErrTransient = errors.New("the domain is transient")
	// ErrNoAgent says that a guest has no agent that could be asked: no channel, nobody listens, or it ended meanwhile.
	ErrNoAgent = errors.New("no guest agent: the guest needs qemu-guest-agent, its domain <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>")
	// ErrAgentHangs says that a guest's agent did not answer in time.
	ErrAgentHangs = errors.New("the guest's agent does not answer")
	// ErrFrozen says that a guest's file systems are frozen already, by whomever.
	ErrFrozen = errors.New("the guest's file systems are frozen already: virsh domfsthaw thaws them")
	// ErrHook says that the guest's own freeze hook failed: its log in the guest may say why.
	ErrHook = errors.New("the guest's freeze hook failed")
	// ErrDomainExists says that a domain of that name, or of that UUID, is there already.
	ErrDomainExists = errors.New("such a domain exists already")
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
	codeNoSupport           = 3
	codeNoDomain            = 42
	codeNoPool              = 49
	codeNoVolume            = 50
	codeInvalid             = 55
	codeUnsupported         = 74
	codeNoMetadata          = 80
	codeAgentUnresponsive   = 86
	codeVolumeExists        = 90
	codeAgentUnsynced       = 97
	codeDeviceMissing       = 99
	codeAgentCommandTimeout = 112
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
	case code == codeInvalid && strings.Contains(text, "transient domains do not have any persistent config"):
		known = ErrTransient
	case strings.Contains(text, "already exists with uuid"), strings.Contains(text, "is already defined with uuid"):
		known = ErrDomainExists
	default:
		if known = agentError(code, text); known == nil {
			return err
		}
	}
	return fmt.Errorf("%w (libvirt: %w)", known, err)
}

// agentError is the sentinel for what goes wrong between libvirt, a guest's agent and its hooks, nil for none.
func agentError(code int, text string) error {
	unanswered := code == codeAgentUnresponsive || code == codeAgentUnsynced || code == codeAgentCommandTimeout
	switch {
	case code == codeInvalid && strings.Contains(text, "domain is not running"):
		return ErrNotRunning
	case code == codeUnsupported && strings.Contains(text, "guest agent is not configured"),
		unanswered && containsAny(text, "not connected", "not available due to an error", "disappeared"):
		return ErrNoAgent
	case unanswered:
		return ErrAgentHangs
	case strings.Contains(text, "the agent is in frozen state"):
		return ErrFrozen
	case strings.Contains(text, "fsfreeze hook"):
		return ErrHook
	}
	return nil
}

func containsAny(text string, parts ...string) bool {
	return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(text, p) })
}
