package libvirtx

// Event is one of the types below.
type Event interface{ Subject() Domain }

// What happened to a domain's life, as libvirt numbers it (virDomainEventType).
type What int32

// The lifecycle events.
const (
	Defined What = iota
	Undefined
	Started
	Suspended
	Resumed
	Stopped
	Shutdown
	PMSuspended
	Crashed
)

func (w What) String() string {
	names := [...]string{"defined", "undefined", "started", "suspended", "resumed", "stopped", "shutdown", "pmsuspended", "crashed"}
	if w < 0 || int(w) >= len(names) {
		return "unknown"
	}
	return names[w]
}

type (
	// Lifecycle says that a domain began, ended or paused.
	Lifecycle struct {
		Domain Domain
		What   What
		Detail int32 // as libvirt numbers it
	}
	// DeviceAdded says that a device was plugged in, by whomever.
	DeviceAdded struct {
		Domain Domain
		Alias  string
	}
	// DeviceRemoved says that the guest let go of a device.
	DeviceRemoved struct {
		Domain Domain
		Alias  string
	}
	// DeviceRemovalFailed says that the guest refused to.
	DeviceRemovalFailed struct {
		Domain Domain
		Alias  string
	}
	// MetadataChanged says that a metadata element was set or removed.
	MetadataChanged struct {
		Domain    Domain
		Namespace string
	}
	// IOError says that a disk failed a request of the guest.
	IOError struct {
		Domain Domain
		Alias  string
		Reason string
	}
)

// Subject is the domain the event is about.
func (e Lifecycle) Subject() Domain           { return e.Domain }
func (e DeviceAdded) Subject() Domain         { return e.Domain }
func (e DeviceRemoved) Subject() Domain       { return e.Domain }
func (e DeviceRemovalFailed) Subject() Domain { return e.Domain }
func (e MetadataChanged) Subject() Domain     { return e.Domain }
func (e IOError) Subject() Domain             { return e.Domain }
