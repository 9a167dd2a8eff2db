package store

import (
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// Erase makes dev hold no store any more, durably: both header copies and all slots become zeros. Table and data stay.
// After a power cut on the way the store is there or not.
func Erase(dev blockdev.Device) error {
	if err := zero(dev, 0, cowfmt.MetadataSize); err != nil {
		return err
	}
	return dev.Flush()
}
