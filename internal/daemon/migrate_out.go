package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/peer"
)

// outgoing is what is known of a volume that another host was granted.
type outgoing struct {
	grant     api.Grant
	migration string
	since     time.Time
	leaving   bool // the domain was seen to be migrated
}

// Peers is how the daemons of other hosts are spoken to. The program makes one of a peer.Client and
// a peer.Server.
type Peers interface {
	Self() api.PeerHello
	Address() string // where other hosts reach this one's daemon
	Call(ctx context.Context, address, path string, in, out any) error
	Serve(ctx context.Context, h http.Handler) error
}

// peerHandler is what other hosts' daemons are answered.
func (d *Daemon) peerHandler() http.Handler {
	hosts, mux := http.NewServeMux(), http.NewServeMux()
	mux.Handle("/", d.hostsOnly(hosts))
	d.nodePaths(mux)
	d.hostPaths(hosts)
	return mux
}

// hostPaths is what hosts are answered.
func (d *Daemon) hostPaths(mux *http.ServeMux) {
	mux.HandleFunc("POST "+api.PathPeerGrant, call(d.peerGrant))
	mux.HandleFunc("POST "+api.PathPeerSeal, call(d.peerSeal))
	mux.HandleFunc("POST "+api.PathPeerClosed, call(d.peerClosed))
	mux.HandleFunc("POST "+api.PathPeerOpen, call(d.peerOpen))
	mux.HandleFunc("POST "+api.PathPeerRelease, call(d.peerRelease))
	mux.HandleFunc("POST "+api.PathPeerHello, call(func(context.Context, struct{}) (api.PeerHello, error) {
		return d.config.Peers.Self(), nil
	}))
}

// errNotYours says that a host asked for what is another one's.
var errNotYours = errors.New("not for this host to ask")

// asks makes sure that the host with this address is the one that asks.
func asks(ctx context.Context, address string) error {
	host, _, err := peer.ParseAddress(address, peer.DefaultPort)
	if names := peer.From(ctx); err != nil || !names.Match(host) {
		return fmt.Errorf("%w: its certificate is of %s, and this is about %s", errNotYours, names, address)
	}
	return nil
}

// asksReceiver makes sure that a host that speaks of a grant is the one that has it, as the engine knows it: an earlier daemon may
// have asked for it.
func (d *Daemon) asksReceiver(ctx context.Context, v *volume, grant string) error {
	d.mu.Lock()
	out := v.outgoing
	d.mu.Unlock()
	if out != nil && out.grant.ID == grant {
		return asks(ctx, out.grant.Address)
	}
	s, err := d.engineStatus(ctx, v)
	if err != nil {
		return err
	}
	for _, g := range s.Grants {
		if g.ID == grant {
			return asks(ctx, g.Address)
		}
	}
	return nil // there is no such grant, and nothing comes of it
}

// volumeWithUUID is the volume in use that has this UUID, nil if there is none.
func (d *Daemon) volumeWithUUID(id string) *volume {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, v := range d.volumes {
		if v.uuid == id {
			return v
		}
	}
	return nil
}

// volumeUnheard is the volume in use of this name, if no engine has said its UUID yet: it may be the one.
func (d *Daemon) volumeUnheard(name string) *volume {
	d.mu.Lock()
	defer d.mu.Unlock()
	if v := d.volumes[name]; v != nil && v.uuid == "" {
		return v
	}
	return nil
}

// peerGrant lets another host open a volume beside this one: its domain is about to migrate there.
func (d *Daemon) peerGrant(ctx context.Context, r api.PeerGrantRequest) (*api.PeerGrantAnswer, error) {
	if err := asks(ctx, r.Grant.Address); err != nil {
		return nil, err
	}
	v := d.volumeWithUUID(r.UUID)
	if v == nil {
		return nil, errNoVolume(r.Volume)
	}
	d.mu.Lock()
	e, m, held := v.engine, v.domain, v.held
	d.mu.Unlock()
	if d.isOff(ctx, m, held, r.Domain) {
		return &api.PeerGrantAnswer{Off: true}, nil
	}
	if m == nil || m.ident().UUID.String() != r.Domain {
		return nil, &inUseError{volume: v.name, store: v.want.Store, domain: nameOf(m)}
	}
	if e == nil {
		return nil, fmt.Errorf("volume %s: nothing serves it here", v.name)
	}
	if err := e.wait(ctx); err != nil {
		return nil, err
	}
	if err := d.afterCut(ctx, r.Domain); err != nil {
		return nil, err
	}
	s, err := d.engineStatus(ctx, v)
	switch {
	case err != nil:
		return nil, err
	case s.ControlVersion < 3:
		return nil, fmt.Errorf("volume %s: its engine on %s is of version %s, which can't hand it over: `virt-cow volume restart %s` there first",
			v.name, d.config.Peers.Self().HostName, s.Version, v.name)
	}
	// Noted before it is done: whoever asks meanwhile must not be told that there is none.
	out := &outgoing{grant: r.Grant, migration: r.Migration, since: time.Now()}
	d.mu.Lock()
	before := v.outgoing
	v.outgoing = out
	d.mu.Unlock()
	granting, cancel := context.WithTimeout(ctx, grantTimeout)
	defer cancel()
	if s, err = e.client.Grant(granting, api.GrantRequest{Grant: r.Grant}); err != nil {
		d.mu.Lock()
		v.outgoing = before
		d.mu.Unlock()
		return nil, err
	}
	d.log.Info().Str("migration", r.Migration).Str("volume", v.name).Str("to", r.Grant.HostName).Str("grant", r.Grant.ID).
		Msg("granted to another host, the exception cache is off")
	d.follow(v)
	frozen := d.cutter.MaybeFrozen(r.Domain)
	d.mu.Lock()
	defer d.mu.Unlock()
	return &api.PeerGrantAnswer{
		Use:     api.Use{Target: v.want.Target, Bus: v.want.Bus, Plugged: v.plugged},
		Hydrate: v.want.Hydrate != "no", Rate: v.want.Rate, Epoch: s.Epoch, Frozen: frozen,
	}, nil
}

// cutPatience is how long a migration waits for a cut: longer than one holds a guest.
const cutPatience = 20 * time.Second

// afterCut returns once no cut of a domain is at work.
func (d *Daemon) afterCut(ctx context.Context, domain string) error {
	ctx, cancel := context.WithTimeout(ctx, cutPatience)
	defer cancel()
	if err := d.cutter.Await(ctx, domain); err != nil {
		return fmt.Errorf("%w: migrate again in a moment", err)
	}
	return nil
}

// isOff says whether a volume is open here for something else than the domain that is about to migrate, which is off: only its
// definition migrates (`virsh migrate --offline`).
func (d *Daemon) isOff(ctx context.Context, m *domain, held, domain string) bool {
	switch {
	case m == nil:
		return held != ""
	case m.ident().UUID.String() != domain:
		return false
	}
	runs, err := d.runs(ctx, m.ident())
	return !runs && err == nil
}

// grantTimeout bounds the switching off of the cache: what the guest has not flushed is written then.
const grantTimeout = time.Minute

func nameOf(m *domain) string {
	if m == nil {
		return "(none)"
	}
	return m.name()
}

// peerSeal is the receiver's wish that this host stop writing. Whether it may is for libvirt to say, so it is asked at once.
func (d *Daemon) peerSeal(ctx context.Context, r api.PeerVolume) (*struct{}, error) {
	v := d.volumeWithUUID(r.UUID)
	if v == nil {
		return nil, errNoVolume(r.Volume)
	}
	if err := d.asksReceiver(ctx, v, r.Grant); err != nil {
		return nil, err
	}
	d.follow(v)
	return &struct{}{}, nil
}

// peerClosed notes that the receiver has closed a volume, or will not open it.
func (d *Daemon) peerClosed(ctx context.Context, r api.PeerVolume) (*struct{}, error) {
	v := d.volumeWithUUID(r.UUID)
	if v == nil {
		return &struct{}{}, nil // there is no grant either
	}
	if err := d.asksReceiver(ctx, v, r.Grant); err != nil {
		return nil, err
	}
	return &struct{}{}, d.endGrant(ctx, v, r.Grant, api.GrantClosed)
}

// engineOf is the engine that serves a volume here.
func (d *Daemon) engineOf(v *volume) (*engine, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if v.engine == nil {
		return nil, fmt.Errorf("volume %s: nothing serves it here", v.name)
	}
	return v.engine, nil
}

// endGrant has the engine end a grant.
func (d *Daemon) endGrant(ctx context.Context, v *volume, grant, why string) error {
	e, err := d.engineOf(v)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, grantTimeout)
	defer cancel()
	_, err = e.client.EndGrant(ctx, api.GrantEndRequest{ID: grant, Why: why})
	d.follow(v)
	return err
}

// peerOpen says whether this host has a volume open by a grant, or may still open it.
func (d *Daemon) peerOpen(_ context.Context, r api.PeerVolume) (*api.PeerOpenAnswer, error) {
	self := d.config.Peers.Self()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, v := range d.volumes {
		if v.incoming != nil && v.incoming.grant == r.Grant {
			return &api.PeerOpenAnswer{Open: true, Host: self.Host, Boot: self.Boot}, nil
		}
	}
	return &api.PeerOpenAnswer{Host: self.Host, Boot: self.Boot}, nil
}

// peerRelease closes a volume that nobody uses here, so that another host can open it.
func (d *Daemon) peerRelease(ctx context.Context, r api.PeerReleaseRequest) (*struct{}, error) {
	names := peer.From(ctx)
	v := d.volumeWithUUID(r.UUID)
	if v == nil {
		v = d.volumeUnheard(r.Volume)
	}
	if v == nil { // an engine that died and left the store open, perhaps
		return &struct{}{}, d.closeLeft(ctx, r)
	}
	d.mu.Lock()
	m, held, announced, served, cutting := v.domain, v.held, v.announced(), v.engine != nil, v.cutting > 0
	d.mu.Unlock()
	switch {
	case held != "":
		return nil, fmt.Errorf("volume %s is served on %s on request: `virt-cow volume stop %s` there first", v.name, d.config.Peers.Self().HostName, v.name)
	case cutting:
		return nil, fmt.Errorf("volume %s: a snapshot of it is being made or removed on %s: try again", v.name, d.config.Peers.Self().HostName)
	case announced:
		return nil, &runsError{volume: v.name, domain: nameOf(m), host: d.config.Peers.Self().HostName}
	}
	if m != nil {
		runs, err := d.runs(ctx, m.ident())
		if err != nil {
			return nil, err
		}
		if runs {
			return nil, &runsError{volume: v.name, domain: m.name(), host: d.config.Peers.Self().HostName}
		}
	}
	if d.hasClients(ctx, v) {
		return nil, fmt.Errorf("volume %s: somebody is connected to its engine on %s", v.name, d.config.Peers.Self().HostName)
	}
	d.log.Info().Str("volume", v.name).Stringer("for", names).Str("why", r.Why).Msg("closing a volume that another host asks for")
	if served {
		return &struct{}{}, d.stopVolume(ctx, v, m, api.VolumeOff)
	}
	return &struct{}{}, d.closeLeft(ctx, r)
}

// runs says whether a domain is active, as libvirt says.
func (d *Daemon) runs(ctx context.Context, x libvirtx.Domain) (bool, error) {
	c, err := d.libvirt()
	if err != nil {
		return false, err
	}
	s, err := c.State(ctx, x)
	if errors.Is(err, libvirtx.ErrNoDomain) {
		return false, nil
	}
	return s.Active, err
}

// closeLeft closes a store that this host owns though no engine serves it, and nobody here uses it.
func (d *Daemon) closeLeft(ctx context.Context, r api.PeerReleaseRequest) error {
	e, err := d.storeOf(r.Volume)
	if err != nil {
		return err
	}
	h, err := d.inventory.Header(ctx, e)
	if err != nil {
		return err
	}
	if h.UUID != r.UUID || h.Owner == nil || h.Owner.Host != d.config.Peers.Self().Host {
		return nil // not this host's to close
	}
	v, err := d.hold(ctx, r.Volume, api.HeldRequest)
	if err != nil {
		return err
	}
	d.mu.Lock()
	m := v.domain
	v.held = ""
	d.mu.Unlock()
	if err := d.stopVolume(ctx, v, m, api.VolumeOff); err != nil || m != nil {
		return err
	}
	d.forget(nil, v)
	return nil
}

// runsError says that a volume is used by a guest that runs elsewhere.
type runsError struct{ volume, domain, host string }

func (e *runsError) Error() string {
	return fmt.Sprintf("volume %s: domain %s has it on %s, and runs or is about to", e.volume, e.domain, e.host)
}
