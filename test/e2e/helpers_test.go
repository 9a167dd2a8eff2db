package e2e

import (
	"strconv"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/test/lab"
)

// lab0 is a guest with nothing special.
var lab0 = lab.GuestConfig{}

var (
	attached = lab.Attached
	cutLoose = lab.CutLoose
)

// off accepts a volume whose domain does not run and that has no engine.
func off(s *api.VolumeStatus) bool { return s != nil && s.State == api.VolumeOff && s.PID == 0 }

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
