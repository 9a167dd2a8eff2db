package launch

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/api"
)

// deviceAllow is one entry of systemd's DeviceAllow.
type deviceAllow struct {
	Path   string
	Rights string
}

// devicesAllowed lists the block devices the engine of spec may open: those the spec names, and store and
// snapshot stores as far as they are some.
//
// A name below /dev is passed on as it is: systemd follows it at each start of the unit, and a stable name then still
// leads to the right device after that came back as another node. One that leads nowhere yet is passed on too: the engine
// says best what it can't open.
func devicesAllowed(spec *api.EngineSpec) []deviceAllow {
	list := []deviceAllow{}
	for _, path := range slices.Concat(spec.Devices, []string{spec.Store}, slices.Sorted(maps.Values(spec.Snapshots))) {
		path = filepath.Clean(path)
		below := strings.HasPrefix(path, "/dev/")
		st, err := os.Stat(path)
		switch {
		case err == nil && (st.Mode()&os.ModeDevice == 0 || st.Mode()&os.ModeCharDevice != 0), err != nil && !below:
			continue // no block device: no rule keeps an engine from a file
		case !below:
			number := st.Sys().(*syscall.Stat_t).Rdev
			path = fmt.Sprintf("/dev/block/%d:%d", unix.Major(number), unix.Minor(number))
		}
		if a := (deviceAllow{path, "rw"}); !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list
}
