package plugin

import (
	"math"

	"golang.org/x/sys/unix"
)

// keepDescriptors marks all descriptors but the first three to be closed in programs this process runs. Those that
// Go opened are so already: it is about those that this process inherited itself.
func keepDescriptors() error {
	return unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
}
