package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
)

// VolumeWaitCmd waits.
type VolumeWaitCmd struct {
	Volume  string        `arg:"" help:"Name of the volume." complete:"volume"`
	For     string        `help:"attached: a guest has it; served: an engine serves it; hydrated: it needs no master; gone: it is deleted." enum:"attached,hydrated,served,gone" default:"served"`
	Timeout time.Duration `help:"Give up after this time; 0 for never." default:"0s" placeholder:"TIME"`
}

// waitGrace is how long a daemon that once answered may be away, as while it is upgraded.
const waitGrace = time.Minute

// Run polls the daemon. Exit code 1 after the time is over, with what is still wanting.
func (c *VolumeWaitCmd) Run(env *Env) error {
	if err := checkName(c.Volume); err != nil {
		return err
	}
	ctx := env.Context
	if c.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.Timeout)
		defer cancel()
	}
	w := &waiting{cmd: c, env: env, state: "the daemon did not answer"}
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		v, err := api.NewDaemon(env.RunDir).Volume(ctx, c.Volume)
		done, err := w.look(ctx, v, err)
		if err != nil {
			return err
		}
		if done {
			w.end("done")
			return w.print(v)
		}
		select {
		case <-ctx.Done():
			if env.Context.Err() != nil {
				return env.Context.Err()
			}
			w.end("not waited for any longer")
			return fmt.Errorf("volume %s: not %s after %s: %s", c.Volume, c.For, c.Timeout, w.state)
		case <-time.After(pause):
		}
	}
}

// waiting is what one run of the command has seen.
type waiting struct {
	cmd      *VolumeWaitCmd
	env      *Env
	state    string    // of the volume, in words
	answered time.Time // when the daemon did last
	progress *progress
	done     int64
	total    int64
	warned   bool
}

// look judges one answer. An error ends the wait.
func (w *waiting) look(ctx context.Context, v *api.VolumeInfo, err error) (done bool, _ error) {
	switch {
	case notFound(err):
		if w.cmd.For == "gone" {
			return true, nil
		}
		return false, err
	case err != nil && ctx.Err() != nil:
		return false, nil
	case errors.Is(err, api.ErrNotRunning) && !w.answered.IsZero() && time.Since(w.answered) < waitGrace:
		w.state = "the daemon is not running"
		return false, nil
	case err != nil:
		return false, daemonError(err)
	}
	w.answered = time.Now()
	w.state = volumeState(v)
	if v.Error != "" {
		w.state += ": " + v.Error
	}
	if v.Status != nil && v.Status.Error != "" {
		w.state += ": " + v.Status.Error
	}
	switch w.cmd.For {
	case "attached":
		return v.Status != nil && v.Status.State == api.VolumeAttached, nil
	case "served":
		return v.Status != nil && v.Status.Engine != nil, nil
	case "hydrated":
		return w.hydrated(v)
	}
	return false, nil
}

func (w *waiting) hydrated(v *api.VolumeInfo) (bool, error) {
	if v.CutLoose || v.Master == "" && v.State == api.StateReady {
		return true, nil
	}
	if v.Status == nil || v.Status.Engine == nil || v.Status.Engine.Hydration == nil {
		if !w.warned && !w.env.JSON {
			fmt.Fprintf(w.env.Stderr, "volume %s: nothing serves it now, so nothing is copied: `virt-cow hydrate start %s` begins it\n", v.Name, v.Name)
			w.warned = true
		}
		return false, nil
	}
	h := v.Status.Engine.Hydration
	w.state = hydrated(h)
	switch h.State {
	case api.HydrationDone:
		return true, nil
	case api.HydrationFailed:
		return false, fmt.Errorf("volume %s: its hydration failed: %s; `virt-cow hydrate start %s` tries again", v.Name, h.Error, v.Name)
	}
	if !w.env.JSON {
		if w.progress == nil {
			w.progress = newProgress(w.env.Stderr, "hydrate "+v.Name, h.Done)
		}
		w.done, w.total = h.Done, h.Total
		w.progress.step(h.Done, h.Total)
	}
	return false, nil
}

func (w *waiting) end(outcome string) {
	if w.progress != nil && w.progress.shown {
		if outcome == "done" {
			w.done = w.total
		}
		w.progress.end(w.done, w.total, outcome)
	}
}

func (w *waiting) print(v *api.VolumeInfo) error {
	switch {
	case !w.env.JSON:
		return nil
	case w.cmd.For == "gone":
		return printJSON(w.env, api.VolumeInfo{Name: w.cmd.Volume})
	}
	return printJSON(w.env, v)
}
