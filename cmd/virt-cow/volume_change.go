package main

import (
	"context"
	"fmt"

	"github.com/virt-cow/virt-cow/internal/api"
)

// VolumeDeleteCmd deletes volumes.
type VolumeDeleteCmd struct {
	Volumes   []string `arg:"" name:"volume" help:"Names of volumes." complete:"volume"`
	KeepStore bool     `help:"Forget the volume, but leave its store as it is; volume adopt or scan takes it back."`
	Force     bool     `help:"Delete although libvirt does not answer, so that it can't be known whether a domain that is off has the volume."`
}

// Run stops at the first volume that can't be deleted.
func (c *VolumeDeleteCmd) Run(env *Env) error {
	return each(env, c.Volumes, func(ctx context.Context, d *api.Daemon, name string) (*api.VolumeInfo, string, error) {
		v, err := d.Delete(ctx, name, api.DeleteRequest{KeepStore: c.KeepStore, Force: c.Force})
		switch {
		case err != nil:
			return nil, "", err
		case c.KeepStore:
			return v, "forgotten; its store stays at " + v.Store, nil
		case v.Origin != "":
			return v, "deleted; the raw disk stays at " + v.Origin, nil
		}
		return v, "deleted", nil
	})
}

// VolumeStartCmd has volumes served.
type VolumeStartCmd struct {
	Volumes []string `arg:"" name:"volume" help:"Names of volumes." complete:"volume"`
}

// Run tells the socket of each.
func (c *VolumeStartCmd) Run(env *Env) error {
	return each(env, c.Volumes, func(ctx context.Context, d *api.Daemon, name string) (*api.VolumeStatus, string, error) {
		s, err := d.Start(ctx, name)
		if err != nil {
			return nil, "", err
		}
		if s.Engine == nil {
			return s, s.State, nil
		}
		return s, "served at nbd+unix:///?socket=" + s.Engine.Socket, nil
	})
}

// VolumeStopCmd ends it.
type VolumeStopCmd struct {
	Volumes []string `arg:"" name:"volume" help:"Names of volumes." complete:"volume"`
}

// Run leaves what a guest has to the guest.
func (c *VolumeStopCmd) Run(env *Env) error {
	return each(env, c.Volumes, func(ctx context.Context, d *api.Daemon, name string) (*api.VolumeStatus, string, error) {
		s, err := d.Stop(ctx, name)
		if err == nil && s.Domain != "" {
			return s, "no longer held; domain " + s.Domain + " keeps it", nil
		}
		return s, "no longer served", err
	})
}

// each does one thing to one volume after the other, and tells of each. It stops at the first failure.
func each[T any](env *Env, names []string, do func(context.Context, *api.Daemon, string) (T, string, error)) error {
	for _, name := range names {
		if err := checkName(name); err != nil {
			return err
		}
	}
	d := api.NewDaemon(env.RunDir)
	done := []T{}
	var failed error
	for i, name := range names {
		v, said, err := do(env.Context, d, name)
		if err != nil {
			failed = daemonError(err)
			if len(names) > 1 {
				failed = exitError{fmt.Errorf("%w; %d done before it, %d left as they are", failed, i, len(names)-i-1), exitCode(failed)}
			}
			break
		}
		done = append(done, v)
		if !env.JSON {
			fmt.Fprintf(env.Stdout, "volume %s: %s\n", name, said)
		}
	}
	if env.JSON {
		if err := printJSON(env, done); err != nil {
			return err
		}
	}
	return failed
}

// VolumeScanCmd rebuilds the catalogue.
type VolumeScanCmd struct {
	Paths []string `arg:"" optional:"" name:"path" help:"Folders and devices; those of the configuration by default." type:"path"`
}

// Run tells what changed; what was refused or is missing makes it degraded.
func (c *VolumeScanCmd) Run(env *Env) error {
	r, err := api.NewDaemon(env.RunDir).Scan(env.Context, api.ScanRequest{Paths: c.Paths})
	if err != nil {
		return daemonError(err)
	}
	if env.JSON {
		if err := printJSON(env, r); err != nil {
			return err
		}
	} else {
		for _, part := range []struct {
			what  string
			names []string
		}{{"found", r.Found}, {"moved", r.Moved}, {"MISSING", r.Missing}, {"refused", r.Refused}} {
			for _, name := range part.names {
				fmt.Fprintf(env.Stdout, "%s: %s\n", part.what, name)
			}
		}
		fmt.Fprintf(env.Stdout, "%s examined: %d found, %d moved, %d missing, %d refused\n", count(r.Examined, "store"),
			len(r.Found), len(r.Moved), len(r.Missing), len(r.Refused))
	}
	if n := len(r.Missing) + len(r.Refused); n > 0 {
		return exitError{fmt.Errorf("%d missing, %d refused", len(r.Missing), len(r.Refused)), exitDegraded}
	}
	return nil
}
