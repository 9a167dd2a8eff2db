package main

import (
	"context"
	"fmt"
	"io"
	stdlog "log"
	"log/syslog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/config"
	"github.com/virt-cow/virt-cow/internal/hook"
)

// HookCmd is for libvirt's hook script, hooks/qemu, with that script's arguments.
type HookCmd struct {
	Domain    string   `arg:"" help:"Name of the domain whose XML is on standard input."`
	Operation string   `arg:"" help:"As libvirt names it: prepare, started, release, …"`
	Phase     string   `arg:"" help:"begin or end."`
	Extra     []string `arg:"" optional:"" help:"Not looked at."`
}

// Run ends with an error if libvirt must not go on.
func (c *HookCmd) Run(env *Env) error {
	return runHook(env.Context, hook.Call{Domain: c.Domain, Operation: c.Operation, Phase: c.Phase}, env.RunDir, env.Stderr)
}

// calledAsHook runs the hook and returns true if that is what the arguments say. It comes before all else: a domain may
// have any name, --help too, and no guest must wait, or even fail to start, for flags and configuration it has no use for.
func calledAsHook(args []string, stderr io.Writer) (code int, is bool) {
	if len(args) < 4 || args[0] != "hook" {
		return 0, false
	}
	stdlog.SetOutput(io.Discard) // net/http's word on a daemon that is broken: the hook says it in one line
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer stop()
	if err := runHook(ctx, hook.Call{Domain: args[1], Operation: args[2], Phase: args[3]}, "", stderr); err != nil {
		fmt.Fprintf(stderr, "virt-cow: %v\n", err)
		return exitFailed, true
	}
	return exitOK, true
}

func runHook(ctx context.Context, call hook.Call, runDir string, stderr io.Writer) error {
	log := zerolog.New(io.MultiWriter(stderr, &systemLog{})).Level(zerolog.WarnLevel)
	c, err := config.Load("")
	if err != nil { // what can't be used has its default
		log.Warn().Err(err).Msg("configuration")
	}
	if runDir != "" {
		c.RunDir = runDir
	}
	return hook.Run(ctx, hook.Config{RunDir: c.RunDir, Timeout: time.Duration(c.Hook.Timeout), Log: log}, call, os.Stdin)
}

// systemLog writes to syslog, if there is one: libvirt shows a hook's standard error only when the hook fails.
type systemLog struct{ w *syslog.Writer }

func (l *systemLog) Write(p []byte) (int, error) {
	if l.w == nil {
		w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_WARNING, "virt-cow-hook")
		if err != nil {
			return len(p), nil
		}
		l.w = w
	}
	return io.WriteString(l.w, strings.TrimSpace(string(p)))
}
