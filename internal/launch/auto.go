package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/rs/zerolog"
)

// Config says how engines are run.
type Config struct {
	Launcher string // auto, systemd or child
	Program  string // virt-cow, for children; units name theirs
	RunDir   string
	LogDir   string // of children
}

// New is the launcher that c asks for. Auto takes systemd where it runs, answers and has the unit file, and the run
// folder is the one the unit file names; else children, and if systemd runs all the same the log says why. If systemd is
// asked for by name and can't be had, the error wraps ErrNoSystemd.
func New(ctx context.Context, c Config, log zerolog.Logger) (Launcher, error) {
	children := NewChild(c.Program, c.RunDir, c.LogDir)
	switch c.Launcher {
	case ChildName:
		return children, nil
	case SystemdName:
		if err := available(ctx, c.RunDir); err != nil {
			return nil, err
		}
		return NewUnit(), nil
	case AutoSetting:
		err := available(ctx, c.RunDir)
		if err == nil {
			return NewUnit(), nil
		}
		if !errors.Is(err, errNotBooted) {
			log.Warn().Err(err).Msg("engines are run as children of the daemon")
		}
		return children, nil
	}
	return nil, fmt.Errorf("launcher %q: use %s, %s or %s", c.Launcher, AutoSetting, SystemdName, ChildName)
}

var errNotBooted = fmt.Errorf("%w: it does not run", ErrNoSystemd)

// askWait bounds how long systemd may take to answer.
const askWait = 10 * time.Second

// available returns an error that wraps ErrNoSystemd if engines can't be units.
func available(ctx context.Context, runDir string) error {
	if st, err := os.Lstat("/run/systemd/system"); err != nil || !st.IsDir() {
		return errNotBooted
	}
	if runDir != RunDir {
		return fmt.Errorf("%w: the run folder is %s, and the unit file's is %s", ErrNoSystemd, runDir, RunDir)
	}
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	c, err := dbus.NewWithContext(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoSystemd, err)
	}
	defer c.Close()
	if _, err := stateOf(ctx, c, UnitName("any")); err != nil {
		return fmt.Errorf("%w: %w", ErrNoSystemd, err)
	}
	return nil
}
