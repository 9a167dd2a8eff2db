package iscsi

import (
	"context"
	"encoding/json"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev/reserve"
)

// libvirt is what a host's daemon would tell an engine of its guest: it goes on telling it until the part ends.
type libvirt struct{ state atomic.Pointer[string] }

func (e *engine) libvirt(t *testing.T, state string) *libvirt {
	t.Helper()
	v := new(libvirt)
	v.set(state)
	tick := time.NewTicker(50 * time.Millisecond)
	stop, stopped := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(stop); <-stopped })
	go func() {
		defer close(stopped)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-e.done:
				return
			case <-tick.C:
				v.tell(t, e)
			}
		}
	}()
	return v
}

// tell asks for the turn first, so that what is said is younger than it.
func (v *libvirt) tell(t *testing.T, e *engine) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s, err := e.control().Status(ctx)
	if err != nil || s.Handover == nil {
		return
	}
	var refused *api.RemoteError
	if _, err := e.control().Guest(ctx, api.GuestRequest{State: *v.state.Load(), Turn: s.Handover.Turn}); errors.As(err, &refused) {
		t.Errorf("tell of the guest: %v", err)
	}
}

func (v *libvirt) set(state string) { v.state.Store(&state) }

// granted has the owner's engine grant the volume to a host, and starts that host's engine with it.
func (e *engine) granted(t *testing.T, to *host) (string, *engine) {
	t.Helper()
	id := uuid.NewString()
	s, err := e.control().Grant(t.Context(), api.GrantRequest{Grant: api.Grant{ID: id, Host: to.uuid.String(), Boot: to.boot.String(), HostName: to.name}})
	if err != nil {
		t.Fatal(err)
	}
	if s.Cache != api.CacheOff || len(s.Grants) != 1 {
		t.Errorf("granted: %+v", s)
	}
	return id, to.serve(t, func(s *api.EngineSpec) { s.Incoming = &api.Incoming{Grant: id} })
}

// owns waits until a host's engine is the owner, alone and with its cache on.
func (e *engine) owns(t *testing.T, h *host) {
	t.Helper()
	eventually(t, "host "+h.name+" is the owner, with the cache on", func() bool {
		s, err := e.control().Status(t.Context())
		return err == nil && s.Owner != nil && s.Owner.Host == h.uuid.String() && len(s.Grants) == 0 && s.Cache == api.CacheOn
	})
}

// The protocol of a live migration, there and back, on a LUN that is reserved for both hosts.
func testMigration(t *testing.T, l *lun) {
	l.a.createStore(t)
	e := l.a.serve(t)
	g := e.guest(t)
	write(t, g, block(1), 0)
	ok(t, g.Flush())
	write(t, g, block(2), 4096) // its flag may be in memory only
	from, to := l.a, l.b
	there := e.libvirt(t, api.GuestLeaves)
	for round := range byte(2) {
		there.set(api.GuestLeaves)
		_, next := e.granted(t, to)
		here := next.libvirt(t, api.GuestStopped)
		n := next.guest(t)
		l.reservedFor(t, l.a, l.b)
		// Before the switch both have it open: what the giver writes the receiver reads, also where it read before.
		off := int64(1+round) << 20
		holds(t, n, block(1+10*round), 0)
		holds(t, n, block(2), 4096)
		holds(t, n, block(0), off)
		write(t, g, block(5+round), off)
		holds(t, n, block(5+round), off)

		there.set(api.GuestStopped)
		here.set(api.GuestRuns)
		write(t, n, block(11+10*round), 0)
		next.owns(t, to)
		ok(t, g.Flush()) // QEMU sends one to the old host after the switch
		holds(t, n, block(11+10*round), 0)
		holds(t, n, block(2), 4096)
		holds(t, n, block(5+round), off)
		if code := e.stop(t); code != 0 {
			t.Errorf("host %s: exit code %d", from.name, code)
		}
		from.refusesToServe(t, "open on another host")
		e, g, from, to, there = next, n, to, from, here
	}
	holds(t, g, block(21), 0)
	if code := e.stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	l.verify(t)
}

func (l *lun) verify(t *testing.T) {
	t.Helper()
	if out, err := l.b.run(t, "store", "verify", l.b.disk); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// freeze stops host a's engine, pulls its cable, and has a write of the host on its way to the LUN, to where the data that is
// given is. The returned function lets all of that go on and returns how the write ended.
//
// Nothing of a is at the target then: LIO before Linux 6.3 has PREEMPT AND ABORT wait for a command whose response the
// dead host does not take, and gives up the connection of the host that asked for it as well.
func (l *lun) freeze(t *testing.T, e *engine, data []byte) (returns func() error) {
	t.Helper()
	dev, off := l.a.open(t), l.find(t, data)
	e.freeze(t)
	plug := l.a.pull(t)
	wrote := make(chan error, 1)
	go func() {
		_, err := dev.WriteAt(block(0xdd), off)
		wrote <- err
	}()
	eventually(t, "the write is on its way", func() bool { return l.a.inFlight(t) > 0 })
	return func() error {
		plug()
		ok(t, e.cmd.Process.Signal(unix.SIGCONT))
		select {
		case err := <-wrote:
			return err
		case <-time.After(patience):
			t.Fatal("the late write does not end")
			return nil
		}
	}
}

// preemptQuietly shuts host a out while b, host b's engine, which looks at the header again and again, stands still: LIO holds
// what a holder's commands and everybody else's have in common for the holder's, has PREEMPT AND ABORT wait for a read of
// the very host that asks, and this one's connection, which that would need to end, waits for PREEMPT AND ABORT.
func (l *lun) preemptQuietly(t *testing.T, b *engine) {
	t.Helper()
	dev := l.b.open(t)
	b.freeze(t)
	defer func() { ok(t, b.cmd.Process.Signal(unix.SIGCONT)) }()
	l.b.idle(t)
	if err := reserve.Preempt(dev, l.b.key, l.a.key); err != nil {
		t.Fatal(err)
	}
}

// deadByReservation is what the daemon of host b puts into a spec when host a, the owner, does not answer: the engine is to shut it out.
func (l *lun) deadByReservation(t *testing.T) func(*api.EngineSpec) {
	t.Helper()
	out, err := l.b.run(t, "--json", "store", "info", l.b.disk)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var info struct {
		Epoch uint32
		Owner struct{ Host, Boot, Instance uuid.UUID }
	}
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if info.Owner.Host != l.a.uuid || info.Owner.Boot != l.a.boot {
		t.Fatalf("the owner is not host a: %s", out)
	}
	return func(s *api.EngineSpec) {
		s.Dead = &api.DeadOwner{Host: info.Owner.Host.String(), Instance: info.Owner.Instance.String(), Epoch: info.Epoch, By: api.ByReservation}
	}
}

// The owner freezes while it writes; another host shuts it out, takes its volume over and goes on. When the owner is back, its
// late write, and every other, is refused.
func testTakeover(t *testing.T, l *lun) {
	l.a.createStore(t)
	a := l.a.serve(t)
	g := a.guest(t)
	write(t, g, block(1), 0)
	ok(t, g.Flush())
	returns := l.freeze(t, a, block(1))
	l.b.refusesToServe(t, "open on another host")

	b := l.b.serve(t, l.deadByReservation(t))
	l.reservedFor(t, l.b)
	n := b.guest(t)
	b.owns(t, l.b)
	holds(t, n, block(1), 0)
	write(t, n, block(2), 0)
	write(t, n, block(3), 1<<20)
	ok(t, n.Flush())
	if err := returns(); !errors.Is(err, unix.EBADE) {
		t.Errorf("the late write of a host that was preempted: %v", err)
	}
	if _, err := g.WriteAt(block(0xdd), 4096); err == nil {
		t.Error("a write of a host that was preempted is acknowledged")
	}
	a.isLost(t)
	if err := g.Flush(); err == nil {
		t.Error("a FLUSH of a host that was preempted is acknowledged")
	}
	a.kill(t)
	l.a.refusesToServe(t, "open on another host")
	holds(t, n, block(2), 0)
	holds(t, n, block(0), 4096)
	holds(t, n, block(3), 1<<20)
	if code := b.stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	l.verify(t)
}

// The giver freezes before it seals: the receiver's first write waits for the proof of its death.
func testGiverDies(t *testing.T, l *lun) {
	l.a.createStore(t)
	a := l.a.serve(t)
	g := a.guest(t)
	write(t, g, block(1), 0)
	ok(t, g.Flush())
	a.libvirt(t, api.GuestLeaves)
	_, b := a.granted(t, l.b)
	n := b.guest(t)
	holds(t, n, block(1), 0)
	returns := l.freeze(t, a, block(1))
	b.libvirt(t, api.GuestRuns)
	wrote := make(chan error, 1)
	go func() {
		_, err := n.WriteAt(block(2), 0)
		wrote <- err
	}()
	eventually(t, "the receiver waits for its peer", func() bool {
		s, err := b.control().Status(t.Context())
		return err == nil && s.Handover != nil && s.Handover.State == "active" && s.Handover.Held > 0
	})
	// Nobody but an operator or a fence command proves a death in the middle of a migration. This one's command preempts.
	var proof api.EngineSpec
	l.deadByReservation(t)(&proof)
	proof.Dead.By = "fence command"
	l.preemptQuietly(t, b)
	if _, err := b.control().Dead(t.Context(), *proof.Dead); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-wrote:
		ok(t, err)
	case <-time.After(patience):
		t.Fatal("the receiver's write waits although its peer is proven dead")
	}
	b.owns(t, l.b)
	if err := returns(); !errors.Is(err, unix.EBADE) {
		t.Errorf("the late write of a host that was preempted: %v", err)
	}
	a.kill(t)
	holds(t, n, block(2), 0)
	if code := b.stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	l.verify(t)
}
