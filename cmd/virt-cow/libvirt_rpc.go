//go:build !libvirt_cgo

package main

import (
	"context"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/libvirtx/rpc"
)

// dialLibvirt connects to libvirt at the path of its socket, "" for this host's, with the pure Go driver.
func dialLibvirt(ctx context.Context, address string) (libvirtx.Conn, error) {
	return rpc.Dial(ctx, address)
}
