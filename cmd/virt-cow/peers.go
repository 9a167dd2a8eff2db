package main

import (
	"context"
	"net/http"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/config"
	"github.com/virt-cow/virt-cow/internal/daemon"
	"github.com/virt-cow/virt-cow/internal/peer"
	"github.com/virt-cow/virt-cow/internal/serve"
)

// peers is how the daemon speaks with those of other hosts.
type peers struct {
	client  peer.Client
	server  peer.Server
	listen  string
	address string
	self    api.PeerHello
}

// newPeers is nil where other hosts are not to be spoken to.
func newPeers(c config.Config, log zerolog.Logger) (daemon.Peers, error) {
	m := c.Migration
	if m.Listen == "" {
		return nil, nil
	}
	owner, err := serve.Host(c.Engine.HostUUID)
	if err != nil {
		return nil, err
	}
	address, err := peer.OwnAddress(m.Address, m.Listen, owner.HostName)
	if err != nil {
		return nil, err
	}
	hosts, err := peer.ParseHosts(m.Hosts)
	if err != nil {
		return nil, err
	}
	if c.Backup.Node != "" { // the daemon answers it about snapshots only
		name, _, err := peer.ParseAddress(c.Backup.Node, peer.DefaultNodePort)
		if err != nil {
			return nil, err
		}
		node, err := peer.ParseHost(name)
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, node)
	}
	log = log.With().Str("part", "other hosts").Logger()
	id := peer.NewIdentity(peer.Files{CA: m.CA, Cert: m.Cert, Key: m.Key}, log)
	return &peers{
		client: peer.Client{Identity: id}, server: peer.Server{Identity: id, Hosts: hosts, Log: log},
		listen: m.Listen, address: address,
		self: api.PeerHello{Host: owner.Host.String(), Boot: owner.Boot.String(), HostName: owner.HostName, Version: version},
	}, nil
}

// Self implements daemon.Peers.
func (p *peers) Self() api.PeerHello { return p.self }

// Address implements daemon.Peers.
func (p *peers) Address() string { return p.address }

// Call implements daemon.Peers.
func (p *peers) Call(ctx context.Context, address, path string, in, out any) error {
	return p.client.Call(ctx, address, path, in, out)
}

// Serve implements daemon.Peers.
func (p *peers) Serve(ctx context.Context, h http.Handler) error {
	p.server.Handler = h
	return p.server.ListenAndServe(ctx, p.listen)
}
