package main

import (
	"fmt"
	"strconv"
	"text/tabwriter"

	"github.com/virt-cow/virt-cow/internal/api"
)

// StatusCmd shows what the daemon looks after.
type StatusCmd struct{}

// Run prints a table, and below it what went wrong; then the exit code is that for degraded.
func (c *StatusCmd) Run(env *Env) error {
	s, err := api.NewDaemon(env.RunDir).Status(env.Context)
	if err != nil {
		return daemonError(err)
	}
	if env.JSON {
		if err := printJSON(env, s); err != nil {
			return err
		}
	} else {
		printStatus(env, s)
	}
	failed := 0
	for _, v := range s.Volumes {
		if v.State == api.VolumeFailed {
			failed++
		}
	}
	switch {
	case failed > 0:
		return exitError{fmt.Errorf("%d of %d volumes failed", failed, len(s.Volumes)), exitDegraded}
	case !s.Libvirt.Connected:
		return exitError{fmt.Errorf("the daemon has no connection to libvirt: %s", s.Libvirt.Error), exitDegraded}
	}
	return nil
}

func printStatus(env *Env, s *api.DaemonStatus) {
	if len(s.Volumes) == 0 {
		fmt.Fprintln(env.Stdout, "no volumes")
		return
	}
	w := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "VOLUME\tDOMAIN\tTARGET\tSTATE\tHYDRATION\tCACHE\tPID")
	for _, v := range s.Volumes {
		hydration, cache, pid := "-", "-", "-"
		if e := v.Engine; e != nil {
			hydration, cache = hydrated(e.Hydration), e.Cache
		}
		if v.PID != 0 {
			pid = strconv.Itoa(v.PID)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", v.Volume, or(v.Domain, "-"), or(v.Target, "-"), v.State, hydration, cache, pid)
	}
	w.Flush()
	for _, v := range s.Volumes {
		if v.Error != "" {
			fmt.Fprintf(env.Stdout, "\n%s: %s\n", v.Volume, v.Error)
		}
	}
}

// hydrated is how far the background copy is, in percent unless it is done.
func hydrated(h *api.Hydration) string {
	switch {
	case h == nil || h.Total == 0:
		return "-"
	case h.State == api.HydrationDone:
		return "cut loose"
	}
	// Rounded down: 100 % is for done.
	return fmt.Sprintf("%d%% %s", h.Done*100/h.Total, h.State)
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
