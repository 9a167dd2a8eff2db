package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/engine"
	"github.com/virt-cow/virt-cow/internal/serve"
)

// ServeCmd is one engine process.
type ServeCmd struct {
	Store      string        `arg:"" optional:"" help:"Store: a file or block device." type:"path"`
	Spec       string        `help:"File with what to serve, as the daemon writes it, instead of a store and the flags that say how." type:"path" placeholder:"FILE"`
	Socket     string        `help:"Unix socket to serve NBD on." type:"path" placeholder:"PATH"`
	Control    string        `help:"Unix socket of the control API; beside the NBD socket by default." type:"path" placeholder:"PATH"`
	Group      string        `help:"Group that may use the NBD socket, QEMU's for one: its name or number." placeholder:"GROUP"`
	Name       string        `help:"Refuse a store that holds another volume." placeholder:"VOLUME"`
	Hydrate    bool          `help:"Copy from the master in the background and cut the clone loose."`
	Rate       Size          `help:"Limit of the background copy, bytes a second." placeholder:"SIZE"`
	ReadOnly   bool          `help:"Serve for reading only."`
	CacheOff   bool          `help:"Keep the exception cache off: every new flag is on the store before its write is acknowledged."`
	Incoming   string        `help:"Open a volume that another host owns, by this grant (UUID) of its owner; see docs/MIGRATION.md." placeholder:"GRANT"`
	Address    string        `help:"Where this host's daemon answers other hosts: goes into the store's header." placeholder:"ADDRESS"`
	AcceptLoss bool          `help:"Go on although acknowledged data may have been lost."`
	HostUUID   string        `help:"This host's UUID instead of its machine id." key:"engine.host_uuid" placeholder:"UUID"`
	LockWait   time.Duration `help:"How long to wait for an engine that was killed to let go of the store." default:"10s" placeholder:"TIME"`
}

// config is what was asked for.
func (s *ServeCmd) config() (serve.Config, error) {
	if s.Spec != "" {
		if s.Store != "" || s.Socket != "" || s.Control != "" || s.Group != "" || s.Name != "" || s.Hydrate || s.Rate != 0 || s.ReadOnly || s.CacheOff ||
			s.Incoming != "" || s.Address != "" {
			return serve.Config{}, exitError{errors.New("--spec says all of what to serve and how: give no store, and none of --socket, " +
				"--control, --group, --name, --hydrate, --rate, --read-only, --cache-off, --incoming and --address"), exitUsage}
		}
		return serve.LoadSpec(s.Spec)
	}
	if _, err := uuid.Parse(s.Incoming); s.Incoming != "" && err != nil {
		return serve.Config{}, exitError{fmt.Errorf("--incoming %q: %w", s.Incoming, err), exitUsage}
	}
	if s.Store == "" || s.Socket == "" {
		return serve.Config{}, exitError{errors.New("say what to serve: a store and --socket, or --spec"), exitUsage}
	}
	return serve.Config{
		Store: s.Store, Name: s.Name, Socket: s.Socket, Control: s.Control, Group: s.Group, Hydrate: s.Hydrate,
		Rate: int64(s.Rate), ReadOnly: s.ReadOnly, CacheOff: s.CacheOff, Incoming: s.Incoming, Address: s.Address,
	}, nil
}

// Run serves until SIGTERM or SIGINT.
func (s *ServeCmd) Run(env *Env) error {
	if s.HostUUID = env.Config.Engine.HostUUID; s.HostUUID != "" {
		if _, err := uuid.Parse(s.HostUUID); err != nil {
			return exitError{fmt.Errorf("host UUID %q: %w", s.HostUUID, err), exitUsage}
		}
	}
	config, err := s.config()
	if err != nil {
		return err
	}
	config.RunDir, config.HostUUID, config.Version = env.RunDir, s.HostUUID, version
	config.LockWait, config.AcceptLoss = s.LockWait, s.AcceptLoss
	ctx, cancel := context.WithCancel(env.Context)
	defer cancel()
	var showing sync.WaitGroup
	err = serve.Run(ctx, config, env.Log, func(v *engine.Volume) {
		if s.Hydrate && !env.JSON {
			showing.Go(func() { showHydration(ctx, env.Stderr, v) })
		}
	})
	cancel()
	showing.Wait()
	if err != nil { // for systemctl status, and for the daemon, which can't read the journal
		_, _ = daemon.SdNotify(false, "STATUS="+strings.ReplaceAll(err.Error(), "\n", ": "))
	}
	return err
}
