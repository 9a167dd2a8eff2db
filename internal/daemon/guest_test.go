package daemon

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/inventory"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// pausedGuest is a domain with a volume v that its engine serves, and whose guest an I/O error has paused.
func (d *Daemon) pausedGuest(t *testing.T) (*domain, *said) {
	t.Helper()
	d.create(t, "v")
	if _, err := d.Start(t.Context(), "v"); err != nil {
		t.Fatal(err)
	}
	m := d.domainHere("g")
	libvirt := &said{
		state: libvirtx.State{Active: true, Paused: true, IOError: true}, xml: d.disk("v", "vda", libvirtx.Alias("v")),
	}
	d.conn = libvirt
	return m, libvirt
}

// TestResumedWhateverElseIsWrong: a guest goes on once its own disks are served. A volume that it can't be given, or one
// that it has to let go of, for which it has to run, is no reason to leave it paused.
func TestResumedWhateverElseIsWrong(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func(d *Daemon, m *domain, c *said){
		"a volume that is not there": func(_ *Daemon, _ *domain, c *said) {
			c.wants = []libvirtx.Want{{Volume: "missing", Store: "/missing.vcow", Target: "vdb"}}
		},
		"being detached": func(d *Daemon, m *domain, _ *said) {
			d.volumes["v"].plugged, d.volumes["v"].domain = true, m
		},
	} {
		t.Run(what, func(t *testing.T) {
			d := newRealDaemon(t)
			m, libvirt := d.pausedGuest(t)
			change(d, m, libvirt)
			if err := m.reconcile(t.Context()); err == nil {
				t.Error("nothing is wrong: the test shows nothing")
			}
			if libvirt.resumes != 1 {
				t.Errorf("resumed %d times", libvirt.resumes)
			}
		})
	}
}

// unreadable is a libvirt with a domain whose metadata somebody has broken.
type unreadable struct{ *said }

func (unreadable) Metadata(context.Context, libvirtx.Domain) (string, error) {
	return "<disks><disk volume='v'/></disks>", nil
}

// ending is a libvirt with a transient domain whose QEMU has just ended.
type ending struct{ *said }

func (ending) Metadata(context.Context, libvirtx.Domain) (string, error) {
	return "", libvirtx.ErrTransient
}

// TestTransientEnds: nothing is wrong where libvirt is about to forget a domain.
func TestTransientEnds(t *testing.T) {
	t.Parallel()
	d := newRealDaemon(t)
	m, libvirt := d.pausedGuest(t)
	d.conn = ending{libvirt}
	if err := m.reconcile(t.Context()); !errors.Is(err, errUnfinished) {
		t.Errorf("reconciled: %v", err)
	}
}

// TestResumedWithBrokenMetadata: what the guest has its definition says.
func TestResumedWithBrokenMetadata(t *testing.T) {
	t.Parallel()
	d := newRealDaemon(t)
	m, libvirt := d.pausedGuest(t)
	d.volumes["v"].domain = m
	d.conn = unreadable{libvirt}
	if err := m.reconcile(t.Context()); !errors.Is(err, errMetadata) {
		t.Errorf("reconciled: %v", err)
	}
	if libvirt.resumes != 1 || m.err == nil {
		t.Errorf("resumed %d times; %v", libvirt.resumes, m.err)
	}
	libvirt.state = libvirtx.State{Active: true}
	if err := m.reconcile(t.Context()); err == nil || d.volumeNamed("v").engine == nil {
		t.Errorf("reconciled: %v", err)
	}
}

// TestNotResumedUnserved: it would only be paused again.
func TestNotResumedUnserved(t *testing.T) {
	t.Parallel()
	d := newRealDaemon(t)
	m, libvirt := d.pausedGuest(t)
	d.create(t, "w")
	libvirt.xml += d.disk("w", "vdb", "by-hand")
	d.config.Launcher = failing{d.config.Launcher}
	if err := m.reconcile(t.Context()); err == nil || libvirt.resumes != 0 {
		t.Errorf("resumed %d times: %v", libvirt.resumes, err)
	}
}

// TestDetachAfterRestore: a guest was saved with a disk that this daemon had plugged in, and restored: it has it from the
// start now, and a detach still takes it back.
func TestDetachAfterRestore(t *testing.T) {
	t.Parallel()
	d := newRealDaemon(t)
	m, libvirt := d.pausedGuest(t)
	libvirt.state = libvirtx.State{Active: true}
	libvirt.wants = []libvirtx.Want{{Volume: "v", Store: d.volumes["v"].want.Store, Target: "vda"}}
	if err := m.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.unwant(t.Context(), libvirt, "v"); err != nil {
		t.Fatal(err)
	}
	if err := m.reconcile(t.Context()); !errors.Is(err, errUnfinished) {
		t.Error(err)
	}
	if len(libvirt.detached) != 1 || len(libvirt.wants) != 0 {
		t.Errorf("asked to let go of %v, wants %v", libvirt.detached, libvirt.wants)
	}
}

// TestAttachWithoutAnswer: libvirt may plug the disk in yet. The volume stays the domain's and served, and the disk the
// daemon's to take back.
func TestAttachWithoutAnswer(t *testing.T) {
	t.Parallel()
	d := newRealDaemon(t)
	store := d.create(t, "v").Store
	m := d.domainHere("g")
	libvirt := &said{state: libvirtx.State{Active: true}, attach: fmt.Errorf("libvirt: attach: %w", libvirtx.ErrNoAnswer)}
	d.domains[m.ident().UUID] = m
	d.conn = lookedUp{libvirt, m.ident()}
	_, err := d.Attach(t.Context(), api.AttachRequest{Domain: "g", Volume: "v"})
	if !errors.Is(err, libvirtx.ErrNoAnswer) {
		t.Fatal(err)
	}
	v := d.volumeNamed("v")
	if v == nil || v.domain != m || !v.plugged || v.engine == nil || len(libvirt.wants) != 1 || libvirt.wants[0].Store != store {
		t.Errorf("%+v, wants %v", v, libvirt.wants)
	}
}

// TestEngineThatHangs: one that accepts and does not answer holds up its own volume, for seconds, and no call for ever.
func TestEngineThatHangs(t *testing.T) {
	t.Parallel()
	d := newRealDaemon(t)
	v, engine := d.adoptedBy(t, nil, 0)
	if err := d.startVolume(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	engine.mu.Lock()
	engine.held = make(chan struct{})
	engine.mu.Unlock()
	for what, call := range map[string]func() error{
		"start": func() error { return d.startVolume(t.Context(), v) },
		"hydrate": func() error {
			run := false
			_, err := d.Hydration(t.Context(), api.VolumeHydrationRequest{Volume: "v", HydrationRequest: api.HydrationRequest{Run: &run}})
			return err
		},
	} {
		done := make(chan error, 1)
		go func() { done <- call() }()
		select {
		case err := <-done:
			if err == nil {
				t.Errorf("%s: no error", what)
			}
		case <-time.After(patience):
			t.Fatalf("%s hangs", what)
		}
	}
}

// TestStopWithoutEnd: an engine that was asked to end and does not is not waited for by whoever needs it next.
func TestStopWithoutEnd(t *testing.T) {
	t.Parallel()
	e := newTestDaemon(t).newEngine("v")
	e.set(func() { e.stopping = true })
	if err := e.wait(t.Context()); err == nil {
		t.Error("no error")
	}
	close(e.ended)
	if err := e.wait(t.Context()); err == nil {
		t.Error("no error")
	}
}

// TestEndedEngineIsNoReason: that the engine before ended, of which nobody took note, keeps no guest from starting.
func TestEndedEngineIsNoReason(t *testing.T) {
	t.Parallel()
	d := newRealDaemon(t)
	v := d.create(t, "v")
	e := d.newEngine("v")
	e.set(func() { e.err = errNotUp })
	close(e.ended)
	d.volumes["v"] = &volume{name: "v", want: libvirtx.Want{Volume: "v", Store: v.Store}, engine: e}
	id := d.domainHere("g").ident()
	if _, err := d.Prepare(t.Context(), api.PrepareRequest{Domain: id.Name, UUID: id.UUID.String(), Volumes: []string{"v"}}); err != nil {
		t.Error(err)
	}
}

// TestBootDiskOfADomainThatIsOff is no free volume: it was there before this daemon.
func TestBootDiskOfADomainThatIsOff(t *testing.T) {
	t.Parallel()
	d := newRealDaemon(t)
	d.create(t, "v")
	m := d.domainHere("g")
	d.conn = &said{xml: d.disk("v", "vda", "") + d.disk("unknown", "vdb", "")}
	if err := m.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Delete(t.Context(), "v", api.DeleteRequest{}); !errors.Is(err, inventory.ErrInUse) {
		t.Errorf("deleted: %v", err)
	}
	d.conn = &said{}
	if err := m.reconcile(t.Context()); err != nil { // edited out
		t.Fatal(err)
	}
	if _, err := d.Delete(t.Context(), "v", api.DeleteRequest{}); err != nil {
		t.Error(err)
	}
}

// TestOffDomainsKeepTheirVolumes: who else has a volume, or had it when the domain was looked at, does not matter.
func TestOffDomainsKeepTheirVolumes(t *testing.T) {
	t.Parallel()
	for what, test := range map[string]struct {
		libvirt func(d *Daemon, store string) *said
		before  func(t *testing.T, d *Daemon)
		after   func(t *testing.T, d *Daemon)
	}{
		"held when it was defined": {
			func(d *Daemon, _ string) *said { return &said{xml: d.disk("v", "vda", "")} },
			func(t *testing.T, d *Daemon) {
				if _, err := d.Start(t.Context(), "v"); err != nil {
					t.Fatal(err)
				}
			},
			func(t *testing.T, d *Daemon) {
				if _, err := d.Stop(t.Context(), "v"); err != nil {
					t.Fatal(err)
				}
			},
		},
		"another's, that is undefined": {
			func(_ *Daemon, store string) *said {
				return &said{wants: []libvirtx.Want{{Volume: "v", Store: store, Target: "vdb"}}}
			},
			func(t *testing.T, d *Daemon) {
				d.conn = &said{xml: d.disk("v", "vda", "")}
				if err := d.domainHere("other").reconcile(t.Context()); err != nil {
					t.Fatal(err)
				}
			},
			func(t *testing.T, d *Daemon) {
				v := d.volumeNamed("v")
				d.forget(v.domain, v)
			},
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			d := newRealDaemon(t)
			store := d.create(t, "v").Store
			test.before(t, d)
			d.mu.Lock()
			d.conn = test.libvirt(d, store)
			m := d.domainHere("g")
			d.domains[m.ident().UUID] = m
			d.mu.Unlock()
			_ = m.reconcile(t.Context()) // another may have it
			test.after(t, d)
			if _, err := d.Delete(t.Context(), "v", api.DeleteRequest{}); !errors.Is(err, inventory.ErrInUse) {
				t.Errorf("deleted: %v", err)
			}
			d.conn = &said{} // edited out
			if err := m.reconcile(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := d.Delete(t.Context(), "v", api.DeleteRequest{}); err != nil {
				t.Error(err)
			}
		})
	}
}

// pooled is a libvirt whose one domain has a disk of a storage pool.
type pooled struct{ *said }

func (pooled) Domains(context.Context) ([]libvirtx.Domain, error) {
	return []libvirtx.Domain{{Name: "g"}}, nil
}

func (pooled) FindVolume(_ context.Context, pool, name string) (string, int64, error) {
	return "/" + pool + "/" + name, 0, nil
}

// TestDisksOfPoolsAreGuests: what looks like a store there is a guest's doing, as on any other raw disk.
func TestDisksOfPoolsAreGuests(t *testing.T) {
	t.Parallel()
	d := newTestDaemon(t)
	d.conn = pooled{&said{xml: "<disk type='volume'><source pool='images' volume='g.raw'/><target dev='vda'/></disk>"}}
	if disks, err := d.guestDisks(t.Context()); err != nil || len(disks) != 1 || disks[0] != "/images/g.raw" {
		t.Error(disks, err)
	}
}
