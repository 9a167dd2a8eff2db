package main

import (
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
)

// CacheCmd switches exception caches.
type CacheCmd struct {
	Off    CacheOffCmd    `cmd:"" help:"Switch a volume's exception cache off, while its guest runs: what is written is on the store for other hosts to see before the guest goes on."`
	On     CacheOnCmd     `cmd:"" help:"Switch a volume's exception cache on again; this host must be the only one that has the volume open."`
	Status CacheStatusCmd `cmd:"" help:"Show a volume's cache, its owner, and the other hosts that may have it open."`
}

// CacheOffCmd switches one off.
type CacheOffCmd struct {
	Volume string `arg:"" help:"Name of the volume." complete:"volume"`
}

// Run returns once that is durable.
func (c *CacheOffCmd) Run(env *Env) error { return setCache(env, c.Volume, api.CacheOff) }

// CacheOnCmd switches one on.
type CacheOnCmd struct {
	Volume string `arg:"" help:"Name of the volume." complete:"volume"`
}

// Run is refused with the exit code for in use while another host has a grant.
func (c *CacheOnCmd) Run(env *Env) error { return setCache(env, c.Volume, api.CacheOn) }

func setCache(env *Env, volume, mode string) error {
	if err := checkName(volume); err != nil {
		return err
	}
	s, err := api.NewDaemon(env.RunDir).Cache(env.Context, volume, api.CacheRequest{Mode: mode})
	if err != nil {
		return daemonError(err)
	}
	switch {
	case env.JSON:
		err = printJSON(env, s)
	case s.Engine == nil:
		_, err = fmt.Fprintf(env.Stdout, "volume %s: noted; it is not served now\n", volume)
	default:
		_, err = fmt.Fprintf(env.Stdout, "volume %s: cache %s, epoch %d%s\n", volume, s.Engine.Cache, s.Engine.Epoch, resting(s.Engine))
	}
	if err == nil && s.Engine != nil && s.Engine.Cache != mode {
		err = exitError{fmt.Errorf("volume %s: its cache is still %s: `virt-cow cache status %s` says why", volume, s.Engine.Cache, volume), exitDegraded}
	}
	return err
}

// resting says that nothing is hydrated meanwhile, if there is something to hydrate.
func resting(e *api.EngineStatus) string {
	if h := e.Hydration; e.Cache == api.CacheOff && h != nil && h.State != api.HydrationDone {
		return "; nothing is hydrated until it is on again"
	}
	return ""
}

// CacheStatusCmd shows one.
type CacheStatusCmd struct {
	Volume string `arg:"" help:"Name of the volume." complete:"volume"`
}

// grantsVersion is the control version since which an engine tells of its owner, and of grants.
const grantsVersion = 3

// Run prints a line a fact. A hand-over that waits for somebody makes it degraded.
func (c *CacheStatusCmd) Run(env *Env) error {
	if err := checkName(c.Volume); err != nil {
		return err
	}
	info, err := api.NewDaemon(env.RunDir).Volume(env.Context, c.Volume)
	if err != nil {
		return daemonError(err)
	}
	s := info.Status
	if s == nil {
		s = &api.VolumeStatus{Volume: info.Name, Store: info.Store, State: api.VolumeOff}
	}
	if env.JSON {
		err = printJSON(env, s)
	} else {
		err = printCache(env, s)
	}
	if err != nil {
		return err
	}
	if waits(s) != "" {
		return exitError{errors.New("the hand-over of volume " + c.Volume + " waits"), exitDegraded}
	}
	return nil
}

func printCache(env *Env, s *api.VolumeStatus) error {
	t := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "volume\t%s\n", s.Volume)
	fmt.Fprintf(t, "use\t%s\n", s.State)
	for _, f := range sharing(s, time.Now()) {
		fmt.Fprintf(t, "%s\t%s\n", f.name, f.value)
	}
	switch e := s.Engine; {
	case e == nil && s.PID != 0:
		fmt.Fprintf(t, "cache\tnot known: its engine, process %d, does not answer\n", s.PID)
	case e == nil:
		fmt.Fprintf(t, "cache\tnone: nothing serves it here; `virt-cow store info %s` reads its header\n", s.Store)
	case e.ControlVersion < grantsVersion:
		fmt.Fprintf(t, "grants\tnot known: its engine is older than this program; `virt-cow volume restart %s` replaces it\n", s.Volume)
	case len(e.Grants) == 0:
		fmt.Fprintf(t, "grants\tnone\n")
	}
	return t.Flush()
}
