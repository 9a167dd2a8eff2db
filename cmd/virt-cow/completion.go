package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/alecthomas/kong"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/completion"
	"github.com/virt-cow/virt-cow/internal/config"
)

// CompletionCmd prints a shell's script.
type CompletionCmd struct {
	Shell string `arg:"" help:"bash, zsh or fish." enum:"bash,zsh,fish"`
}

// Run prints it.
func (c *CompletionCmd) Run(env *Env) error {
	_, err := fmt.Fprint(env.Stdout, completion.Script(c.Shell, "virt-cow"))
	return err
}

// answerCompletion is what the scripts call for each key: it must be quick, and silent about what is wrong.
func answerCompletion(app *kong.Application, args []string, out io.Writer) {
	fmt.Fprint(out, completion.Answer(args, func(words []string) ([]completion.Candidate, completion.Paths) {
		return completion.Complete(app, words, names)
	}))
}

// nameTime is what a key may wait for names.
const nameTime = time.Second

// names asks for volumes and hosts the daemon, for domains libvirt.
func names(kind string, flags map[string]string) []completion.Candidate {
	ctx, cancel := context.WithTimeout(context.Background(), nameTime)
	defer cancel()
	s := config.Read(flags["config"], os.LookupEnv)
	if dir := flags["run-dir"]; dir != "" {
		s.Flag("run_dir", dir, "--run-dir")
	}
	switch kind {
	case "volume":
		return volumeNames(ctx, api.NewDaemon(s.Config.RunDir))
	case "host":
		return hostNames(ctx, api.NewDaemon(s.Config.RunDir))
	case "domain":
		return domainNames(ctx, s.Config.Libvirt.Socket)
	}
	return nil
}

func volumeNames(ctx context.Context, d *api.Daemon) []completion.Candidate {
	var found []completion.Candidate
	if l, err := d.Volumes(ctx); err == nil {
		for _, v := range l.Volumes {
			found = append(found, completion.Candidate{Word: v.Name, Help: formatSize(v.Size) + ", " + v.Store})
		}
		return found
	}
	if s, err := d.Status(ctx); err == nil {
		for _, v := range s.Volumes {
			found = append(found, completion.Candidate{Word: v.Volume, Help: v.State})
		}
	}
	return found
}

func hostNames(ctx context.Context, d *api.Daemon) []completion.Candidate {
	l, err := d.Hosts(ctx)
	if err != nil {
		return nil
	}
	var found []completion.Candidate
	for i := range l.Hosts {
		h := &l.Hosts[i]
		found = append(found, completion.Candidate{Word: hostOf(h), Help: h.Address})
	}
	return found
}

func domainNames(ctx context.Context, socket string) []completion.Candidate {
	c, err := dialLibvirt(ctx, socket)
	if err != nil {
		return nil
	}
	defer c.Close()
	domains, err := c.Domains(ctx)
	if err != nil {
		return nil
	}
	var found []completion.Candidate
	for _, d := range domains {
		found = append(found, completion.Candidate{Word: d.Name, Help: d.UUID.String()})
	}
	return found
}
