package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode"

	"github.com/virt-cow/virt-cow/internal/api"
)

// AttachCmd gives a domain a volume.
type AttachCmd struct {
	Domain    string `arg:"" help:"Name or UUID of the domain." complete:"domain"`
	Volume    string `arg:"" optional:"" help:"Name of the volume; may be left out with --store." complete:"volume"`
	Store     string `help:"Store of the volume; where the catalogue has it by default." type:"path" placeholder:"PATH"`
	Target    string `help:"Where the domain has it, such as vdb; the first free one by default." placeholder:"DEV"`
	Bus       string `help:"virtio by default, scsi, sata or another that libvirt knows." placeholder:"BUS"`
	NoHydrate bool   `help:"Do not copy from the master in the background."`
	Rate      Size   `help:"Limit of the background copy, bytes a second." placeholder:"SIZE"`
}

// Run attaches now if the domain runs, and in any case whenever it starts.
func (c *AttachCmd) Run(env *Env) error {
	if err := checkDomain(c.Domain); err != nil {
		return err
	}
	if c.Volume == "" && c.Store == "" {
		return exitError{errors.New("say which volume: its name, --store PATH, or both; `virt-cow volume list` prints those there are"), exitUsage}
	}
	if c.Volume != "" {
		if err := checkName(c.Volume); err != nil {
			return err
		}
	}
	s, err := api.NewDaemon(env.RunDir).Attach(env.Context, api.AttachRequest{
		Domain: c.Domain, Store: c.Store, Volume: c.Volume, Target: c.Target, Bus: c.Bus,
		Hydrate: !c.NoHydrate, Rate: int64(c.Rate),
	})
	if err != nil {
		return daemonError(err)
	}
	if env.JSON {
		return printJSON(env, s)
	}
	format := "volume %s: %s has it as %s\n"
	if s.State == api.VolumeOff {
		format = "volume %s: %s gets it as %s when it starts\n"
	}
	fmt.Fprintf(env.Stdout, format, s.Volume, s.Domain, s.Target)
	return nil
}

// DetachCmd takes a volume from a domain.
type DetachCmd struct {
	Domain string `arg:"" help:"Name or UUID of the domain." complete:"domain"`
	Volume string `arg:"" help:"Name of the volume." complete:"volume"`
}

// Run returns once the guest let go of the disk and the store is closed.
func (c *DetachCmd) Run(env *Env) error {
	if err := checkDomain(c.Domain); err != nil {
		return err
	}
	if err := checkName(c.Volume); err != nil {
		return err
	}
	s, err := api.NewDaemon(env.RunDir).Detach(env.Context, api.DetachRequest{Domain: c.Domain, Volume: c.Volume})
	if err != nil {
		return daemonError(err)
	}
	if env.JSON {
		return printJSON(env, s)
	}
	fmt.Fprintf(env.Stdout, "volume %s: detached from %s\n", s.Volume, s.Domain)
	return nil
}

// checkDomain refuses what can't be a domain's name before it is asked for.
func checkDomain(domain string) error {
	if domain == "" || strings.Contains(domain, "/") || strings.ContainsFunc(domain, unicode.IsControl) {
		return exitError{fmt.Errorf("domain %q: no domain has such a name; `virsh list --all` prints those there are", domain), exitUsage}
	}
	return nil
}

// daemonError gives what the daemon refused its exit code.
func daemonError(err error) error {
	var r *api.RemoteError
	if !errors.As(err, &r) {
		return err
	}
	switch r.Code {
	case http.StatusBadRequest:
		return exitError{err, exitUsage}
	case http.StatusConflict:
		return exitError{err, exitLocked}
	}
	return err
}
