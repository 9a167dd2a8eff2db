package e2e

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
)

// crawl is how fast memory is copied where a migration is to stay in that, MiB a second.
const crawl = 1

// passage is one migration of a crossing, under way.
type passage struct {
	c        *crossing
	from, to *bed
	over     chan struct{} // closed at its end
	forget   func()        // ends virsh's waiting for it, where that host is frozen and will never go on
	err      error         // virsh's, once it is over
	said     int           // what the daemons had said when it began, bytes
	logged   map[string]int64
	event    <-chan struct{} // closed at the guest's first event on the source
}

// begin starts a migration to the other host. Slow ones stay in the copying of memory until they are let go.
func (c *crossing) begin(t *testing.T, slow bool) *passage {
	t.Helper()
	p := &passage{c: c, from: c.on(), to: c.other(), over: make(chan struct{}), said: len(c.log.String()), logged: map[string]int64{}}
	for _, path := range p.logs() {
		if i, err := os.Stat(path); err == nil {
			p.logged[path] = i.Size()
		}
	}
	if slow {
		must(t, c.guest.LimitMigration(t.Context(), crawl))
	} else {
		must(t, c.guest.HurryMigration(t.Context()))
	}
	p.event = p.awaitEvent(t)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	p.forget = cancel
	go func() {
		defer cancel()
		defer close(p.over)
		_, p.err = c.guest.Migrate(ctx, p.to.Host)
	}()
	return p
}

// awaitEvent makes a channel that is closed at the guest's next event on the source: virsh waits for it.
func (p *passage) awaitEvent(t *testing.T) <-chan struct{} {
	t.Helper()
	v, err := p.from.Start("virsh", "-c", "qemu:///system", "event", "--event", "lifecycle", "--domain", "g1")
	must(t, err)
	go func() {
		<-p.over
		select {
		case <-v.Done():
		case <-time.After(time.Second):
			_ = v.Signal(syscall.SIGKILL)
		}
	}()
	return v.Done()
}

func (p *passage) logs() []string {
	var list []string
	for _, b := range p.c.beds {
		for _, v := range p.c.volumes {
			list = append(list, filepath.Join(b.Dir, "log", "virt-cow", v+".log"))
		}
	}
	return list
}

// says whether the daemon of a host has said this since the migration began.
func (p *passage) says(b *bed, what string) bool {
	for line := range strings.Lines(p.c.log.String()[p.said:]) {
		if strings.HasPrefix(line, b.Name+" ") && strings.Contains(line, what) {
			return true
		}
	}
	return false
}

// engineSays whether an engine of a host has said this since the migration began.
func (p *passage) engineSays(b *bed, what string) bool {
	for _, path := range p.logs() {
		if !strings.HasPrefix(path, b.Dir+"/") {
			continue
		}
		if text, err := os.ReadFile(path); err == nil && bytes.Contains(text[min(int64(len(text)), p.logged[path]):], []byte(what)) {
			return true
		}
	}
	return false
}

// step is a moment of a migration.
type step struct {
	name string
	slow bool // it is reached, and stayed in, while memory is copied slowly
	seen func(*passage) bool
}

// The steps, in their order.
var (
	asked   = step{"asked", false, func(p *passage) bool { return p.says(p.to, "migrating here: asking for the volumes") }}
	granted = step{"granted", false, func(p *passage) bool { return p.says(p.from, "granted to another host") }}
	opened  = step{"opened", false, func(p *passage) bool { return p.says(p.to, "volumes are open beside their owner") }}
	copying = step{"copying", true, func(p *passage) bool {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		return p.c.guest.AwaitMemory(ctx) == nil
	}}
	suspended = step{"suspended", false, func(p *passage) bool {
		select {
		case <-p.event:
			return true
		case <-p.over: // virsh event was too late to see it
			return p.err == nil
		default:
			return false
		}
	}}
	sealed = step{"sealed", false, func(p *passage) bool { return p.engineSays(p.from, `"state":"sealed"`) }}
	active = step{"active", false, func(p *passage) bool { return p.engineSays(p.to, `"state":"active"`) }}
	given  = step{"given", false, func(p *passage) bool { return p.engineSays(p.from, `"state":"given"`) }}
)

var steps = []step{asked, granted, opened, copying, suspended, sealed, active, given}

// await waits until the migration reaches a step, or is over.
func (p *passage) await(t *testing.T, s step) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !s.seen(p); time.Sleep(2 * time.Millisecond) {
		select {
		case <-p.over: // for virsh; a guest that came hands over with its first write
			if p.err != nil && !s.seen(p) {
				t.Fatalf("the migration was over before it was %s: %v", s.name, p.err)
			}
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("the migration does not get as far as %s", s.name)
		}
	}
}

// wait lets the migration go on, and waits for its end: virsh's error.
func (p *passage) wait(t *testing.T) error {
	t.Helper()
	for deadline := time.After(3 * time.Minute); ; {
		p.c.guest.HurryMigration(t.Context()) // fails where it is over
		select {
		case <-p.over:
			return p.err
		case <-time.After(time.Second):
		case <-deadline:
			t.Fatal("the migration does not end")
		}
	}
}

// strike is a fault: what is killed in a migration. What it returns brings it back, as a supervisor or an operator would; nil if
// it is for others to.
type strike struct {
	name string
	kill func(t *testing.T, p *passage) (back func())
}

func killDaemons(of ...func(*passage) *bed) func(*testing.T, *passage) func() {
	return func(t *testing.T, p *passage) func() {
		for _, b := range of {
			must(t, b(p).vc.Daemon().Signal(syscall.SIGKILL))
		}
		return func() {
			for _, b := range of {
				<-b(p).vc.Daemon().Done()
				_, err := b(p).vc.StartDaemon(t.Context())
				must(t, err)
			}
		}
	}
}

// killAll kills all of a host's processes that run a program with these arguments.
func killAll(of func(*passage) *bed, program string, args ...string) func(*testing.T, *passage) func() {
	return func(t *testing.T, p *passage) func() {
		b := of(p)
		list, err := b.processes(program, args...)
		must(t, err)
		if len(list) == 0 {
			t.Logf("%s on %s: there is none to be killed", program, b.Name)
		}
		for _, pid := range list {
			if err := b.Kill(context.Background(), pid, syscall.SIGKILL); err != nil {
				t.Logf("it has just ended: %v", err)
			}
		}
		return nil
	}
}

func source(p *passage) *bed      { return p.from }
func destination(p *passage) *bed { return p.to }

var (
	daemonTo   = strike{"daemon of the destination", killDaemons(destination)}
	daemonFrom = strike{"daemon of the source", killDaemons(source)}
	bothAtOnce = strike{"both daemons", killDaemons(source, destination)}
	qemuTo     = strike{"QEMU of the destination", killAll(destination, "qemu-system-x86_64")}
	libvirtdTo = strike{"libvirtd of the destination", func(t *testing.T, p *passage) func() {
		must(t, p.to.Libvirtd().Stop(syscall.SIGKILL))
		return func() { must(t, p.to.StartLibvirtd(t.Context())) }
	}}
	abort = strike{"the job", func(t *testing.T, p *passage) func() {
		if err := p.c.guest.AbortJob(t.Context()); err != nil {
			t.Logf("too late: %v", err)
		}
		return nil
	}}
)

// The engines are told from other processes by their argument; the program is made for each run of the tests.
func engines(of func(*passage) *bed) func(*testing.T, *passage) func() {
	return func(t *testing.T, p *passage) func() { return killAll(of, program, "serve")(t, p) }
}

var (
	engineTo   = strike{"engines of the destination", engines(destination)}
	engineFrom = strike{"engines of the source", engines(source)}
)

var strikes = []strike{abort, daemonTo, daemonFrom, bothAtOnce, qemuTo, libvirtdTo, engineTo, engineFrom}

// ending is what must become of a migration.
type ending int

const (
	either ending = iota
	stays         // it fails, the guest stays where it is
	moves         // it succeeds
)

// under has one migration with one fault, and returns where the guest is then, which is well.
func (c *crossing) under(t *testing.T, s step, k strike, e ending) *bed {
	t.Helper()
	began := time.Now()
	p := c.begin(t, s.slow)
	p.await(t, s)
	back := k.kill(t, p)
	if back != nil {
		time.Sleep(500 * time.Millisecond)
		back()
	}
	err := p.wait(t)
	t.Logf("%s killed when it was %s from %s to %s: %v", k.name, s.name, p.from.Name, p.to.Name, err)
	on := c.recover(t, p)
	switch {
	case e == stays && (err == nil || on != p.from):
		t.Errorf("%s killed while %s: the guest is on %s; migrate said: %v", k.name, s.name, on.Name, err)
	case e == moves && (err != nil || on != p.to):
		t.Errorf("%s killed while %s: the guest is on %s; migrate said: %v", k.name, s.name, on.Name, err)
	}
	t.Logf("well after %s", time.Since(began).Round(time.Second))
	return on
}

// recover has all well again after a fault. A guest that was killed with its QEMU is started anew; one that is left where its
// volumes no longer are, and of which the status says so, is ended first.
func (c *crossing) recover(t *testing.T, p *passage) *bed {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); time.Sleep(time.Second) {
		on, seen := c.looksAlive(t)
		if on != nil {
			return c.verdict(t)
		}
		from, to := p.from.stateOf(t.Context()), p.to.stateOf(t.Context())
		if from == "paused" && p.engineSays(p.to, `"state":"owner"`) {
			c.endsHere(t, p.from)
		}
		if dead(from) && dead(to) {
			t.Logf("the guest is dead: %s", seen)
			logs := c.died(t)
			c.bootOn(t, p.from)
			c.anew(t, logs)
			return c.verdict(t)
		}
	}
	_, seen := c.looksAlive(t)
	t.Fatalf("the guest is not well: %s", seen)
	return nil
}

func dead(state string) bool { return strings.HasPrefix(state, "shut off") || state == "absent" }

// endsHere checks that a host's status says what to do with a guest whose volumes have gone on elsewhere, and does that.
func (c *crossing) endsHere(t *testing.T, b *bed) {
	t.Helper()
	for _, v := range c.volumes {
		b.await(t, v, "said to be elsewhere, and what to do", func(s *api.VolumeStatus) bool {
			return s != nil && s.State == api.VolumeElsewhere && strings.Contains(s.Error, "virsh destroy g1")
		})
	}
	out, err := b.vc.Run(t.Context(), "status")
	if err == nil || !strings.Contains(out, "virsh destroy g1") {
		t.Errorf("status on %s does not say what to do: %v\n%s", b.Name, err, out)
	}
	if state := b.stateOf(t.Context()); state != "paused" {
		t.Errorf("the guest left on %s is %s", b.Name, state)
	}
	b.virsh(t, "destroy", "g1")
}

// TestMigrateKilled kills processes of both hosts in migrations, one after the other. Each time the guest lives on one host with
// all that was acknowledged, and the next migration works.
func TestMigrateKilled(t *testing.T) {
	t.Run("copying", func(t *testing.T) {
		c := newCrossing(t, nil, []string{"--chunk", "4K"}, "v1", "v2")
		c.under(t, copying, abort, stays)
		c.under(t, copying, qemuTo, stays)
		c.under(t, copying, libvirtdTo, stays)
		c.under(t, copying, daemonTo, moves)
		c.under(t, copying, daemonFrom, moves)
		c.under(t, copying, bothAtOnce, moves)
		c.under(t, copying, engineTo, either)
		c.under(t, copying, engineFrom, either)
		c.finish(t)
	})
	t.Run("switch", func(t *testing.T) {
		c := newCrossing(t, nil, []string{"--chunk", "64K"}, "v1", "v2")
		c.under(t, granted, engineFrom, either)
		c.under(t, opened, engineTo, either)
		c.under(t, suspended, daemonTo, moves)
		c.under(t, suspended, daemonFrom, moves)
		c.under(t, sealed, bothAtOnce, moves)
		c.under(t, sealed, engineFrom, either)
		c.under(t, active, engineTo, either)
		c.finish(t)
	})
}

// TestMigrateKilledSoak kills each in each step.
func TestMigrateKilledSoak(t *testing.T) {
	if !*soak {
		t.Skip("takes long: -e2e.soak")
	}
	for _, chunk := range []string{"4K", "64K"} {
		for _, s := range steps {
			t.Run(chunk+"/"+s.name, func(t *testing.T) {
				c := newCrossing(t, nil, []string{"--chunk", chunk}, "v1", "v2")
				for _, k := range strikes {
					if !t.Run(k.name, func(t *testing.T) { c.under(t, s, k, either) }) {
						return // the next would only say so once more
					}
				}
				c.finish(t)
			})
		}
	}
}

// TestMigrateToAndFro moves a guest with two volumes, being hydrated all the while, fifty times.
func TestMigrateToAndFro(t *testing.T) {
	if !*soak {
		t.Skip("takes long: -e2e.soak")
	}
	for _, chunk := range []string{"4K", "64K"} {
		t.Run(chunk, func(t *testing.T) {
			c := newCrossing(t, nil, []string{"--chunk", chunk}, "v1", "v2")
			for _, v := range c.volumes {
				c.beds[0].run(t, "hydrate", "start", v, "--rate", "64K")
			}
			for n := range 50 {
				began := time.Now()
				c.move(t, c.on(), c.other())
				took := time.Since(began)
				c.verdict(t)
				t.Logf("migration %d: %s, all well after %s", n+1, took.Round(100*time.Millisecond), time.Since(began).Round(100*time.Millisecond))
			}
			c.finish(t)
		})
	}
}
