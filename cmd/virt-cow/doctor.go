package main

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/hooks"
	"github.com/virt-cow/virt-cow/internal/doctor"
)

// DoctorCmd examines this host.
type DoctorCmd struct {
	All       bool `help:"Also show what is well."`
	PrintHook bool `help:"Print the script for /etc/libvirt/hooks/qemu.d and nothing else."`
}

// Run prints the findings; with one that is not well the exit code is that for degraded.
func (c *DoctorCmd) Run(env *Env) error {
	if c.PrintHook {
		_, err := fmt.Fprint(env.Stdout, hooks.QEMU)
		return err
	}
	h := &doctor.Host{Config: env.Settings, Version: version, Dial: dialLibvirt, Adjtime: unix.Adjtimex}
	found := h.Examine(env.Context)
	if err := env.Context.Err(); err != nil {
		return err
	}
	problems, warnings, skipped := 0, 0, 0
	for _, f := range found {
		switch f.Result {
		case doctor.Problem:
			problems++
		case doctor.Warning:
			warnings++
		case doctor.Skipped:
			skipped++
		}
	}
	if env.JSON {
		if err := printJSON(env, struct {
			OK       bool             `json:"ok"`
			Findings []doctor.Finding `json:"findings"`
		}{problems+warnings == 0, found}); err != nil {
			return err
		}
	} else {
		for _, f := range found {
			if c.All || f.Result != doctor.OK {
				printFinding(env, f)
			}
		}
	}
	if problems+warnings > 0 {
		return exitError{errors.New(count(problems, "problem") + ", " + count(warnings, "warning")), exitDegraded}
	}
	if !env.JSON {
		fmt.Fprintf(env.Stdout, "ok: %s, %d skipped\n", count(len(found), "finding"), skipped)
	}
	return nil
}

func printFinding(env *Env, f doctor.Finding) {
	fmt.Fprintf(env.Stdout, "%-8s %s: %s\n", strings.ToUpper(string(f.Result)), f.Check, f.Seen)
	if f.Why != "" {
		fmt.Fprintf(env.Stdout, "         why:  %s\n", f.Why)
	}
	if f.Mend != "" {
		fmt.Fprintf(env.Stdout, "         mend: %s\n", strings.ReplaceAll(f.Mend, "\n", "\n               "))
	}
}
