package main

import (
	"errors"
	"fmt"

	"github.com/virt-cow/virt-cow/internal/api"
)

// RestartCmd replaces engine processes.
type RestartCmd struct {
	Volumes []string `arg:"" optional:"" name:"volume" help:"Names of volumes." complete:"volume"`
	Old     bool     `help:"All whose engine runs an old binary."`
	All     bool     `help:"All that are served."`
}

// Run restarts one after the other and stops at the first that does not come up again: the rest stays as it is.
func (c *RestartCmd) Run(env *Env) error {
	if len(c.Volumes) == 0 && !c.Old && !c.All {
		return exitError{errors.New("say which: names of volumes, --old or --all"), exitUsage}
	}
	for _, v := range c.Volumes {
		if err := checkName(v); err != nil {
			return err
		}
	}
	d := api.NewDaemon(env.RunDir)
	names := c.Volumes
	if c.Old || c.All {
		s, err := d.Status(env.Context)
		if err != nil {
			return daemonError(err)
		}
		for _, v := range s.Volumes {
			if v.PID != 0 && (c.All || v.Old) {
				names = append(names, v.Volume)
			}
		}
	}
	done := []*api.VolumeStatus{}
	var failed error
	for i, name := range names {
		v, err := d.Restart(env.Context, name)
		if err != nil {
			failed = fmt.Errorf("volume %s: %w; %d restarted before it, %d left as they are", name, daemonError(err), i, len(names)-i-1)
			break
		}
		done = append(done, v)
		if !env.JSON {
			fmt.Fprintf(env.Stdout, "volume %s: engine is process %d now\n", v.Volume, v.PID)
		}
	}
	if env.JSON {
		if err := printJSON(env, done); err != nil {
			return err
		}
	} else if len(names) == 0 {
		fmt.Fprintln(env.Stdout, "nothing to restart")
	}
	return failed
}
