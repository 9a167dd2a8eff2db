package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"

	"github.com/virt-cow/virt-cow/internal/api"
)

// unit starts engines as units of systemd. Each call has a connection of its own: systemd and the bus may be restarted
// at any time, and engines are started seldom.
type unit struct{}

// NewUnit starts engines as instances of virt-cow-volume@.service, each with access to its store and the block devices of
// its spec and to no others. systemd starts an engine again that dies; their output is in the journal.
func NewUnit() Launcher { return unit{} }

func (unit) Name() string { return SystemdName }

// UnitName is the unit of a volume's engine. A volume's name has no character that means anything to systemd, except
// that %I of a unit file would make a "-" a "/": use %i.
func UnitName(volume string) string { return unitPrefix + volume + unitSuffix }

const (
	unitPrefix = "virt-cow-volume@"
	unitSuffix = ".service"
)

func (unit) Start(ctx context.Context, spec *api.EngineSpec, specPath string) (*Process, error) {
	if want := filepath.Join(RunDir, spec.Volume+api.SpecSuffix); specPath != want {
		return nil, fmt.Errorf("%w: the unit reads %s, not %s", ErrNoSystemd, want, specPath)
	}
	if p, err := Adopt(spec.Control); p != nil || err != nil {
		return p, err
	}
	c, err := dbus.NewWithContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("systemd: %w", err)
	}
	defer c.Close()
	name := UnitName(spec.Volume)
	// The list is emptied first, else these would be added to an earlier start's.
	err = c.SetUnitPropertiesContext(ctx, name, true, property("DeviceAllow", []deviceAllow{}), property("DeviceAllow", devicesAllowed(spec)))
	if err != nil {
		return nil, fmt.Errorf("%s: set its devices: %w", name, err)
	}
	if err := start(ctx, c, name); err != nil {
		if ctx.Err() == nil {
			err = errors.Join(err, stop(ctx, c, name)) // it might be started again by systemd
		}
		return nil, err
	}
	return mainProcess(ctx, c, name)
}

// Allow adds to what the unit may open: what a property with a list is set to is added to it.
func (unit) Allow(ctx context.Context, spec *api.EngineSpec) error {
	c, err := dbus.NewWithContext(ctx)
	if err != nil {
		return fmt.Errorf("systemd: %w", err)
	}
	defer c.Close()
	name := UnitName(spec.Volume)
	if err := c.SetUnitPropertiesContext(ctx, name, true, property("DeviceAllow", devicesAllowed(spec))); err != nil {
		return fmt.Errorf("%s: add to its devices: %w", name, err)
	}
	return nil
}

func property(name string, value any) dbus.Property {
	return dbus.Property{Name: name, Value: godbus.MakeVariant(value)}
}

// start waits until the unit's engine serves. A unit that runs already is left as it is, and one that systemd is about
// to start again is waited for.
func start(ctx context.Context, c *dbus.Conn, name string) error {
	s, err := stateOf(ctx, c, name)
	if err != nil {
		return err
	}
	if s.active == "failed" { // maybe started too often for systemd's liking; whoever calls us waits between attempts
		if err := c.ResetFailedUnitContext(ctx, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	result, err := job(ctx, c, func(done chan<- string) error {
		_, err := c.StartUnitContext(ctx, name, "replace", done)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: start: %w", name, err)
	}
	if result == "done" {
		return nil
	}
	s, err = stateOf(ctx, c, name)
	if err != nil {
		return err
	}
	return fmt.Errorf("%s: start: %s: %s", name, result, s.ended())
}

func stop(ctx context.Context, c *dbus.Conn, name string) error {
	_, err := job(ctx, c, func(done chan<- string) error {
		_, err := c.StopUnitContext(ctx, name, "replace", done)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: stop: %w", name, err)
	}
	return nil
}

// job waits for the end of a job and returns its result; "done" is success.
func job(ctx context.Context, c *dbus.Conn, submit func(chan<- string) error) (string, error) {
	done := make(chan string, 1)
	if err := submit(done); err != nil {
		return "", err
	}
	alive := time.NewTicker(time.Second)
	defer alive.Stop()
	for {
		select {
		case result := <-done:
			return result, nil
		case <-ctx.Done():
			return "", ctx.Err()
		case <-alive.C:
			if !c.Connected() {
				return "", errors.New("connection to systemd lost")
			}
		}
	}
}

// mainProcess follows the unit's process.
func mainProcess(ctx context.Context, c *dbus.Conn, name string) (*Process, error) {
	for {
		s, err := stateOf(ctx, c, name)
		if err != nil {
			return nil, err
		}
		if s.main == 0 {
			return nil, fmt.Errorf("%s: %s", name, s.ended())
		}
		pid := s.main
		p, err := follow(pid, func() string { return whyEnded(name, pid) })
		if errors.Is(err, errGone) {
			return nil, fmt.Errorf("%s: its process ended at once", name)
		} else if err != nil {
			return nil, err
		}
		// Still the same: so its number was nobody else's when it was opened.
		if s, err = stateOf(ctx, c, name); err != nil {
			return nil, err
		} else if s.main == pid {
			return p, nil
		}
	}
}

// whyWait bounds how long the question may take why an engine ended.
const whyWait = 2 * time.Second

func whyEnded(name string, pid int) string {
	ctx, cancel := context.WithTimeout(context.Background(), whyWait)
	defer cancel()
	said := "see journalctl -u " + name
	c, err := dbus.NewWithContext(ctx)
	if err != nil {
		return said
	}
	defer c.Close()
	for {
		s, err := stateOf(ctx, c, name)
		if err != nil || s.last != pid {
			return said
		}
		if s.main != pid {
			return s.ended() + "; " + said
		}
		time.Sleep(10 * time.Millisecond) // systemd has not heard of its end yet
	}
}

// Gone drops the device rules and what systemd remembers of a failed unit. It stops the unit if it isn't: an engine that
// failed to close its store when it was asked to end would else be started again.
func (unit) Gone(ctx context.Context, volume string) error {
	c, err := dbus.NewWithContext(ctx)
	if err != nil {
		return fmt.Errorf("systemd: %w", err)
	}
	defer c.Close()
	name := UnitName(volume)
	s, err := stateOf(ctx, c, name)
	if err != nil {
		return err
	}
	if s.active != "inactive" && s.active != "failed" {
		if err := stop(ctx, c, name); err != nil {
			return err
		}
	}
	// A unit that did not fail is not loaded any more, and then this is an error.
	_ = c.ResetFailedUnitContext(ctx, name)
	// Where SetUnitProperties has put them; the unit is not loaded, so systemd need not be told.
	dir := filepath.Join("/run/systemd/system.control", name+".d")
	if err := os.Remove(filepath.Join(dir, "50-DeviceAllow.conf")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	_ = os.Remove(dir) // an operator may have files of their own there
	return nil
}
