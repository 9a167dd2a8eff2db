package rpc

import (
	"context"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

func (r *conn) Freeze(ctx context.Context, d libvirtx.Domain) (int, error) {
	return libvirtx.Freeze(ctx, d, r.agent)
}

func (r *conn) Thaw(ctx context.Context, d libvirtx.Domain) (int, error) {
	return libvirtx.Thaw(ctx, d, r.agent)
}

func (r *conn) Frozen(ctx context.Context, d libvirtx.Domain) (bool, error) {
	return libvirtx.Frozen(ctx, d, r.agent)
}

func (r *conn) agent(ctx context.Context, d libvirtx.Domain, command string, seconds int) (string, error) {
	return call(ctx, r, "guest agent of "+d.Name, func() (string, error) {
		answer, err := r.l.QEMUDomainAgentCommand(toDomain(d), command, int32(seconds), 0)
		if len(answer) == 0 {
			return "", err
		}
		return answer[0], err
	})
}
