package libvirtxtest

import (
	"context"
	"errors"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/test/lab"
)

const (
	stopTerm = syscall.SIGTERM
	stopKill = syscall.SIGKILL
)

// slowReader: nobody reads the events for a while, and calls are answered all the same. Then all are there, in order.
func (r *rig) slowReader(t *testing.T) {
	ctx := t.Context()
	_, d := r.define(t, lab.GuestConfig{Name: "slow"})
	c, err := r.dial(ctx, r.h.LibvirtSocket(), patient)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const events = 100
	for i := range events {
		x := ""
		if i%2 == 0 {
			x = "<disks/>"
		}
		if err := c.SetMetadata(ctx, d, x); err != nil {
			t.Fatal(err)
		}
	}
	for i := range events {
		select {
		case e := <-c.Events():
			if e != (libvirtx.MetadataChanged{Domain: d, Namespace: libvirtx.Namespace}) {
				t.Fatalf("%d: %+v", i, e)
			}
		case <-time.After(2 * time.Minute):
			t.Fatalf("only %d events", i)
		}
	}
	r.virsh(t, "undefine", "slow")
}

// closeAmidEvents: a connection is closed while events come: its reader and every call end, and it leaves nothing open.
func (r *rig) closeAmidEvents(t *testing.T) {
	ctx, mine := t.Context(), r.conn(t)
	_, d := r.define(t, lab.GuestConfig{Name: "storm"})
	stormCtx, stop := context.WithCancel(ctx)
	var storm sync.WaitGroup
	storm.Go(func() {
		for stormCtx.Err() == nil {
			if err := mine.SetMetadata(ctx, d, "<disks/>"); err != nil {
				t.Error(err)
				return
			}
		}
	})
	defer storm.Wait()
	defer stop()
	before, routines := descriptors(t), runtime.NumGoroutine()
	for range 20 {
		c, err := r.dial(ctx, r.h.LibvirtSocket(), patient)
		if err != nil {
			t.Fatal(err)
		}
		var calls sync.WaitGroup
		for range 8 {
			calls.Go(func() {
				for {
					if _, err := c.Version(ctx); err != nil {
						if !errors.Is(err, libvirtx.ErrGone) {
							t.Error(err)
						}
						return
					}
				}
			})
		}
		<-c.Events()
		c.Close()
		calls.Wait()
		for range c.Events() { // until it is closed
		}
		if err := c.Err(); !errors.Is(err, libvirtx.ErrGone) {
			t.Fatal(err)
		}
	}
	eventually(t, "nothing left open", func() bool { return descriptors(t) <= before+2 && runtime.NumGoroutine() <= routines+10 })
	stop()
	storm.Wait()
	r.virsh(t, "undefine", "storm")
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// hungDomain: a QEMU that does not answer is no libvirtd that does not: its calls are given up, others go on, and the
// connection stays.
func (r *rig) hungDomain(t *testing.T) {
	ctx := t.Context()
	g, d := r.define(t, lab.GuestConfig{Name: "stuck"})
	if err := g.Start(ctx); err != nil {
		t.Fatal(err)
	}
	r.serve(t, "stuck")
	if _, err := r.h.Run(ctx, "sh", "-c", "kill -STOP $(cat /run/libvirt/qemu/stuck.pid)"); err != nil {
		t.Fatal(err)
	}
	for attempt := 1; ; attempt++ { // a busy machine may be slow to answer once
		err := r.stays(t, d)
		if err == nil {
			break
		}
		if attempt == 5 {
			t.Fatal(err)
		}
		t.Log(err)
	}
	if _, err := r.h.Run(ctx, "sh", "-c", "kill -CONT $(cat /run/libvirt/qemu/stuck.pid)"); err != nil {
		t.Fatal(err)
	}
	// One of the calls that were given up took effect.
	eventually(t, "the disk", func() bool {
		x, err := r.conn(t).XML(ctx, d)
		if err != nil {
			t.Fatal(err)
		}
		disks, err := libvirtx.Disks(x)
		return err == nil && len(disks) == 1
	})
	if err := g.Destroy(ctx); err != nil {
		t.Fatal(err)
	}
	r.virsh(t, "undefine", g.Name)
}

// stays gives calls on a domain that hangs up, and returns why the connection is gone, nil if it is there.
func (r *rig) stays(t *testing.T, d libvirtx.Domain) error {
	ctx := t.Context()
	c, err := r.dial(ctx, r.h.LibvirtSocket(), quick)
	if err != nil {
		return err
	}
	defer c.Close()
	text := r.diskXML(t, "stuck", uuid.New(), "vdb", "")
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var calls sync.WaitGroup
	for range 6 {
		calls.Go(func() {
			if err := c.Attach(short, d, text); !errors.Is(err, libvirtx.ErrNoAnswer) && !errors.Is(err, libvirtx.ErrGone) {
				t.Error(err)
			}
		})
	}
	calls.Wait()
	for until := time.Now().Add(quick.Interval + quick.Timeout); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		if _, err := c.Domains(ctx); err != nil {
			return err
		}
	}
	return c.Err()
}

// restarted: the calls of the old connection end, a new one is made, and what happened meanwhile is in its listing.
func (r *rig) restarted(t *testing.T, how syscall.Signal) {
	ctx, old := t.Context(), r.conn(t)
	_, n := r.rec.current()
	g, d := r.define(t, lab.GuestConfig{Name: "while-down"})
	if err := g.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := r.h.Libvirtd().Stop(how); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the loss noticed", func() bool { c, _ := r.rec.current(); return c == nil })
	if _, err := old.Domains(ctx); !errors.Is(err, libvirtx.ErrGone) {
		t.Fatal(err)
	}
	if err := old.Err(); !errors.Is(err, libvirtx.ErrGone) {
		t.Fatal(err)
	}
	if _, err := r.dial(ctx, r.h.LibvirtSocket(), patient); err == nil {
		t.Fatal("connected to nobody")
	}
	// No event will ever tell of this.
	if _, err := r.h.Run(ctx, "sh", "-c", "kill -KILL $(cat /run/libvirt/qemu/while-down.pid)"); err != nil {
		t.Fatal(err)
	}
	if err := r.h.StartLibvirtd(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a new connection", func() bool { c, m := r.rec.current(); return c != nil && m > n })
	c := r.conn(t)
	if list, err := c.Domains(ctx); err != nil || len(list) != 1 || list[0] != d {
		t.Fatal(list, err)
	}
	eventually(t, "the listing to tell", func() bool { s, err := c.State(ctx, d); return err == nil && s == libvirtx.State{} })
	r.rec.forget()
	r.virsh(t, "undefine", g.Name)
	r.sees(t, libvirtx.Lifecycle{Domain: d, What: libvirtx.Undefined})
}

// hung: a libvirtd that does not answer is found without anybody calling, and does not hold up who does.
func (r *rig) hung(t *testing.T) {
	r = keep(t, r.dial, r.h, quick)
	c := r.conn(t)
	_, n := r.rec.current()
	if err := r.h.Libvirtd().Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer r.h.Libvirtd().Signal(syscall.SIGCONT)
	eventually(t, "the loss noticed", func() bool { c, _ := r.rec.current(); return c == nil })
	if err := c.Err(); !errors.Is(err, libvirtx.ErrGone) {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := r.dial(ctx, r.h.LibvirtSocket(), patient); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if err := r.h.Libvirtd().Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a new connection", func() bool { c, m := r.rec.current(); return c != nil && m > n })

	c = r.conn(t)
	_, n = r.rec.current()
	if err := r.h.Libvirtd().Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.Domains(ctx); !errors.Is(err, libvirtx.ErrNoAnswer) && !errors.Is(err, libvirtx.ErrGone) {
		t.Fatal(err)
	}
	if _, err := c.Domains(t.Context()); !errors.Is(err, libvirtx.ErrGone) { // ended by the loss
		t.Fatal(err)
	}
	if err := r.h.Libvirtd().Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a new connection", func() bool { c, m := r.rec.current(); return c != nil && m > n })
}

// dropper lets go of each connection as soon as it has it.
type dropper struct{ lost chan error }

func (dropper) Connected(c libvirtx.Conn)   { c.Close() }
func (dropper) Event(libvirtx.Event)        {}
func (d dropper) Disconnected(reason error) { d.lost <- reason }

// flapping: connections that are made and lost at once are not made without end.
func (r *rig) flapping(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	d := dropper{lost: make(chan error, 100)}
	var keep sync.WaitGroup
	var dialled []time.Time
	keep.Go(func() {
		libvirtx.Keep(ctx, func(ctx context.Context) (libvirtx.Conn, error) {
			dialled = append(dialled, time.Now())
			return r.dial(ctx, r.h.LibvirtSocket(), patient)
		}, d, libvirtx.Backoff{Min: 50 * time.Millisecond, Max: time.Minute}, zerolog.Nop())
	})
	for range 5 {
		if err := <-d.lost; !errors.Is(err, libvirtx.ErrGone) {
			t.Error(err)
		}
	}
	stop()
	keep.Wait()
	if waited := dialled[4].Sub(dialled[3]); waited < 400*time.Millisecond {
		t.Fatalf("the fifth attempt came %s after the fourth", waited)
	}
}
