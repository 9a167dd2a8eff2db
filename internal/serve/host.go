package serve

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// Host tells who this host is: hostUUID where it is given, else the machine id, else the mainboard's; and
// the boot it is in.
func Host(hostUUID string) (cowfmt.Owner, error) {
	var o cowfmt.Owner
	var err error
	if hostUUID != "" {
		if o.Host, err = uuid.Parse(hostUUID); err != nil {
			return o, fmt.Errorf("host UUID %q: %w", hostUUID, err)
		}
	} else if o.Host, err = firstUUID("/etc/machine-id", "/sys/class/dmi/id/product_uuid"); err != nil {
		return o, fmt.Errorf("this host has no machine id (%w): run systemd-machine-id-setup, or give --host-uuid", err)
	}
	if o.Boot, err = firstUUID("/proc/sys/kernel/random/boot_id"); err != nil {
		return o, err
	}
	o.HostName, err = os.Hostname()
	return o, err
}

func firstUUID(paths ...string) (uuid.UUID, error) {
	var errs []error
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err == nil {
			var id uuid.UUID
			if id, err = uuid.Parse(strings.TrimSpace(string(b))); err == nil && id != uuid.Nil {
				return id, nil
			}
			err = fmt.Errorf("%s: holds no UUID", path)
		}
		errs = append(errs, err)
	}
	return uuid.Nil, errors.Join(errs...)
}
