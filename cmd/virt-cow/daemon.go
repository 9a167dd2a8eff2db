package main

import (
	"context"
	"fmt"
	"os"

	"github.com/virt-cow/virt-cow/internal/daemon"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// DaemonCmd is the control daemon.
type DaemonCmd struct {
	Libvirt string `help:"Socket of libvirt." type:"path" key:"libvirt.socket" placeholder:"PATH"`
	LogDir  string `help:"Logs of the engines." type:"path" key:"log_dir" placeholder:"DIR"`
	Program string `help:"Program to run for the engines; this one by default." type:"path" env:"VIRT_COW_PROGRAM" placeholder:"PATH"`
}

// Run runs until SIGTERM. Guests and their engines go on; the next daemon finds them.
func (c *DaemonCmd) Run(env *Env) error {
	if err := checkHost(env); err != nil {
		return err
	}
	if c.Program == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		c.Program = self
	}
	if _, err := os.Stat(c.Program); err != nil {
		return exitError{fmt.Errorf("--program: %w", err), exitUsage}
	}
	return daemon.Run(env.Context, daemon.Config{
		RunDir: env.Config.RunDir, LogDir: env.Config.LogDir, Program: c.Program, Version: version,
		Dial: func(ctx context.Context) (libvirtx.Conn, error) { return dialLibvirt(ctx, env.Config.Libvirt.Socket) },
	}, env.Log)
}

// checkHost refuses a configuration that this host can't follow, and logs what is not well with it.
func checkHost(env *Env) error {
	for _, p := range append(env.Settings.Problems(), env.Settings.CheckHost()...) {
		if !p.Warning {
			return exitError{fmt.Errorf("%s; see `virt-cow config check`", p), exitUsage}
		}
		env.Log.Warn().Msg(p.String())
	}
	return nil
}
