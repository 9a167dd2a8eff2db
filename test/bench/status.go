package main

import (
	"context"
	"strings"

	"github.com/virt-cow/virt-cow/internal/api"
)

// controlOf is the control socket beside an engine's NBD socket.
func controlOf(socket string) string { return strings.TrimSuffix(socket, ".sock") + ".ctl" }

// engineStatus asks a virt-cow engine how it is.
func engineStatus(ctx context.Context, socket string) (*api.EngineStatus, error) {
	return api.NewEngine(controlOf(socket)).Status(ctx)
}
