package hook

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

const (
	// restartGrace is how long a daemon that is not there is waited for: it may be on its way up again.
	restartGrace = 5 * time.Second
	// retryEvery is how often it is looked for meanwhile.
	retryEvery = 250 * time.Millisecond
	// engineTimeout bounds one question to an engine.
	engineTimeout = 5 * time.Second
)

// prepare has the daemon serve the volumes, and returns nil once they are. What the daemon refuses is vetoed. Where it
// gives no answer at all, the guest may start if its volumes are served anyhow: its disks don't need the daemon.
func (c Config) prepare(ctx context.Context, call Call, dom libvirtx.Domain, volumes []string) error {
	request := api.PrepareRequest{Domain: dom.Name, UUID: dom.UUID.String(), Operation: call.Operation, Volumes: volumes}
	daemon := api.NewDaemon(c.RunDir)
	patience := c.Timeout - min(engineTimeout, c.Timeout/4) // the rest is for asking the engines
	asking, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for graceEnds := time.Now().Add(min(restartGrace, c.Timeout/4)); ; {
		err := daemon.Prepare(asking, request)
		var refused *api.RemoteError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &refused):
			return veto("domain %s: %w", dom.Name, err)
		case errors.Is(ctx.Err(), context.Canceled):
			return veto("domain %s: interrupted while waiting for the virt-cow daemon", dom.Name)
		}
		unserved := c.unserved(ctx, dom, volumes)
		if unserved == nil {
			c.Log.Warn().Err(err).Str("domain", dom.Name).Strs("volumes", volumes).
				Msg("let through without the daemon: the volumes are served")
			return nil
		}
		if asking.Err() != nil || errors.Is(err, fs.ErrPermission) || time.Now().After(graceEnds) {
			return veto("domain %s needs %s: %w; %w", dom.Name, strings.Join(volumes, ", "), explain(err, patience), unserved)
		}
		select {
		case <-asking.Done():
		case <-time.After(retryEvery):
		}
	}
}

// explain adds to why the daemon did not answer what to do about it.
func explain(err error, patience time.Duration) error {
	switch {
	case errors.Is(err, api.ErrNotRunning): // says so itself
		return err
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: the hook runs as libvirtd does: see that AppArmor or SELinux lets it use the socket (docs/HOOKS.md)", err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the virt-cow daemon gave no answer within %s: see `journalctl -u virt-cow`; if it is at work, as while it fences a host, "+
			"it goes on: try again then; if it hangs `systemctl restart virt-cow` (no guest notices): %w", patience, err)
	}
	return fmt.Errorf("the virt-cow daemon gave no proper answer: see `journalctl -u virt-cow`, then `systemctl restart virt-cow` "+
		"(no guest notices): %w", err)
}

// unserved says which volume no engine has ready for this domain, nil if all are.
func (c Config) unserved(ctx context.Context, dom libvirtx.Domain, volumes []string) error {
	for _, v := range volumes {
		if err := c.served(ctx, dom, v); err != nil {
			return fmt.Errorf("volume %s is not ready without it: %w", v, err)
		}
	}
	return nil
}

func (c Config) served(ctx context.Context, dom libvirtx.Domain, volume string) error {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	s, err := api.NewEngine(api.ControlPath(filepath.Join(c.RunDir, volume+".sock"))).Status(ctx)
	switch {
	case err != nil:
		return err
	case s.Volume != volume:
		return fmt.Errorf("the engine at its place serves volume %q", s.Volume)
	case s.Error != "":
		return fmt.Errorf("its engine fails: %s", s.Error)
	case s.Handover != nil && s.Handover.State == "given":
		return fmt.Errorf("its engine has handed it over to %s", s.Handover.Peer)
	case s.Client != nil && s.Client.UUID != dom.UUID.String():
		return fmt.Errorf("its engine serves domain %s", s.Client.Domain)
	case s.Connections > 0:
		return fmt.Errorf("its engine has a client already")
	}
	return nil
}
