package main

import (
	"fmt"
	"math"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// HydrateCmd steers hydration.
type HydrateCmd struct {
	Start HydrateStartCmd `cmd:"" help:"Copy the rest of a clone from its master in the background, now and at later starts."`
	Pause HydratePauseCmd `cmd:"" help:"Stop the background copy of a clone, now and at later starts."`
	Rate  HydrateRateCmd  `cmd:"" help:"Limit the background copy of a clone."`
}

// HydrateStartCmd starts one.
type HydrateStartCmd struct {
	Volume string `arg:"" help:"Name of the volume." complete:"volume"`
	Rate   *Size  `help:"Limit, bytes a second; 0 for none. What was set before by default." placeholder:"SIZE"`
}

// Run has a volume that nobody uses served for it.
func (c *HydrateStartCmd) Run(env *Env) error {
	if err := checkName(c.Volume); err != nil {
		return err
	}
	d := api.NewDaemon(env.RunDir)
	run := true
	return setHydration(env, d, c.Volume, api.HydrationRequest{Run: &run, Rate: (*int64)(c.Rate)})
}

// HydratePauseCmd pauses one.
type HydratePauseCmd struct {
	Volume string `arg:"" help:"Name of the volume." complete:"volume"`
}

// Run also ends the service of a volume that only hydration had begun.
func (c *HydratePauseCmd) Run(env *Env) error {
	if err := checkName(c.Volume); err != nil {
		return err
	}
	d := api.NewDaemon(env.RunDir)
	run := false
	return setHydration(env, d, c.Volume, api.HydrationRequest{Run: &run})
}

// HydrateRateCmd limits one.
type HydrateRateCmd struct {
	Volume string `arg:"" help:"Name of the volume." complete:"volume"`
	Rate   Size   `arg:"" help:"Limit, bytes a second, such as 100M; 0 for none."`
}

// Run changes the limit at once.
func (c *HydrateRateCmd) Run(env *Env) error {
	if err := checkName(c.Volume); err != nil {
		return err
	}
	rate := int64(c.Rate)
	return setHydration(env, api.NewDaemon(env.RunDir), c.Volume, api.HydrationRequest{Rate: &rate})
}

func setHydration(env *Env, d *api.Daemon, volume string, r api.HydrationRequest) error {
	s, err := d.Hydration(env.Context, api.VolumeHydrationRequest{Volume: volume, HydrationRequest: r})
	if err != nil {
		return daemonError(err)
	}
	if env.JSON {
		return printJSON(env, s)
	}
	fmt.Fprintf(env.Stdout, "volume %s: %s\n", volume, hydrationOf(s))
	return nil
}

// hydrationOf tells the state of a volume's hydration in words.
func hydrationOf(s *api.VolumeStatus) string {
	if s.Engine == nil || s.Engine.Hydration == nil {
		return "noted; it is not served now"
	}
	h := s.Engine.Hydration
	text := hydrated(h)
	if h.State != api.HydrationDone && h.Rate > 0 && h.Rate < math.MaxInt64 {
		text += ", at most " + formatSize(h.Rate) + "/s"
	}
	if s.Held == api.HeldHydration && h.State == api.HydrationRunning {
		text += "; served for this only: `virt-cow hydrate pause " + s.Volume + "` ends it"
	}
	return text
}

// checkName refuses what can't be a volume's name before it is asked for.
func checkName(volume string) error {
	if err := cowfmt.ValidName(volume); err != nil {
		return exitError{fmt.Errorf("%w; `virt-cow volume list` prints those there are", err), exitUsage}
	}
	return nil
}
