package daemon

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/launch"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// adoptedBy leaves what a killed daemon leaves of a volume that a running guest has, and adopts it.
func (d *Daemon) adoptedBy(t *testing.T, owner *domain, connections int) (v *volume, engine *answers) {
	t.Helper()
	store := d.create(t, "v").Store
	was := &volume{name: "v", want: libvirtx.Want{Volume: "v", Store: store}, domain: owner, arrived: true, plugged: true}
	if _, err := d.note(was); err != nil {
		t.Fatal(err)
	}
	engine = d.answering(t, "v", api.EngineStatus{Store: store, Connections: connections, Client: d.peerOf(owner)})
	if err := d.adopt(); err != nil {
		t.Fatal(err)
	}
	v = d.volumes["v"]
	t.Cleanup(func() { // it is this process: not to be stopped
		d.mu.Lock()
		delete(d.volumes, "v")
		d.mu.Unlock()
	})
	return v, engine
}

// TestAdoptedStaysWithItsGuest: a site may define two guests with one volume, as long as it runs one. A new daemon has
// not looked at the one that runs yet when the other is looked at, or is about to start.
func TestAdoptedStaysWithItsGuest(t *testing.T) {
	t.Parallel()
	d := newRealDaemon(t)
	runs, off := d.domainHere("runs"), d.domainHere("off")
	v, engine := d.adoptedBy(t, runs, 1)

	// The other one is off, and has it in its metadata.
	libvirt := &said{wants: []libvirtx.Want{{Volume: "v", Store: v.want.Store, Target: "vdb"}}}
	d.conn = libvirt
	if err := off.reconcile(t.Context()); err == nil || !strings.Contains(err.Error(), "belongs to domain runs") {
		t.Errorf("off takes it: %v", err)
	}
	// And is started.
	_, err := d.Prepare(t.Context(), api.PrepareRequest{Domain: "off", UUID: off.ident().UUID.String(), Volumes: []string{"v"}})
	if err == nil || !strings.Contains(err.Error(), "belongs to domain runs") {
		t.Errorf("off is let start: %v", err)
	}
	if v.domain == nil || v.domain.name() != "runs" || !v.plugged || v.engine == nil {
		t.Errorf("%+v", v)
	}
	if c := engine.client(); c == nil || c.Domain != "runs" {
		t.Errorf("its engine lets in %+v", c)
	}
}

// TestNobodyElseHasItOpen: the record of whose it is may be lost, the connection is not.
func TestNobodyElseHasItOpen(t *testing.T) {
	t.Parallel()
	d := newRealDaemon(t)
	v, engine := d.adoptedBy(t, nil, 1)
	other := d.domainHere("other")
	_, err := d.Prepare(t.Context(), api.PrepareRequest{Domain: "other", UUID: other.ident().UUID.String(), Volumes: []string{"v"}})
	var open *connectedError
	if !errors.As(err, &open) {
		t.Errorf("a second guest is let start: %v", err)
	}
	// The last connection of a QEMU that has just ended goes away by itself.
	time.AfterFunc(200*time.Millisecond, func() {
		engine.mu.Lock()
		defer engine.mu.Unlock()
		engine.status.Connections = 0
	})
	if _, err := d.alone(t.Context(), v); err != nil {
		t.Error(err)
	}
}

// TestRunningGuestKeepsItsClaim: whose engine can't be started at the moment.
func TestRunningGuestKeepsItsClaim(t *testing.T) {
	t.Parallel()
	d := newTestDaemon(t)
	a, b := d.domainHere("a"), d.domainHere("b")
	w := libvirtx.Want{Volume: "v", Store: "/s/v"}
	v, err := d.claim(a, w, true)
	if err != nil {
		t.Fatal(err)
	}
	v.arrived = true
	if _, err := d.claim(b, w, true); err == nil {
		t.Error("taken from a guest that runs")
	}
	if err := d.stopVolume(t.Context(), v, a, api.VolumeOff); err != nil {
		t.Fatal(err)
	}
	if _, err := d.claim(b, w, true); err != nil {
		t.Errorf("a is off: %v", err)
	}
	v.engine = d.newEngine("v") // b's
	if err := d.stopVolume(t.Context(), v, a, api.VolumeOff); err != nil || v.engine == nil {
		t.Errorf("a stopped what b has by now: %v", err)
	}
	v.engine = nil
}

// TestForgottenWhileHeld: what is served from now on is not dropped, and what was dropped is not served: nobody would
// ever stop it.
func TestForgottenWhileHeld(t *testing.T) {
	t.Parallel()
	d := newRealDaemon(t)
	store := d.create(t, "v").Store
	m := d.domainHere("g")
	v, err := d.claim(m, libvirtx.Want{Volume: "v", Store: store}, true)
	if err != nil {
		t.Fatal(err)
	}
	v.op.Lock() // m's engine is being stopped
	held := make(chan error, 1)
	go func() {
		_, err := d.Start(t.Context(), "v")
		held <- err
	}()
	eventually(t, "held", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return v.held != ""
	})
	d.forget(m, v)
	v.op.Unlock()
	if err := <-held; err != nil {
		t.Fatal(err)
	}
	if d.volumeNamed("v") != v {
		t.Error("served, and not known")
	}
	if _, err := d.Stop(t.Context(), "v"); err != nil {
		t.Fatal(err)
	}
	if d.volumeNamed("v") != nil {
		t.Error("still known")
	}
	if err := d.startVolume(t.Context(), v); !errors.Is(err, errForgotten) {
		t.Errorf("started for nobody: %v", err)
	}
	if _, err := os.Stat(d.controlPath("v")); err == nil {
		t.Error("its engine runs")
	}
}

// TestHeldAgainInVain: what was held before stays so.
func TestHeldAgainInVain(t *testing.T) {
	t.Parallel()
	d := newRealDaemon(t)
	d.create(t, "v")
	if _, err := d.Start(t.Context(), "v"); err != nil {
		t.Fatal(err)
	}
	v := d.volumeNamed("v")
	v.engine.set(func() { v.engine.ready, v.engine.err = false, errEnded }) // it is being started again
	if _, err := d.Start(t.Context(), "v"); err == nil {
		t.Error("started")
	}
	if v.held != api.HeldRequest {
		t.Error("not held any more")
	}
}

// sticky is a launcher that can't clear away.
type sticky struct {
	launch.Launcher
	stuck *atomic.Bool
}

func (l sticky) Gone(ctx context.Context, volume string) error {
	if l.stuck.Load() {
		return errors.New("no answer from systemd")
	}
	return l.Launcher.Gone(ctx, volume)
}

// TestHydratedIsLetGo: also if that fails at first.
func TestHydratedIsLetGo(t *testing.T) {
	t.Parallel()
	d := newRealDaemon(t)
	var stuck atomic.Bool
	d.config.Launcher = sticky{d.config.Launcher, &stuck}
	d.create(t, "master")
	if _, err := d.Create(t.Context(), api.CreateRequest{Name: "v", From: "master"}); err != nil {
		t.Fatal(err)
	}
	run := true
	if _, err := d.Hydration(t.Context(), api.VolumeHydrationRequest{Volume: "v", HydrationRequest: api.HydrationRequest{Run: &run}}); err != nil {
		t.Fatal(err)
	}
	v := d.volumeNamed("v")
	stuck.Store(true)
	eventually(t, "it is hydrated", func() bool {
		d.watchOne(t.Context(), v)
		d.mu.Lock()
		defer d.mu.Unlock()
		return v.hydrated
	})
	stuck.Store(false)
	eventually(t, "it is let go", func() bool {
		d.watchOne(t.Context(), v)
		return d.volumeNamed("v") == nil
	})
	if _, err := d.Delete(t.Context(), "v", api.DeleteRequest{Force: true}); err != nil {
		t.Error(err)
	}
}

// TestPreparedIsNotForgotten: a domain that went away and comes back at once.
func TestPreparedIsNotForgotten(t *testing.T) {
	t.Parallel()
	d := newTestDaemon(t)
	m := d.domainHere("g")
	v, err := d.claim(m, libvirtx.Want{Volume: "v", Store: "/s/v"}, true)
	if err != nil {
		t.Fatal(err)
	}
	v.prepared = time.Now().Add(preparedFor)
	d.forget(m, v)
	if d.volumeNamed("v") != v || v.domain != m {
		t.Error("forgotten")
	}
	v.prepared = time.Time{}
	d.forget(m, v)
	if d.volumeNamed("v") != nil {
		t.Error("kept")
	}
}

// TestMovedStore: a definition names a volume, and the catalogue knows where that is by now. What the metadata of a
// domain that is off says of the store is not asked.
func TestMovedStore(t *testing.T) {
	t.Parallel()
	d := newRealDaemon(t)
	store := d.create(t, "v").Store
	for _, stale := range []string{"/gone/v.vcow", ""} {
		d.volumes["v"] = &volume{name: "v", want: libvirtx.Want{Volume: "v", Store: stale, Rate: 7}}
		if w, err := d.wantNamed("v"); err != nil || w.Store != store {
			t.Errorf("%q: %+v %v", stale, w, err)
		}
	}
	delete(d.volumes, "v")
}

// TestUnknownEngine: one that can't be asked keeps what was noted of it.
func TestUnknownEngine(t *testing.T) {
	t.Parallel()
	d := newTestDaemon(t)
	was := &volume{name: "v", want: libvirtx.Want{Volume: "v", Store: "/s/v"}, plugged: true, held: api.HeldRequest}
	if _, err := d.note(was); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("v.ctl", d.controlPath("v")); err != nil { // ELOOP: neither there nor not
		t.Fatal(err)
	}
	if err := d.adopt(); err != nil {
		t.Fatal(err)
	}
	v := d.volumes["v"]
	if v == nil || !v.plugged || v.held != api.HeldRequest {
		t.Fatalf("%+v", v)
	}
	<-v.engine.ended
	if _, err := os.Stat(d.specPath("v")); err != nil {
		t.Error(err)
	}
}
