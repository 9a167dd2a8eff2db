package daemon

import (
	"context"
	"fmt"
	"net/http"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cut"
	"github.com/virt-cow/virt-cow/internal/peer"
)

// nodePaths is what the image node is answered.
func (d *Daemon) nodePaths(mux *http.ServeMux) {
	mux.HandleFunc("POST "+api.PathPeerAttest, call(ofNode(d, d.attest)))
	mux.HandleFunc("POST "+api.PathPeerCursor, call(ofNode(d, d.cursor)))
	mux.HandleFunc("POST "+api.PathPeerSnapshotRemove, call(ofNode(d, d.removeSnapshot)))
	mux.HandleFunc("POST "+api.PathPeerOwner, call(ofNode(d, d.standing)))
	mux.HandleFunc("POST "+api.PathPeerPull, call(ofNode(d, d.pull)))
	mux.HandleFunc("POST "+api.PathPeerPullLook, call(ofNode(d, d.pullLook)))
}

// ofNode refuses anybody but the image node, and names that are none.
func ofNode[In interface{ Of() api.PeerSnapshot }, Out any](d *Daemon, f func(context.Context, In) (Out, error)) func(context.Context, In) (Out, error) {
	return func(ctx context.Context, r In) (none Out, err error) {
		if err := d.mayAsk(ctx, r.Of()); err != nil {
			return none, err
		}
		return f(ctx, r)
	}
}

func (d *Daemon) mayAsk(ctx context.Context, r api.PeerSnapshot) error {
	if !d.isNode(ctx) {
		return fmt.Errorf("%w: its certificate is of %s, and the image node here is %q: see [backup] in the configuration",
			errNotYours, peer.From(ctx), d.config.Backup.Node)
	}
	for _, id := range []string{r.Volume, r.Snapshot, r.Cut} {
		if !api.IsUUID(id) {
			return bad("snapshot: %q is no UUID", id)
		}
	}
	return nil
}

// isNode says whether the configured image node asks.
func (d *Daemon) isNode(ctx context.Context) bool {
	if d.config.Backup.Node == "" {
		return false
	}
	host, _, err := peer.ParseAddress(d.config.Backup.Node, peer.DefaultNodePort)
	return err == nil && peer.From(ctx).Match(host)
}

// hostsOnly keeps the image node from what is for hosts, unless it is one.
func (d *Daemon) hostsOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d.isNode(r.Context()) && !d.isHost(r.Context()) {
			answer(w, nil, fmt.Errorf("%w: the image node may ask about snapshots only", errNotYours))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (d *Daemon) isHost(ctx context.Context) bool {
	for _, h := range d.config.Backup.Hosts {
		if h.Has(peer.From(ctx)) {
			return true
		}
	}
	return false
}

// attest is this host's word for a snapshot. That it is broken is said only where that is certain.
func (d *Daemon) attest(ctx context.Context, r api.PeerSnapshot) (*api.PeerAttestAnswer, error) {
	v := d.volumeWithUUID(r.Volume)
	if v == nil {
		return &api.PeerAttestAnswer{Why: "no engine serves the volume here"}, nil
	}
	s, err := d.engineStatus(ctx, v)
	if err != nil {
		return &api.PeerAttestAnswer{Why: err.Error()}, nil
	}
	if s.Lost || s.ReadOnly {
		return &api.PeerAttestAnswer{Epoch: s.Epoch, Why: "another host has taken the volume over, or it is read-only here"}, nil
	}
	a := &api.PeerAttestAnswer{Epoch: s.Epoch, Open: true}
	entry := cut.Entry(s, r.Snapshot)
	if entry != nil {
		a.Saved = entry.Saved * entry.ChunkSize
	}
	switch {
	case entry == nil:
		a.Why = "the volume does not have it any more"
	case entry.Cut != r.Cut:
		a.Why = "it is of cut " + entry.Cut
	case entry.State != api.SnapshotActive:
		a.Why = "it is " + entry.State + ": " + entry.Error
	default:
		a.Unbroken = true
	}
	return a, nil
}

// cursor passes on how much of a snapshot is in the archive.
func (d *Daemon) cursor(ctx context.Context, r api.PeerSnapshot) (*struct{}, error) {
	v := d.volumeWithUUID(r.Volume)
	if v == nil {
		return nil, errNoVolume(r.Volume)
	}
	e, err := d.engineOf(v)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, grantTimeout)
	defer cancel()
	_, err = e.client.SnapshotCursor(ctx, api.SnapshotCursorRequest{UUID: r.Snapshot, Cursor: r.Cursor})
	return &struct{}{}, err
}

// removeSnapshot takes a snapshot away whose job has ended.
func (d *Daemon) removeSnapshot(ctx context.Context, r api.PeerSnapshot) (*struct{}, error) {
	if err := d.cutter.Remove(ctx, r.Volume, r.Snapshot); err != nil {
		return nil, err
	}
	d.log.Info().Str("volume", r.Volume).Str("snapshot", r.Snapshot).Str("job", r.Job).Msg("snapshot removed, its job has ended")
	d.lookAtSnapshots()
	return &struct{}{}, nil
}
