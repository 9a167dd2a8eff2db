package libvirtx

import (
	"context"
	"fmt"

	"libvirt.org/go/libvirtxml"
)

// CheckBus refuses a disk that libvirt would attach to no use: into a domain without a SCSI controller it plugs one by
// itself, of a model (LSI) that today's guests have no driver for, and it stays. It is for the drivers.
func CheckBus(ctx context.Context, c Conn, d Domain, diskXML string) error {
	var disk libvirtxml.DomainDisk
	if err := disk.Unmarshal(diskXML); err != nil || disk.Target == nil || disk.Target.Bus != "scsi" {
		return nil // libvirt judges the rest
	}
	text, err := c.XML(ctx, d)
	if err != nil {
		return err
	}
	var domain libvirtxml.Domain
	if err := domain.Unmarshal(text); err != nil {
		return fmt.Errorf("%w: %w", ErrBadXML, err)
	}
	if domain.Devices != nil {
		for _, x := range domain.Devices.Controllers {
			if x.Type == "scsi" {
				return nil
			}
		}
	}
	return fmt.Errorf("libvirt: attach disk to %s: %w", d.Name, ErrNoController)
}
