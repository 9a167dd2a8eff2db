package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/engine"
	"github.com/virt-cow/virt-cow/internal/serve"
)

// ServeCmd is one engine process.
type ServeCmd struct {
	Store      string        `arg:"" help:"Store: a file or block device." type:"path"`
	Socket     string        `required:"" help:"Unix socket to serve NBD on." type:"path" placeholder:"PATH"`
	Control    string        `help:"Unix socket of the control API; beside the NBD socket by default." type:"path" placeholder:"PATH"`
	Name       string        `help:"Refuse a store that holds another volume." placeholder:"VOLUME"`
	Hydrate    bool          `help:"Copy from the master in the background and cut the clone loose."`
	Rate       Size          `help:"Limit of the background copy, bytes a second." placeholder:"SIZE"`
	ReadOnly   bool          `help:"Serve for reading only."`
	CacheOff   bool          `help:"Keep the exception cache off: every new flag is on the store before its write is acknowledged."`
	AcceptLoss bool          `help:"Go on although acknowledged data may have been lost."`
	HostUUID   string        `help:"This host's UUID instead of its machine id." key:"engine.host_uuid" placeholder:"UUID"`
	LockWait   time.Duration `help:"How long to wait for an engine that was killed to let go of the store." default:"10s" placeholder:"TIME"`
}

// Run serves until SIGTERM or SIGINT.
func (s *ServeCmd) Run(env *Env) error {
	if s.HostUUID = env.Config.Engine.HostUUID; s.HostUUID != "" {
		if _, err := uuid.Parse(s.HostUUID); err != nil {
			return exitError{fmt.Errorf("host UUID %q: %w", s.HostUUID, err), exitUsage}
		}
	}
	ctx, cancel := context.WithCancel(env.Context)
	defer cancel()
	var showing sync.WaitGroup
	err := serve.Run(ctx, serve.Config{
		Store: s.Store, Name: s.Name, Socket: s.Socket, Control: s.Control, RunDir: env.RunDir, HostUUID: s.HostUUID,
		Version: version, LockWait: s.LockWait, Hydrate: s.Hydrate, Rate: int64(s.Rate), ReadOnly: s.ReadOnly,
		AcceptLoss: s.AcceptLoss, CacheOff: s.CacheOff,
	}, env.Log, func(v *engine.Volume) {
		if s.Hydrate && !env.JSON {
			showing.Go(func() { showHydration(ctx, env.Stderr, v) })
		}
	})
	cancel()
	showing.Wait()
	return err
}
