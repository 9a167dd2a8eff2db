package daemon

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"testing"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/peer"
)

// Two hosts, as headers and engines tell of them.
const (
	hostA = "00000000-0000-4000-8000-00000000000a"
	hostB = "00000000-0000-4000-8000-00000000000b"
	bootA = "00000000-0000-4000-8000-0000000000aa"
	grant = "00000000-0000-4000-8000-0000000000cc"
)

// others are the daemons of other hosts; nil answers are of one that can't be reached.
type others struct {
	mu      sync.Mutex
	answers map[string]func() (any, error) // by path
	asked   []string
}

func (*others) Self() api.PeerHello {
	return api.PeerHello{Host: hostB, Boot: "00000000-0000-4000-8000-0000000000bb", HostName: "hb"}
}

func (*others) Address() string                           { return "hb" }
func (*others) Serve(context.Context, http.Handler) error { return nil }

func (o *others) Call(_ context.Context, _, path string, _, out any) error {
	o.mu.Lock()
	o.asked = append(o.asked, path)
	f := o.answers[path]
	o.mu.Unlock()
	if f == nil {
		return peer.ErrUnreachable
	}
	in, err := f()
	if err != nil || out == nil {
		return err
	}
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, out)
}

// change has an engine say something else from now on.
func (a *answers) change(f func(*api.EngineStatus)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f(&a.status)
}

// TestGuestKeepsItsEpoch: what a guest has it has since its epoch. An engine that handed the volume over says the next one, which
// is not its guest's: or that could get the volume back, stale, once the other host has closed it.
func TestGuestKeepsItsEpoch(t *testing.T) {
	d := newRealDaemon(t)
	m := d.domainHere("g")
	v, engine := d.adoptedBy(t, m, 1)
	engine.change(func(s *api.EngineStatus) { s.Epoch = 5 })
	d.conn = &said{state: libvirtx.State{Active: true}}
	if err := d.startVolume(t.Context(), v); err != nil || d.specOf(v).Epoch != 5 {
		t.Fatalf("epoch %d: %v", d.specOf(v).Epoch, err)
	}
	engine.change(func(s *api.EngineStatus) {
		s.Epoch, s.Handover = 6, &api.Handover{Role: api.RoleGiver, State: "given", Grant: grant, Peer: "hb"}
	})
	if err := d.startVolume(t.Context(), v); err != nil || d.specOf(v).Epoch != 5 {
		t.Errorf("epoch %d: %v", d.specOf(v).Epoch, err)
	}
}

// TestEpochIsNoted: systemd starts an engine again by the spec as it is. One of before would have it take this host's own epoch, as
// after the end of a grant whose host died, for another host's.
func TestEpochIsNoted(t *testing.T) {
	d := newRealDaemon(t)
	v, engine := d.adoptedBy(t, d.domainHere("g"), 1)
	for _, epoch := range []uint32{5, 6} {
		engine.change(func(s *api.EngineStatus) { s.Epoch = epoch })
		if err := d.startVolume(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		if s, err := readSpec(d.specPath("v")); err != nil || s.Epoch != epoch {
			t.Errorf("noted epoch %d, is %d: %v", s.Epoch, epoch, err)
		}
	}
}

// adoptedIncoming leaves what a daemon that was killed leaves of a volume that came, or was to come, with its domain.
func (d *Daemon) adoptedIncoming(t *testing.T, m *domain, s api.EngineStatus) (*volume, *answers) {
	t.Helper()
	s.Store = d.create(t, "v").Store
	was := &volume{name: "v", want: libvirtx.Want{Volume: "v", Store: s.Store}, domain: m, incoming: &incoming{grant: grant}}
	if _, err := d.note(was); err != nil {
		t.Fatal(err)
	}
	s.Client = d.peerOf(m)
	engine := d.answering(t, "v", s)
	if err := d.adopt(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.mu.Lock()
		delete(d.volumes, "v")
		d.mu.Unlock()
	})
	return d.volumeNamed("v"), engine
}

func (d *Daemon) isIncoming(v *volume) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return v.incoming != nil
}

// TestAdoptedHasCome: the daemon was not there when the engine became the owner.
func TestAdoptedHasCome(t *testing.T) {
	d := newRealDaemon(t)
	d.config.Peers = &others{}
	v, _ := d.adoptedIncoming(t, d.domainHere("g"), api.EngineStatus{
		Epoch: 6, Owner: &api.Owner{Host: hostB, Instance: grant}, Handover: &api.Handover{Role: api.RoleReceiver, State: "owner", Grant: grant},
	})
	eventually(t, "it has come", func() bool { return !d.isIncoming(v) })
	eventually(t, "its engine has no grant to open it by any more", func() bool {
		s, err := readSpec(d.specPath("v"))
		return err == nil && s.Incoming == nil
	})
}

// TestAdoptedKnowsItsGiver: whoever goes on with a volume that is to come must be able to speak to its owner, and to have it fenced.
func TestAdoptedKnowsItsGiver(t *testing.T) {
	d := newRealDaemon(t)
	d.config.Peers = &others{}
	v, _ := d.adoptedIncoming(t, d.domainHere("g"), api.EngineStatus{
		Epoch: 5, Owner: &api.Owner{Host: hostA, HostName: "ha", Address: "ha"}, Grants: []api.Grant{{ID: grant, Host: hostB}},
		Handover: &api.Handover{Role: api.RoleReceiver, State: "active", Grant: grant},
	})
	eventually(t, "its giver is known", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return v.incoming != nil && v.incoming.owner.Address == "ha"
	})
}
