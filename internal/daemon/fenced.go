package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
)

// A proof of death is about one ownership: this store, owned by this engine of that host in this epoch. So a host that comes back
// and opens a volume anew is never taken for dead because it once was, and no clock is needed.

// Who may prove that a host is dead.
const (
	byOperator = "operator"
	byFence    = "fence command"
)

func (d *Daemon) proofPath(id string) string {
	return filepath.Join(d.config.Inventory.StateDir, "fenced", id+".json")
}

// prove records a proof, durably.
func (d *Daemon) prove(name, id string, owner *api.Owner, epoch uint32, by string) error {
	if _, err := uuid.Parse(id); err != nil {
		return fmt.Errorf("volume %s: UUID %q: %w", name, id, err)
	}
	p := api.DeadOwner{Host: owner.Host, Instance: owner.Instance, Epoch: epoch, By: by}
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	path := d.proofPath(id)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		d.log.Warn().Str("volume", name).Str("host", owner.HostName).Uint32("epoch", epoch).Str("by", by).
			Msg("the owner is proven dead: the volume may be taken over")
	}
	return err
}

// proven says whether there is a proof that this owner is dead, and has the volume's next engine know of it. A proof of another
// ownership is of no use any more.
func (d *Daemon) proven(v *volume, owner *api.Owner, epoch uint32) bool {
	d.mu.Lock()
	id := v.uuid
	d.mu.Unlock()
	b, err := os.ReadFile(d.proofPath(id))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			d.log.Error().Err(err).Str("volume", v.name).Msg("proof that its owner is dead")
		}
		return false
	}
	var p api.DeadOwner
	if err := json.Unmarshal(b, &p); err != nil || p.Host != owner.Host || p.Instance != owner.Instance || p.Epoch != epoch {
		_ = os.Remove(d.proofPath(id))
		return false
	}
	d.mu.Lock()
	v.dead = &p
	d.mu.Unlock()
	return true
}

// takenOver drops a proof that was used.
func (d *Daemon) takenOver(v *volume) {
	d.mu.Lock()
	p, id := v.dead, v.uuid
	v.dead = nil
	d.mu.Unlock()
	if p == nil {
		return
	}
	d.counters.takeovers.Add(1)
	if err := os.Remove(d.proofPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Error().Err(err).Str("volume", v.name).Msg("proof that was used")
	}
	d.noteIfServed(v)
}

var errNoFence = errors.New("no fence command")

// fenced is a boot of a host that the fence command made sure is dead.
type fenced struct {
	host, boot string
	at         time.Time // when that was certain
}

// fence has a site's own command see to it that a host is dead, which was silent at that time. Only its exit code 0 is a proof, for
// all that wait for this host: once more, and it would end what the host has begun anew.
func (d *Daemon) fence(ctx context.Context, owner *api.Owner, silent time.Time) error {
	command := d.config.FenceCommand
	if command == "" {
		return errNoFence
	}
	d.fencing.Lock() // one at a time: two volumes of one host need not cut its power twice at once
	defer d.fencing.Unlock()
	if last := d.fenced; last.host == owner.Host && last.boot == owner.Boot && last.at.After(silent) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, d.config.FenceTimeout)
	defer cancel()
	d.log.Warn().Str("host", owner.HostName).Str("command", command).Msg("fencing a host that does not answer")
	cmd := exec.CommandContext(ctx, command, owner.HostName, owner.Host, owner.Address)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		last := bytes.TrimSpace(out)
		last = last[max(0, len(last)-300):]
		return fmt.Errorf("fence command %s: %w: %s", command, err, last)
	}
	d.fenced = fenced{owner.Host, owner.Boot, time.Now()}
	return nil
}

// proveByFence tries to have the owner of a volume that a guest waits for here proven dead. An engine that has just taken the volume
// over waits a moment before it says so: the owner is this host then.
func (d *Daemon) proveByFence(v *volume, s *api.EngineStatus) {
	if d.config.FenceCommand == "" || s.Owner == nil || s.Owner.Host == d.config.Peers.Self().Host {
		return
	}
	d.mu.Lock()
	soon := time.Since(v.fencedAt) < fenceAgain || v.incoming == nil || v.incoming.silent.IsZero() || time.Since(v.incoming.silent) < fenceAfter
	if !soon {
		v.fencedAt = time.Now()
	}
	d.mu.Unlock()
	if soon {
		return
	}
	if err := d.fence(d.root, s.Owner, time.Now()); err != nil {
		d.log.Error().Err(err).Str("volume", v.name).Msg("its owner does not answer")
		return
	}
	if err := d.tellDead(d.root, v, s, s.Owner.Host, byFence); err != nil {
		d.log.Error().Err(err).Str("volume", v.name).Msg("proof that its owner is dead")
	}
}

// How long an owner that a guest waits for does not answer before it is fenced, and how long until the next attempt.
const (
	fenceAfter = 15 * time.Second
	fenceAgain = time.Minute
)

// noteSilent takes note of whether the owner of a volume that a guest waits for has answered a question of that time.
func (d *Daemon) noteSilent(v *volume, asked time.Time, silent bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	in := v.incoming
	switch {
	case in == nil:
	case !silent:
		in.silent = time.Time{}
	case in.silent.IsZero():
		in.silent = asked
	}
}

// tellDead gives a volume's engine the proof that a host is dead: the volume's owner, or one that it is granted to.
func (d *Daemon) tellDead(ctx context.Context, v *volume, s *api.EngineStatus, host, by string) error {
	e, err := d.engineOf(v)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, grantTimeout)
	defer cancel()
	if s.Owner != nil && s.Owner.Host == host {
		_, err := e.client.Dead(ctx, api.DeadOwner{Host: host, Instance: s.Owner.Instance, Epoch: s.Epoch, By: by})
		if err == nil {
			d.counters.takeovers.Add(1)
		}
		return err
	}
	var errs []error
	for _, g := range s.Grants {
		if g.Host == host {
			errs = append(errs, d.endGrant(ctx, v, g.ID, api.GrantFenced))
		}
	}
	return errors.Join(errs...)
}

// Fenced takes the operator's word that a host is dead, for what it owns or was granted now.
func (d *Daemon) Fenced(ctx context.Context, r api.FencedRequest) (*api.FencedReport, error) {
	if d.config.Peers == nil {
		return nil, bad("there are no other hosts: [migration] listen is empty in the configuration")
	}
	self := d.config.Peers.Self()
	if r.Host == "" || r.Host == self.Host || r.Host == self.HostName {
		return nil, bad("host %q: this is the host that is asked; give the name or UUID of the one that is dead", r.Host)
	}
	report := &api.FencedReport{Volumes: []api.FencedVolume{}, Unread: []api.FencedVolume{}}
	named := func(host, name string) error {
		switch {
		case host != r.Host && name != r.Host:
			return nil
		case host == self.Host: // under a name that it had before
			return bad("host %q: this host was called that: give the UUID of the one that is dead", r.Host)
		case report.Host != "" && report.Host != host:
			return bad("host %s: two hosts have that name, %s and %s: give the UUID", r.Host, report.Host, host)
		}
		report.Host, report.HostName = host, name
		return nil
	}
	for _, info := range d.inventory.List() {
		h, err := d.inventory.Header(ctx, info.Store)
		if err != nil {
			report.Unread = append(report.Unread, api.FencedVolume{Volume: info.Name, Error: err.Error()})
			continue
		}
		if h.Owner != nil {
			err = named(h.Owner.Host, h.Owner.HostName)
		}
		for _, g := range h.Grants {
			err = errors.Join(err, named(g.Host, g.HostName))
		}
		if err != nil {
			return nil, err
		}
	}
	if report.Host == "" {
		return report, nil
	}
	for _, info := range d.inventory.List() {
		if f := d.fenceVolume(ctx, info, report.Host); f != nil {
			report.Volumes = append(report.Volumes, *f)
		}
	}
	return report, nil
}

// fenceVolume has the operator's word count for one volume, nil if the host has nothing to do with it.
func (d *Daemon) fenceVolume(ctx context.Context, info api.VolumeInfo, host string) *api.FencedVolume {
	h, err := d.inventory.Header(ctx, info.Store)
	if err != nil {
		return nil // it is among the unread
	}
	owns := h.Owner != nil && h.Owner.Host == host
	granted := slices.ContainsFunc(h.Grants, func(g api.Grant) bool { return g.Host == host })
	if !owns && !granted {
		return nil
	}
	f := &api.FencedVolume{Volume: info.Name, Epoch: h.Epoch, Grant: !owns}
	if owns {
		err = d.prove(info.Name, h.UUID, h.Owner, h.Epoch, byOperator)
	}
	// A guest may be waiting for it here.
	if v := d.volumeWithUUID(h.UUID); v != nil && err == nil {
		if s, serr := d.engineStatus(ctx, v); serr == nil {
			err = d.tellDead(ctx, v, s, host, byOperator)
		}
		d.pokeOwner(v.name)
	}
	if err != nil {
		f.Error = err.Error()
	}
	return f
}
