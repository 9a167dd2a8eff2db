package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/virt-cow/virt-cow/internal/api"
)

// engineStatus asks a virt-cow engine how it is, on the control socket beside its NBD socket.
func engineStatus(ctx context.Context, socket string) (*api.EngineStatus, error) {
	ctl := strings.TrimSuffix(socket, ".sock") + ".ctl"
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", ctl)
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://engine"+api.PathEngineStatus, nil)
	if err != nil {
		return nil, err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("engine status: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("engine status on %s: %s", ctl, resp.Status)
	}
	var st api.EngineStatus
	if err := json.NewDecoder(resp.Body).Decode(&st); err != nil {
		return nil, fmt.Errorf("engine status on %s: %w", ctl, err)
	}
	return &st, nil
}
