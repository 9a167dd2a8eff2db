//go:build !virtcow_lean

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	sddaemon "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/archive"
	"github.com/virt-cow/virt-cow/internal/backup"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/config"
	"github.com/virt-cow/virt-cow/internal/metrics"
	"github.com/virt-cow/virt-cow/internal/peer"
)

// Run runs until SIGTERM. Jobs that are not done are gone on with by the next one.
func (c *ImageNodeCmd) Run(env *Env) error {
	if err := checkHost(env); err != nil {
		return err
	}
	conf := env.Config
	where, err := archiveConfig(env)
	if err != nil {
		return err
	}
	hosts, err := peer.ParseHosts(conf.ImageNode.Hosts)
	if err != nil {
		return exitError{fmt.Errorf("[image_node]: %w", err), exitUsage}
	}
	rate := int64(0)
	if conf.ImageNode.Rate != "" {
		if rate, err = parseSize(conf.ImageNode.Rate); err != nil {
			return exitError{fmt.Errorf("[image_node] rate: %w", err), exitUsage}
		}
	}
	state := filepath.Join(conf.StateDir, "image-node")
	lock, err := lockNode(env.Context, state, conf.RunDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	log := env.Log.With().Str("part", "other hosts").Logger()
	id := peer.NewIdentity(conf.Migration.Files(), log)
	node, err := backup.Open(backup.Config{
		StateDir: state, Version: version, Archive: backup.OpenArchive(where), Peers: &peer.Client{Identity: id}, Identity: id,
		Sources: backup.NewSources(nodePlaces(conf), env.Log),
		Jobs:    conf.ImageNode.Jobs, Readers: conf.ImageNode.Readers, Rate: rate, Patience: time.Duration(conf.ImageNode.Patience), Log: env.Log,
	})
	if err != nil {
		return err
	}
	shown := metrics.NodeHandler(func(ctx context.Context) *api.NodeStatus {
		s, err := node.Status(ctx, struct{}{})
		if err != nil {
			return nil
		}
		return &s
	})
	g, ctx := errgroup.WithContext(env.Context)
	if len(hosts) == 0 {
		log.Warn().Msg(`no host may ask: add those whose guests are backed up to hosts in [image_node] of the configuration, such as hosts = ["*.hv.example.com"]`)
	} else {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", conf.ImageNode.Listen)
		if err != nil {
			return fmt.Errorf("listen for hosts: %w: change listen in [image_node] of the configuration", err)
		}
		server := peer.Server{Identity: id, Hosts: hosts, Section: "image_node", Handler: node.Handler(), MaxBody: backup.MaxBody, Log: log}
		g.Go(func() error { return server.Serve(ctx, l) })
	}
	g.Go(func() error { return node.ServeLocal(ctx, conf.RunDir, shown) })
	if address := conf.ImageNode.Metrics; address != "" {
		g.Go(func() error {
			if err := metrics.Serve(ctx, address, shown, env.Log); err != nil && ctx.Err() == nil {
				env.Log.Error().Err(err).Str("address", address).Msg("no metrics over TCP")
			}
			return nil
		})
	}
	g.Go(func() error {
		node.Run(ctx)
		return nil
	})
	_, _ = sddaemon.SdNotify(false, sddaemon.SdNotifyReady) // false without systemd
	return g.Wait()
}

// lockNode makes the folders, and makes sure that no other image node has them.
func lockNode(ctx context.Context, state, run string) (*os.File, error) {
	for dir, mode := range map[string]os.FileMode{state: 0o700, run: 0o755} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(filepath.Join(state, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second) // one that was killed may still be ending
	defer cancel()
	if err := blockdev.Flock(ctx, f, blockdev.LockExclusive); err != nil {
		return nil, errors.Join(fmt.Errorf("another image node runs: %w", err), f.Close())
	}
	return f, nil
}

// archiveConfig is where backups are: exit code 2 where the configuration does not say.
func archiveConfig(env *Env) (archive.Config, error) {
	a := env.Config.Archive
	if a.URI == "" {
		return archive.Config{}, exitError{errors.New("no archive: set uri in [archive] of the configuration: the image node needs it, and whatever host guests are restored on"), exitUsage}
	}
	return archive.Config{
		URI: a.URI, PassphraseFile: a.PassphraseFile, CredentialsFile: a.CredentialsFile, Folder: a.Cache, Log: env.Log,
	}, nil
}

// openArchive opens it for one command.
func openArchive(env *Env) (*archive.Archive, error) {
	c, err := archiveConfig(env)
	if err != nil {
		return nil, err
	}
	return archive.Open(env.Context, c)
}

// lookTimeout is how long one disk may take to be looked at, when a store is looked for.
const lookTimeout = 5 * time.Second

// nodePlaces are where disks may be. Looking at them is done by workers, as a disk that hangs must not hang the node.
func nodePlaces(c config.Config) backup.Places {
	return backup.Places{
		Folders: c.ImageNode.Folders, Devices: c.ImageNode.Devices,
		Scan: func(ctx context.Context, paths []string) ([]backup.Found, error) {
			answers, err := lookAt(ctx, paths, lookTimeout)
			if err != nil {
				return nil, err
			}
			stores, _ := gather(answers)
			var found []backup.Found
			for _, s := range stores {
				if s.Error == "" {
					found = append(found, backup.Found{UUID: s.UUID, Paths: s.Paths})
				}
			}
			return found, nil
		},
	}
}
