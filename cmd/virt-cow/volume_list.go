package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
)

// VolumeListCmd lists the catalogue.
type VolumeListCmd struct{}

// Run prints a table, and below it what is wrong.
func (c *VolumeListCmd) Run(env *Env) error {
	l, err := api.NewDaemon(env.RunDir).Volumes(env.Context)
	if err != nil {
		return daemonError(err)
	}
	if env.JSON {
		return printJSON(env, l)
	}
	if len(l.Volumes) == 0 {
		fmt.Fprintln(env.Stdout, "no volumes: `virt-cow volume create` makes one, `virt-cow volume scan` finds those there are")
		return nil
	}
	w := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "VOLUME\tSTATE\tSIZE\tROLE\tOF\tDOMAIN\tTARGET\tSTORE")
	for _, v := range l.Volumes {
		domain, target := "-", "-"
		if v.Status != nil {
			domain, target = or(v.Status.Domain, "-"), or(v.Status.Target, "-")
		}
		size := "-"
		if v.Size > 0 {
			size = formatSize(v.Size)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", v.Name, volumeState(&v), size, or(v.Role, "-"), basis(&v), domain, target, or(v.Store, "-"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, v := range l.Volumes {
		if v.Error != "" {
			fmt.Fprintf(env.Stdout, "\n%s: %s\n", v.Name, v.Error)
		}
	}
	return nil
}

// volumeState is what is being done with a volume, or else how it is in the catalogue.
func volumeState(v *api.VolumeInfo) string {
	switch {
	case v.State == "":
		return "damaged"
	case v.State == api.StateReady && v.Status != nil:
		return v.Status.State
	}
	return v.State
}

// basis is what a volume is made of.
func basis(v *api.VolumeInfo) string {
	switch {
	case v.Origin != "":
		return v.Origin
	case v.CutLoose:
		return "cut loose"
	}
	return or(v.Master, "-")
}

// VolumeShowCmd shows one volume.
type VolumeShowCmd struct {
	Volume string `arg:"" help:"Name of the volume." complete:"volume"`
}

// Run prints a line a fact.
func (c *VolumeShowCmd) Run(env *Env) error {
	if err := checkName(c.Volume); err != nil {
		return err
	}
	v, err := api.NewDaemon(env.RunDir).Volume(env.Context, c.Volume)
	if err != nil {
		return daemonError(err)
	}
	if env.JSON {
		return printJSON(env, v)
	}
	t := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(t, "%s\t%s\n", name, value)
		}
	}
	line("volume", v.Name)
	line("uuid", v.UUID)
	line("state", v.State)
	line("error", v.Error)
	line("role", v.Role)
	if v.Size > 0 {
		line("size", fmt.Sprintf("%s (%d bytes) in chunks of %s", formatSize(v.Size), v.Size, formatSize(v.ChunkSize)))
	}
	line("store", v.Store)
	line("origin", v.Origin)
	if v.CutLoose {
		line("master", "none: cut loose")
	} else {
		line("master", v.Master)
	}
	line("pool", v.Pool)
	line("provider", v.Provider)
	if v.Created > 0 {
		line("created", time.Unix(v.Created, 0).Format(time.RFC3339))
	}
	if s := v.Status; s != nil {
		line("use", s.State)
		line("domain", s.Domain)
		line("target", s.Target)
		line("trouble", troubled(s))
		if s.PID != 0 {
			line("engine", fmt.Sprintf("process %d", s.PID))
		}
		if e := s.Engine; e != nil && e.Hydration != nil {
			line("hydration", hydrationOf(s))
		}
		for _, f := range sharing(s, time.Now()) {
			line(f.name, f.value)
		}
	} else {
		line("use", "none")
	}
	return t.Flush()
}
