package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/virt-cow/virt-cow/internal/api"
)

// HostCmd is about the other hosts that have volumes of the catalogue.
type HostCmd struct {
	List   HostListCmd   `cmd:"" help:"List the hosts that own volumes of the catalogue or have a grant, and ask each whether it answers."`
	Fenced HostFencedCmd `cmd:"" help:"Say that a host is dead, so that its volumes can be taken over."`
}

// HostListCmd lists hosts.
type HostListCmd struct{}

// Run prints a table, and below it why a host does not answer; then the exit code is that for degraded.
func (c *HostListCmd) Run(env *Env) error {
	l, err := api.NewDaemon(env.RunDir).Hosts(env.Context)
	if err != nil {
		return daemonError(err)
	}
	if env.JSON {
		err = printJSON(env, l)
	} else {
		err = printHosts(env, l)
	}
	if err != nil {
		return err
	}
	silent := 0
	for _, h := range l.Hosts {
		if !h.Answers {
			silent++
		}
	}
	if silent > 0 {
		return exitError{fmt.Errorf("%s of %d without an answer", count(silent, "host"), len(l.Hosts)), exitDegraded}
	}
	return nil
}

func printHosts(env *Env, l *api.HostList) error {
	w := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "HOST\tUUID\tADDRESS\tANSWERS\tVERSION\tVOLUMES")
	fmt.Fprintf(w, "%s\t%s\t-\tthis host\t%s\t-\n", or(l.This.HostName, "-"), or(l.This.Host, "-"), or(l.This.Version, "-"))
	for i := range l.Hosts {
		h := &l.Hosts[i]
		answers := "yes"
		if !h.Answers {
			answers = "NO"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", or(h.HostName, "-"), or(h.Host, "-"), or(h.Address, "-"), answers, or(h.Version, "-"),
			or(strings.Join(h.Volumes, ", "), "-"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(l.Hosts) == 0 {
		fmt.Fprintln(env.Stdout, "\nno other host owns a volume of the catalogue, or has a grant")
	}
	for i := range l.Hosts {
		if h := &l.Hosts[i]; !h.Answers {
			fmt.Fprintf(env.Stdout, "\n%s: %s\n", hostOf(h), or(h.Error, "it does not answer"))
		}
	}
	return nil
}

// hostOf is a host as it would be typed.
func hostOf(h *api.HostStatus) string {
	if h.HostName == "" && h.Host == "" {
		return or(h.Address, "the other host")
	}
	return plainName(h.HostName, h.Host)
}
