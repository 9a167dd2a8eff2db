// Package launch starts engine processes and finds them again. An engine process is `virt-cow serve --spec FILE`: under
// systemd a unit of its own, virt-cow-volume@VOLUME.service, elsewhere a child in a session of its own. Either outlives
// whoever started it.
//
// Whatever happens, a volume has at most one engine: before a Launcher starts one it looks for one that answers, systemd
// has one unit a volume, and should two start all the same, the engine's locks let one of them in.
package launch

import (
	"context"
	"errors"

	"github.com/virt-cow/virt-cow/internal/api"
)

// The settings of [engine] launcher, and the names of the launchers.
const (
	AutoSetting = "auto"
	ChildName   = "child"
	SystemdName = "systemd"
)

// RunDir is the run folder that the unit files name: units serve from no other.
const RunDir = "/run/virt-cow"

// ErrNoSystemd says that engines can't be run as units here.
var ErrNoSystemd = errors.New("engines can't be units of systemd here")

// Launcher starts engine processes. It may be used by many goroutines at once, but by one for each volume.
type Launcher interface {
	// Name is ChildName or SystemdName.
	Name() string

	// Start has the engine of spec started, whose file is at specPath, or finds the one that runs already. The process
	// may not serve yet. After an error nothing is left running, unless ctx ended: then an engine may still come up.
	Start(ctx context.Context, spec *api.EngineSpec, specPath string) (*Process, error)

	// Allow lets a running engine open the block devices of its spec, which has more of them now.
	Allow(ctx context.Context, spec *api.EngineSpec) error

	// Gone clears away what the engine of this volume leaves behind, after it was stopped. It is never needed for the
	// next Start to succeed.
	Gone(ctx context.Context, volume string) error
}
