package launch

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// deviceAllow is one entry of systemd's DeviceAllow.
type deviceAllow struct {
	Path   string
	Rights string
}

// devicesAllowed lists the block devices an engine may open. A name below /dev is passed on as it is: systemd follows it
// at each start of the unit, and a stable name then still leads to the right device after the device came back as
// another node. Other paths are resolved.
func devicesAllowed(paths []string) ([]deviceAllow, error) {
	list := []deviceAllow{}
	for _, path := range paths {
		st, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if st.Mode()&os.ModeDevice == 0 || st.Mode()&os.ModeCharDevice != 0 {
			return nil, fmt.Errorf("%s is no block device", path)
		}
		if path = filepath.Clean(path); !strings.HasPrefix(path, "/dev/") {
			if path, err = filepath.EvalSymlinks(path); err != nil {
				return nil, err
			}
			if !strings.HasPrefix(path, "/dev/") {
				return nil, fmt.Errorf("%s: systemd allows devices below /dev only", path)
			}
		}
		if a := (deviceAllow{path, "rw"}); !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list, nil
}
