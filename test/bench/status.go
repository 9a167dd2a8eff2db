package main

import (
	"context"

	"github.com/virt-cow/virt-cow/internal/api"
)

// engineStatus asks a virt-cow engine how it is.
func engineStatus(ctx context.Context, socket string) (*api.EngineStatus, error) {
	return api.NewEngine(api.ControlPath(socket)).Status(ctx)
}
