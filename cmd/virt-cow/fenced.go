package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/virt-cow/virt-cow/internal/api"
)

// HostFencedCmd gives the operator's word.
type HostFencedCmd struct {
	Host  string `arg:"" help:"Name or UUID of the host; host list prints them." complete:"host"`
	Yes   bool   `help:"Do not ask; for scripts that have just switched the host off." short:"y"`
	Alive bool   `help:"Although its daemon answers: it is cut from the storage, and can't write."`
}

// Run asks first, on a terminal, unless told not to.
func (c *HostFencedCmd) Run(env *Env) error {
	if strings.TrimSpace(c.Host) == "" {
		return exitError{errors.New("say which host: `virt-cow host list` prints them"), exitUsage}
	}
	if !c.Yes && !(isTerminal(os.Stdin) && isTerminal(env.Stderr)) {
		return exitError{errors.New("there is no terminal to ask on: --yes says that you know the host to be dead"), exitUsage}
	}
	d := api.NewDaemon(env.RunDir)
	l, err := d.Hosts(env.Context)
	if err != nil {
		return daemonError(err)
	}
	h, err := c.find(l)
	if err != nil {
		return err
	}
	name := c.Host
	if h != nil {
		name = hostOf(h)
		if h.Answers && !c.Alive {
			return exitError{fmt.Errorf("host %s answers, at %s: it is not dead. Stop it, or fence it, first; if it is cut from the storage "+
				"so that none of its writes can arrive there any more, add --alive", name, h.Address), exitLocked}
		}
	}
	if !c.Yes {
		fmt.Fprint(env.Stderr, warning(name, h))
		if err := confirm(env, fmt.Sprintf("Type %s to say so: ", name), name); err != nil {
			return fmt.Errorf("%w: host %s is not taken for dead, nothing has changed", err, name)
		}
	}
	// What was shown is what is meant, whatever a name stands for by now.
	r := api.FencedRequest{Host: c.Host}
	if h != nil && h.Host != "" {
		r.Host = h.Host
	}
	report, err := d.Fenced(env.Context, r)
	if err != nil {
		return daemonError(err)
	}
	return told(env, name, report)
}

// find looks a host up. One that is not listed is the daemon's to judge; this very host never is dead.
func (c *HostFencedCmd) find(l *api.HostList) (*api.HostStatus, error) {
	var found *api.HostStatus
	for i := range l.Hosts {
		h := &l.Hosts[i]
		if strings.EqualFold(c.Host, h.Host) {
			found = h
			break
		}
		if c.Host == h.HostName || strings.EqualFold(c.Host, h.HostName) || c.Host == h.Address {
			if found != nil {
				return nil, exitError{fmt.Errorf("two hosts are called %s: give the UUID, %s or %s", c.Host, found.Host, h.Host), exitUsage}
			}
			found = h
		}
	}
	byUUID := found != nil && strings.EqualFold(c.Host, found.Host)
	if this := l.This; strings.EqualFold(c.Host, this.Host) || found != nil && found.Host != "" && strings.EqualFold(found.Host, this.Host) ||
		!byUUID && strings.EqualFold(c.Host, this.HostName) {
		return nil, exitError{fmt.Errorf("%s is this very host (%s), and alive: give the name or UUID of another; `virt-cow host list` prints them",
			c.Host, this.Host), exitUsage}
	}
	return found, nil
}

// warning says what the word means.
func warning(name string, h *api.HostStatus) string {
	text := fmt.Sprintf(`Is host %s dead? virt-cow takes your word for it, and nothing checks it. It means that
  - it is switched off, or cut from the storage, and none of its writes, not even one that is delayed, can reach the disks;
  - its volumes may be opened here without it, and guests started with them.
If it is still writing, two guests write to one disk, and that disk is DESTROYED.
`, name)
	if h == nil {
		return text + "No volume was found yet that it owns.\n"
	}
	if h.Answers {
		text += fmt.Sprintf("\nIT ANSWERS, at %s.\n\n", h.Address)
	}
	if len(h.Volumes) > 0 {
		text += "It owns " + strings.Join(h.Volumes, ", ") + ".\n"
	}
	return text
}

// told prints what the word counts for; what could not be read makes it degraded.
func told(env *Env, name string, r *api.FencedReport) error {
	wrong := len(r.Unread)
	for _, v := range r.Volumes {
		if v.Error != "" {
			wrong++
		}
	}
	var err error
	if env.JSON {
		err = printJSON(env, r)
	} else {
		err = printFenced(env, name, r)
	}
	if err == nil && wrong > 0 {
		err = exitError{fmt.Errorf("the word does not count for %s: give it again once it can be read", count(wrong, "volume")), exitDegraded}
	}
	return err
}

func printFenced(env *Env, name string, r *api.FencedReport) error {
	owned, granted := 0, 0
	w := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "host %s (%s) is taken for dead\n", name, r.Host)
	if len(r.Volumes)+len(r.Unread) > 0 {
		fmt.Fprintln(w, "\nVOLUME\tEPOCH\tIT HAD\tTHE WORD COUNTS")
	}
	for _, v := range r.Volumes {
		had, counts := "the volume", "yes"
		if v.Grant {
			had = "a grant"
		}
		switch {
		case v.Error != "":
			counts = "NO: " + v.Error
		case v.Grant:
			granted++
		default:
			owned++
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", v.Volume, v.Epoch, had, counts)
	}
	for _, v := range r.Unread {
		fmt.Fprintf(w, "%s\t-\tnot known\tNO: %s\n", v.Volume, or(v.Error, "its header could not be read"))
	}
	fmt.Fprintln(w)
	if owned > 0 {
		fmt.Fprintln(w, "What it owned is taken over where it is needed: writes of a guest that came from there and waits go on, and a guest that")
		fmt.Fprintln(w, "could not be started can be. `virt-cow status` shows it.")
	}
	if granted > 0 {
		fmt.Fprintln(w, "Its grants are ended, and the caches that were off for them go on again.")
	}
	switch {
	case owned+granted == 0 && len(r.Volumes)+len(r.Unread) > 0:
		fmt.Fprintln(w, "Nothing changes.")
	case owned+granted == 0:
		fmt.Fprintln(w, "It owns nothing of the catalogue, and has no grant: nothing changes.")
	default:
		fmt.Fprintln(w, "The word counts for this only: what the host owns later, once it is up again, needs another. Other hosts were not told:")
		fmt.Fprintln(w, "give it there too, where guests with these volumes are to start.")
	}
	return w.Flush()
}
