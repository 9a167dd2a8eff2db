package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/top"
)

// StatusCmd shows what the daemon looks after.
type StatusCmd struct {
	Watch    bool          `help:"Show a live table, with rates; on a terminal in place." short:"w"`
	Interval time.Duration `help:"How often with --watch." default:"1s" placeholder:"TIME"`
}

// Run prints a table, and below it what went wrong; then the exit code is that for degraded.
func (c *StatusCmd) Run(env *Env) error {
	if c.Watch {
		return c.watch(env)
	}
	s, err := api.NewDaemon(env.RunDir).Status(env.Context)
	if err != nil {
		return daemonError(err)
	}
	if env.JSON {
		err = printJSON(env, s)
	} else {
		err = printStatus(env.Stdout, s)
	}
	if err != nil {
		return err
	}
	return degraded(s)
}

// degraded is nil if all is well.
func degraded(s *api.DaemonStatus) error {
	var wrong []string
	failed, broken, waiting := 0, 0, 0
	for _, v := range s.Volumes {
		if waits(&v) != "" {
			waiting++
		}
		if v.State == api.VolumeFailed {
			failed++
		} else if troubled(&v) != "" {
			broken++
		}
	}
	if failed > 0 {
		wrong = append(wrong, fmt.Sprintf("%d of %d volumes failed", failed, len(s.Volumes)))
	}
	if broken > 0 {
		wrong = append(wrong, count(broken, "volume")+" in trouble")
	}
	if waiting > 0 {
		wrong = append(wrong, "the hand-over of "+count(waiting, "volume")+" waits")
	}
	if n := len(s.Domains); n > 0 {
		wrong = append(wrong, count(n, "domain")+" with an error")
	}
	if !s.Libvirt.Connected {
		wrong = append(wrong, "the daemon has no connection to libvirt: "+s.Libvirt.Error)
	}
	if wrong == nil {
		return nil
	}
	return exitError{errors.New(strings.Join(wrong, ", ")), exitDegraded}
}

// troubled is what is wrong with a volume, "" if nothing is.
func troubled(v *api.VolumeStatus) string {
	switch e := v.Engine; {
	case v.Error != "":
		return v.Error
	case v.State == api.VolumeFailed:
		return "failed"
	case e != nil && e.Error != "":
		return "FLUSH fails: " + e.Error
	case e != nil && e.Hydration != nil && e.Hydration.State == api.HydrationFailed:
		return "hydration: " + e.Hydration.Error
	}
	return ""
}

// headline is the daemon in one line.
func headline(s *api.DaemonStatus, now time.Time) string {
	libvirt := "libvirt connected"
	if !s.Libvirt.Connected {
		libvirt = "NO LIBVIRT"
	}
	text := fmt.Sprintf("virt-cow %s, pid %d", s.Version, s.PID)
	if s.Started > 0 {
		text += ", up " + top.Duration(max(0, now.Sub(time.Unix(s.Started, 0)).Seconds()))
	}
	if s.Launcher != "" {
		text += ", engines by " + s.Launcher
	}
	text += fmt.Sprintf("; %s; %s in use", libvirt, count(len(s.Volumes), "volume"))
	if s.Catalogue > 0 {
		text += fmt.Sprintf(" of %d", s.Catalogue)
	}
	return text
}

// trouble is what is wrong, a line each; what waits for somebody comes first.
func trouble(s *api.DaemonStatus) []string {
	var lines []string
	for i := range s.Volumes {
		if why := waits(&s.Volumes[i]); why != "" {
			lines = append(lines, s.Volumes[i].Volume+": WAITS: "+why)
		}
	}
	if !s.Libvirt.Connected {
		lines = append(lines, "libvirt: "+s.Libvirt.Error)
	}
	for _, d := range s.Domains {
		lines = append(lines, "domain "+d.Domain+": "+d.Error)
	}
	for i := range s.Volumes {
		if t := troubled(&s.Volumes[i]); t != "" {
			lines = append(lines, s.Volumes[i].Volume+": "+t)
		}
	}
	return lines
}

func printStatus(out io.Writer, s *api.DaemonStatus) error {
	if _, err := fmt.Fprintln(out, headline(s, time.Now())); err != nil {
		return err
	}
	if len(s.Volumes) > 0 {
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "VOLUME\tDOMAIN\tTARGET\tSTATE\tHYDRATION\tCACHE\tPID\tNOTE")
		for _, v := range s.Volumes {
			hydration, cache, pid := "-", "-", "-"
			if e := v.Engine; e != nil {
				hydration, cache = hydrated(e.Hydration), e.Cache
			}
			if v.PID != 0 {
				pid = strconv.Itoa(v.PID)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", v.Volume, or(v.Domain, "-"), or(v.Target, "-"), v.State, hydration, cache, pid,
				or(top.Note(&v), "-"))
		}
		if err := w.Flush(); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(out, "no volumes")
	}
	for _, line := range append(underWay(s, time.Now()), trouble(s)...) {
		fmt.Fprintf(out, "\n%s\n", line)
	}
	return nil
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
