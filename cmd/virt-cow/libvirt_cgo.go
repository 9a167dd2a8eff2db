//go:build libvirt_cgo

package main

import (
	"context"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/libvirtx/cgo"
)

// dialLibvirt connects to libvirt at the path of its socket, "" for this host's, or at a URI, with libvirt's library.
func dialLibvirt(ctx context.Context, address string) (libvirtx.Conn, error) {
	return cgo.Dial(ctx, address)
}
