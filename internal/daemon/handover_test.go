package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/peer"
	"github.com/virt-cow/virt-cow/internal/store"
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
	answers map[string]func(in any) (any, error) // by path
	asked   []string
}

func (*others) Self() api.PeerHello {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return api.PeerHello{Host: hostB, Boot: strings.TrimSpace(string(boot)), HostName: "hb"}
}

func (*others) Address() string                           { return "hb" }
func (*others) Serve(context.Context, http.Handler) error { return nil }

func (o *others) Call(_ context.Context, _, path string, in, out any) error {
	o.mu.Lock()
	o.asked = append(o.asked, path)
	f := o.answers[path]
	o.mu.Unlock()
	if f == nil {
		return peer.ErrUnreachable
	}
	answer, err := f(in)
	if err != nil || out == nil {
		return err
	}
	b, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, out)
}

// answer has the others answer a path from now on.
func (o *others) answer(path string, f func(in any) (any, error)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.answers == nil {
		o.answers = map[string]func(any) (any, error){}
	}
	o.answers[path] = f
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
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
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

// TestComingIsNotStarting: libvirt announces the start of a QEMU that waits for a migration, too. Whoever gave the volume waits for
// it to be closed where libvirtd died in between: not as long as for a guest that starts.
func TestComingIsNotStarting(t *testing.T) {
	t.Parallel()
	d := newRealDaemon(t)
	d.config.Peers = &others{}
	m := d.domainHere("g")
	v, _ := d.adoptedIncoming(t, m, api.EngineStatus{
		Epoch: 5, Owner: &api.Owner{Host: hostA, HostName: "ha", Address: "ha"}, Grants: []api.Grant{{ID: grant, Host: hostB}},
		Handover: &api.Handover{Role: api.RoleReceiver, State: "idle", Grant: grant},
	})
	r := api.PrepareRequest{Operation: "prepare", Domain: "g", UUID: m.ident().UUID.String(), Volumes: []string{"v"}}
	if _, err := d.Prepare(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !v.announced() || time.Until(v.prepared) > incomingFor {
		t.Errorf("kept for it for %s", time.Until(v.prepared))
	}
}

func (c *said) Leaving(context.Context, libvirtx.Domain) (bool, error) { return false, nil }

func (c *said) become(s libvirtx.State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = s
}

// otherHost is host A with a store that a daemon here serves as host B: it has no lock, as if by another device.
func otherHost(t *testing.T, path string) *store.Store {
	t.Helper()
	f, err := blockdev.OpenFile(t.Context(), path, blockdev.FileOptions{Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := store.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// givenAway has a real engine hand volume v over to host A, whose handle on the store is returned. Its guest was suspended by the
// migration; nobody looks at its domain until the test ends.
func (d *Daemon) givenAway(t *testing.T) (*domain, *said, *store.Store) {
	t.Helper()
	path := d.create(t, "v").Store
	libvirt := &said{state: libvirtx.State{Active: true}, xml: d.disk("v", "vda", "ua-v")}
	d.mu.Lock()
	d.conn = libvirt
	d.mu.Unlock()
	m := d.domainHere("g")
	d.mu.Lock()
	d.domains[m.ident().UUID] = m
	d.mu.Unlock()
	if _, err := d.Prepare(t.Context(), d.startOf(m, "prepare")); err != nil {
		t.Fatal(err)
	}
	if err := m.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	v := d.volumeNamed("v")
	g := api.Grant{ID: grant, Host: hostA, Boot: bootA, HostName: "ha", Address: "ha"}
	ctx := peer.With(t.Context(), peer.Names{DNS: []string{"ha"}})
	if _, err := d.peerGrant(ctx, api.PeerGrantRequest{Volume: "v", UUID: v.uuid, Domain: m.ident().UUID.String(), Grant: g}); err != nil {
		t.Fatal(err)
	}
	st := otherHost(t, path)
	got, err := st.Receive(uuid.MustParse(grant), uuid.MustParse(hostA), uuid.MustParse(bootA))
	if err != nil {
		t.Fatal(err)
	}
	libvirt.become(libvirtx.State{Active: true, Paused: true, Moving: true})
	if err := st.WriteSlot(int(got.Slot), &cowfmt.MigrationSlot{Host: got.Host, State: cowfmt.SlotActive, Epoch: st.Header().Epoch, Grant: got.ID}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is handed over", func() bool {
		mine, err := st.TakeOwnership(got.ID)
		return err == nil && mine
	})
	if err := st.WriteSlot(int(got.Slot), nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the engine has given it", func() bool {
		s, err := d.engineStatus(t.Context(), v)
		return err == nil && given(s)
	})
	return m, libvirt, st
}

func (d *Daemon) startOf(m *domain, operation string) api.PrepareRequest {
	return api.PrepareRequest{Domain: m.name(), UUID: m.ident().UUID.String(), Operation: operation, Volumes: []string{"v"}}
}

// TestStartedWhereItWasGivenAway: the guest's engine is still there that has handed the volume over, and refuses everything.
func TestStartedWhereItWasGivenAway(t *testing.T) {
	t.Setenv("VIRT_COW_HOST_UUID", hostB)
	d := newRealDaemon(t)
	peers := &others{}
	d.config.Peers = peers
	m, libvirt, st := d.givenAway(t)
	libvirt.become(libvirtx.State{})
	peers.answer(api.PathPeerRelease, func(any) (any, error) { return nil, st.Release() })
	if _, err := d.Prepare(t.Context(), d.startOf(m, "prepare")); err != nil {
		t.Fatal(err)
	}
	s, err := d.engineStatus(t.Context(), d.volumeNamed("v"))
	if err != nil || given(s) || s.Owner == nil || s.Owner.Host != hostB {
		t.Errorf("%+v: %v", s, err)
	}
}

// TestComesBackAtOnce: the same for a migration back. While the guest is here still, though paused for ever, none comes.
func TestComesBackAtOnce(t *testing.T) {
	t.Setenv("VIRT_COW_HOST_UUID", hostB)
	d := newRealDaemon(t)
	peers := &others{}
	d.config.Peers = peers
	m, libvirt, st := d.givenAway(t)
	if err := st.Update(func(h *cowfmt.Header) { h.Owner.Address = "ha" }); err != nil {
		t.Fatal(err)
	}
	peers.answer(api.PathPeerClosed, func(any) (any, error) { return nil, nil })
	peers.answer(api.PathPeerGrant, func(in any) (any, error) {
		g := in.(api.PeerGrantRequest).Grant
		_, slot, err := st.ChooseSlots(uuid.MustParse(hostA), uuid.MustParse(hostB))
		if err != nil {
			return nil, err
		}
		return api.PeerGrantAnswer{Epoch: st.Header().Epoch}, st.Grant(cowfmt.Grant{
			ID: uuid.MustParse(g.ID), Host: uuid.MustParse(g.Host), Boot: uuid.MustParse(g.Boot), HostName: g.HostName, Slot: uint16(slot), Since: 1,
		})
	})
	if _, err := d.Prepare(t.Context(), d.startOf(m, "migrate")); err == nil || !strings.Contains(err.Error(), "on this host already") {
		t.Errorf("its guest here would have the volume: %v", err)
	}
	libvirt.become(libvirtx.State{})
	if _, err := d.Prepare(t.Context(), d.startOf(m, "migrate")); err != nil {
		t.Fatal(err)
	}
	s, err := d.engineStatus(t.Context(), d.volumeNamed("v"))
	if err != nil || s.Handover == nil || s.Handover.Role != api.RoleReceiver || s.Handover.State != "idle" {
		t.Errorf("%+v: %v", s, err)
	}
}

// TestNotResumedOnGivenDisk: its requests would fail for ever, and it would go on for a moment each time.
func TestNotResumedOnGivenDisk(t *testing.T) {
	t.Parallel()
	d := newRealDaemon(t)
	m, libvirt := d.pausedGuest(t)
	if err := m.reconcile(t.Context()); err == nil || libvirt.resumes != 1 {
		t.Fatalf("resumed %d times: %v", libvirt.resumes, err)
	}
	d.mu.Lock()
	d.volumes["v"].gone = true
	d.mu.Unlock()
	if err := m.reconcile(t.Context()); libvirt.resumes != 1 {
		t.Errorf("resumed %d times: %v", libvirt.resumes, err)
	}
}

// TestNotHeldWhileItComes: held it would stay open, and its owner's cache off, when the migration has failed.
func TestNotHeldWhileItComes(t *testing.T) {
	t.Parallel()
	d := newRealDaemon(t)
	d.config.Peers = &others{}
	v, _ := d.adoptedIncoming(t, d.domainHere("g"), api.EngineStatus{
		Owner: &api.Owner{Host: hostA, Address: "ha"}, Grants: []api.Grant{{ID: grant, Host: hostB}},
		Handover: &api.Handover{Role: api.RoleReceiver, State: "idle", Grant: grant},
	})
	if _, err := d.Start(t.Context(), "v"); err == nil || v.held != "" {
		t.Errorf("held for %q: %v", v.held, err)
	}
}

// TestFencedNames: a name is no host. Only what the dead host owns counts, in the epoch it is in.
func TestFencedNames(t *testing.T) {
	t.Parallel()
	d := newRealDaemon(t)
	d.config.Peers = &others{}
	owns := func(name, host, called, granted, grantedName string) {
		t.Helper()
		err := otherHost(t, d.create(t, name).Store).Update(func(h *cowfmt.Header) {
			h.Owner = &cowfmt.Owner{Host: uuid.MustParse(host), Boot: uuid.MustParse(bootA), Instance: uuid.New(), HostName: called, Since: 1}
			h.Cache = cowfmt.CacheOff
			h.Grants = []cowfmt.Grant{{
				ID: uuid.New(), Host: uuid.MustParse(granted), Boot: uuid.MustParse(bootA), HostName: grantedName, Slot: 1, Since: 1,
			}}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	const hostC, hostD = "00000000-0000-4000-8000-0000000000c1", "00000000-0000-4000-8000-0000000000d1"
	owns("v", hostD, "twin", hostB, "before")
	owns("w", hostA, "ha", hostC, "twin")
	for name, says := range map[string]string{"twin": "two hosts", "before": "this host", "ha": ""} {
		r, err := d.Fenced(t.Context(), api.FencedRequest{Host: name})
		switch {
		case says != "" && (err == nil || !strings.Contains(err.Error(), says)):
			t.Errorf("%s: %+v %v", name, r, err)
		case says == "" && (err != nil || r.Host != hostA || len(r.Volumes) != 1 || r.Volumes[0].Volume != "w"):
			t.Errorf("%s: %+v %v", name, r, err)
		}
	}
}

// TestProofOfOneThatLives: an operator's word is kept until it is used. Meanwhile the host may be back that was only cut off, with the
// same engine, whose guest writes.
func TestProofOfOneThatLives(t *testing.T) {
	t.Parallel()
	for boot, takes := range map[string]bool{bootA: false, grant: true} {
		d := newRealDaemon(t)
		d.config.PeerTimeout = patience
		d.config.Peers = &others{answers: map[string]func(any) (any, error){
			api.PathPeerHello:   func(any) (any, error) { return api.PeerHello{Host: hostA, Boot: boot}, nil },
			api.PathPeerRelease: func(any) (any, error) { return nil, &api.RemoteError{Code: 409, Message: "its guest runs"} },
		}}
		path := d.create(t, "v").Store
		err := otherHost(t, path).Update(func(h *cowfmt.Header) {
			h.Owner = &cowfmt.Owner{
				Host: uuid.MustParse(hostA), Boot: uuid.MustParse(bootA), Instance: uuid.New(), HostName: "ha", Address: "ha", Since: 1,
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if r, err := d.Fenced(t.Context(), api.FencedRequest{Host: "ha"}); err != nil || len(r.Volumes) != 1 || r.Volumes[0].Error != "" {
			t.Fatal(r, err)
		}
		_, err = d.Start(t.Context(), "v")
		if takes != (err == nil) || err != nil && !strings.Contains(err.Error(), "its guest runs") {
			t.Errorf("boot %s: %v", boot, err)
		}
	}
}

// TestOnlyItsReceiverEndsAGrant: also when it was an earlier daemon that gave it.
func TestOnlyItsReceiverEndsAGrant(t *testing.T) {
	t.Parallel()
	d := newRealDaemon(t)
	d.config.Peers = &others{}
	v, engine := d.adoptedBy(t, d.domainHere("g"), 1)
	engine.change(func(s *api.EngineStatus) {
		s.Grants = []api.Grant{{ID: grant, Host: hostA, Address: "ha"}}
		s.Handover = &api.Handover{Role: api.RoleGiver, State: "open", Grant: grant}
	})
	eventually(t, "it is served", func() bool { ready, _ := v.engine.isReady(); return ready })
	d.mu.Lock()
	v.uuid, v.outgoing = hostB, nil
	d.mu.Unlock()
	ctx := peer.With(t.Context(), peer.Names{DNS: []string{"hc"}})
	if _, err := d.peerClosed(ctx, api.PeerVolume{UUID: hostB, Grant: grant}); !errors.Is(err, errNotYours) {
		t.Errorf("ended by another host: %v", err)
	}
	ctx = peer.With(t.Context(), peer.Names{DNS: []string{"ha"}})
	if _, err := d.peerClosed(ctx, api.PeerVolume{UUID: hostB, Grant: grant}); err != nil {
		t.Error(err)
	}
}

// TestReleasesWhatItLeft: of an engine that died, of which a daemon that is new knows no more than the name, in a domain that is off.
func TestReleasesWhatItLeft(t *testing.T) {
	t.Setenv("VIRT_COW_HOST_UUID", hostB)
	d := newRealDaemon(t)
	d.config.Peers = &others{}
	d.conn = &said{}
	info := d.create(t, "v")
	st := otherHost(t, info.Store)
	err := st.Update(func(h *cowfmt.Header) {
		h.Owner = &cowfmt.Owner{Host: uuid.MustParse(hostB), Boot: uuid.MustParse(bootA), Instance: uuid.New(), Since: 1}
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.claim(d.domainHere("g"), libvirtx.Want{Volume: "v", Store: info.Store}, false); err != nil {
		t.Fatal(err)
	}
	if _, err := d.peerRelease(t.Context(), api.PeerReleaseRequest{Volume: "v", UUID: info.UUID}); err != nil {
		t.Fatal(err)
	}
	if err := st.Reread(); err != nil || st.Header().Owner != nil {
		t.Errorf("still owned: %+v: %v", st.Header().Owner, err)
	}
}

// TestGuestIsToldWhileOthersAreAsked: a host that does not answer takes seconds to find out. Meanwhile the guest may be suspended,
// and wait on the other host for this one's engine, which waits to be told.
func TestGuestIsToldWhileOthersAreAsked(t *testing.T) {
	t.Parallel()
	for what, h := range map[string]api.Handover{
		api.PathPeerOpen: {Role: api.RoleGiver, State: "open"},
		api.PathPeerSeal: {Role: api.RoleReceiver, State: "active", PeerState: "sealed"},
	} {
		d := newRealDaemon(t)
		asked, end := make(chan struct{}), make(chan struct{})
		first := sync.OnceFunc(func() { close(asked) })
		d.config.PeerTimeout = patience
		d.config.Peers = &others{answers: map[string]func(any) (any, error){what: func(any) (any, error) {
			first()
			<-end
			return nil, peer.ErrUnreachable
		}}}
		t.Cleanup(func() { close(end) })
		m := d.domainHere("g")
		d.conn = &said{state: libvirtx.State{Active: true}}
		h.Grant = grant
		_, engine := d.adoptedIncoming(t, m, api.EngineStatus{
			Owner: &api.Owner{Host: hostA, Address: "ha"}, Grants: []api.Grant{{ID: grant, Host: hostA, Address: "ha"}}, Handover: &h,
		})
		<-asked
		told := func() (n int) {
			engine.mu.Lock()
			defer engine.mu.Unlock()
			for _, path := range engine.asked {
				if path == api.PathEngineGuest {
					n++
				}
			}
			return n
		}
		since := told()
		eventually(t, "the engine is told of its guest", func() bool { return told() > since+2 })
	}
}

// TestNotFencedWhileItComesUp: a daemon that is being restarted does not answer for a moment, and its host is well. Nor does its LUN
// shut it out.
func TestNotFencedWhileItComesUp(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	command, fenced := filepath.Join(dir, "fence"), filepath.Join(dir, "fenced")
	script(t, command, ": > "+fenced)
	for _, force := range []func(*Config){
		func(c *Config) { c.FenceCommand, c.FenceTimeout = command, patience },
		func(c *Config) { c.Reservations = true },
	} {
		d := newRealDaemon(t)
		force(&d.config)
		st := otherHost(t, d.create(t, "v").Store)
		err := st.Update(func(h *cowfmt.Header) {
			h.Owner = &cowfmt.Owner{Host: uuid.MustParse(hostA), Boot: uuid.MustParse(bootA), Instance: uuid.New(), Address: "ha", Since: 1}
		})
		if err != nil {
			t.Fatal(err)
		}
		var asked atomic.Int32
		d.config.Peers = &others{answers: map[string]func(any) (any, error){api.PathPeerRelease: func(any) (any, error) {
			if asked.Add(1) < 3 {
				return nil, peer.ErrUnreachable
			}
			return nil, &api.RemoteError{Code: 409, Message: "its guest runs"}
		}}}
		if _, err := d.Start(t.Context(), "v"); err == nil || !strings.Contains(err.Error(), "its guest runs") {
			t.Error(err)
		}
	}
	if _, err := os.Stat(fenced); err == nil {
		t.Error("a host that is well was fenced")
	}
}

// TestFencedWhileAGuestWaits: only an owner that has been silent for a while, however long the guest has waited for one that answers;
// and no host fences itself: after a takeover the header names it before its engine says that the hand-over is over.
func TestFencedWhileAGuestWaits(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, owner   string
		silent, fence bool
	}{
		{"silent for long", hostA, true, true},
		{"silent just now", hostA, false, false},
		{"this host", hostB, true, false},
	} {
		d := newRealDaemon(t)
		dir := t.TempDir()
		fenced := filepath.Join(dir, "fenced")
		d.config.FenceCommand, d.config.FenceTimeout = filepath.Join(dir, "fence"), patience
		script(t, d.config.FenceCommand, ": >"+fenced+"\nexit 1")
		var asked atomic.Int32
		d.config.PeerTimeout = patience
		d.config.Peers = &others{answers: map[string]func(any) (any, error){api.PathPeerSeal: func(any) (any, error) {
			asked.Add(1)
			return nil, peer.ErrUnreachable
		}}}
		d.conn = &said{state: libvirtx.State{Active: true}}
		v, _ := d.adoptedIncoming(t, d.domainHere("g"), api.EngineStatus{
			Owner: &api.Owner{Host: c.owner, Address: "ha"}, Grants: []api.Grant{{ID: grant, Host: hostB}},
			Handover: &api.Handover{Role: api.RoleReceiver, State: "active", PeerState: "open", Grant: grant},
		})
		eventually(t, "the owner is asked", func() bool { return asked.Load() > 0 })
		silent := time.Now().Add(patience) // just now, however long the test takes
		if c.silent {
			silent = time.Now().Add(-fenceAfter)
		}
		d.mu.Lock()
		v.incoming.silent = silent
		d.mu.Unlock()
		already := asked.Load()
		eventually(t, "what came of an answer is done", func() bool { return asked.Load() > already+1 })
		if _, err := os.Stat(fenced); c.fence != (err == nil) {
			t.Errorf("%s: fenced %v, want %v", c.name, err == nil, c.fence)
		}
	}
}

// TestNotFencedOnceProven: the operator gives his word while the host is asked still. The command is not run then: the host may be on
// its way up again.
func TestNotFencedOnceProven(t *testing.T) {
	t.Setenv("VIRT_COW_HOST_UUID", hostB)
	d := newRealDaemon(t)
	dir := t.TempDir()
	fenced := filepath.Join(dir, "fenced")
	d.config.FenceCommand, d.config.FenceTimeout = filepath.Join(dir, "fence"), patience
	script(t, d.config.FenceCommand, ": >"+fenced+"\nexit 1")
	err := otherHost(t, d.create(t, "v").Store).Update(func(h *cowfmt.Header) {
		h.Owner = &cowfmt.Owner{
			Host: uuid.MustParse(hostA), Boot: uuid.MustParse(bootA), Instance: uuid.New(), HostName: "ha", Address: "ha", Since: 1,
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	d.config.Peers = &others{answers: map[string]func(any) (any, error){api.PathPeerRelease: func(any) (any, error) {
		if _, err := d.Fenced(context.Background(), api.FencedRequest{Host: "ha"}); err != nil {
			t.Error(err)
		}
		return nil, peer.ErrUnreachable
	}}}
	d.config.PeerTimeout = patience
	if _, err := d.Start(t.Context(), "v"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(fenced); err == nil {
		t.Error("a host that is proven dead was fenced")
	}
}

// TestFencedOnce: many volumes of a dead host are waited for at once. What it has begun anew by the time that the last of them has its
// turn must not be ended.
func TestFencedOnce(t *testing.T) {
	t.Parallel()
	d := newTestDaemon(t)
	dir := t.TempDir()
	command, code, runs := filepath.Join(dir, "fence"), filepath.Join(dir, "code"), filepath.Join(dir, "runs")
	d.config.FenceCommand, d.config.FenceTimeout = command, patience
	script(t, command, "echo >>"+runs+"\nexit $(cat "+code+")")
	silent := time.Now()
	for i, c := range []struct {
		host, boot string
		silent     time.Time
		code, runs int
	}{
		{hostA, bootA, silent, 1, 1},      // no proof
		{hostA, bootA, silent, 0, 2},      // one
		{hostA, bootA, silent, 0, 2},      // for all who wait
		{hostA, grant, silent, 0, 3},      // another boot
		{hostA, bootA, silent, 0, 4},      //
		{hostA, bootA, time.Time{}, 0, 5}, // silent again, since then
	} {
		if err := os.WriteFile(code, []byte(strconv.Itoa(c.code)), 0o600); err != nil {
			t.Fatal(err)
		}
		if c.silent.IsZero() {
			c.silent = time.Now()
		}
		if err := d.fence(t.Context(), &api.Owner{Host: c.host, Boot: c.boot}, c.silent); (err != nil) != (c.code != 0) {
			t.Errorf("%d: %v", i, err)
		}
		if b, err := os.ReadFile(runs); err != nil || len(b) != c.runs {
			t.Errorf("%d: it ran %d times, want %d: %v", i, len(b), c.runs, err)
		}
	}
}
