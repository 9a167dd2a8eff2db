package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/virt-cow/virt-cow/internal/daemon"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// DaemonCmd is the control daemon.
type DaemonCmd struct {
	Libvirt string `help:"Socket of libvirt; /run/libvirt/libvirt-sock by default, or virtqemud-sock beside it." env:"VIRT_COW_LIBVIRT" placeholder:"PATH"`
	LogDir  string `help:"Logs of the engines." type:"path" default:"/var/log/virt-cow" env:"VIRT_COW_LOG_DIR" placeholder:"DIR"`
	Program string `help:"Program to run for the engines; this one by default." type:"path" env:"VIRT_COW_PROGRAM" placeholder:"PATH"`
}

// Run runs until SIGTERM. Guests and their engines go on; the next daemon finds them.
func (c *DaemonCmd) Run(env *Env) error {
	if c.Program == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		c.Program = self
	}
	runDir, err := filepath.Abs(env.RunDir)
	if err != nil {
		return err
	}
	if _, err := os.Stat(c.Program); err != nil {
		return exitError{fmt.Errorf("--program: %w", err), exitUsage}
	}
	return daemon.Run(env.Context, daemon.Config{
		RunDir: runDir, LogDir: c.LogDir, Program: c.Program, Version: version,
		Dial: func(ctx context.Context) (libvirtx.Conn, error) { return dialLibvirt(ctx, c.Libvirt) },
	}, env.Log)
}
