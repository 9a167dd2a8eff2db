//go:build libvirt_cgo

package cgo

import (
	"context"

	"libvirt.org/go/libvirt"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

func (r *conn) Freeze(ctx context.Context, x libvirtx.Domain) (int, error) {
	return libvirtx.Freeze(ctx, x, r.agent)
}

func (r *conn) Thaw(ctx context.Context, x libvirtx.Domain) (int, error) {
	return libvirtx.Thaw(ctx, x, r.agent)
}

func (r *conn) Frozen(ctx context.Context, x libvirtx.Domain) (bool, error) {
	return libvirtx.Frozen(ctx, x, r.agent)
}

// agent needs libvirt-qemu.so beside libvirt.so; distributions have both in one package.
func (r *conn) agent(ctx context.Context, x libvirtx.Domain, command string, seconds int) (string, error) {
	return on(ctx, r, "guest agent of", x, func(d *libvirt.Domain) (string, error) {
		return d.QemuAgentCommand(command, libvirt.DomainQemuAgentCommandTimeout(seconds), 0)
	})
}
