package cut

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// fault is what goes wrong with one call.
type fault int

const (
	none       fault = iota
	refused          // an error, and nothing was done
	lostReply        // done, and an error
	slow             // done after three seconds
	late             // done half a minute later, though nobody waits for it any more
	engineDies       // before it; another engine has the volume at once
	engineDied       // after it
	daemonDies       // before it
	daemonDied       // after it
	faults
)

func (f fault) String() string {
	return []string{"none", "refused", "lostReply", "slow", "late", "engineDies", "engineDied", "daemonDies", "daemonDied"}[f]
}

// span is a stretch of time; a zero to is now.
type span struct{ from, to time.Time }

func (s span) has(t time.Time) bool {
	return !t.Before(s.from) && (s.to.IsZero() || t.Before(s.to))
}

// world is all but the Cutter: engines, guest, stores, and what is to go wrong.
type world struct {
	dir string // of the daemon that lives

	mu      sync.Mutex
	gen     int // of the daemon
	kill    context.CancelFunc
	dead    chan struct{} // closed at the daemon's death
	volumes map[string]*volume
	stores  map[string]bool
	guest   guest
	calls   map[string]int
	choose  func(call string) fault
	trace   []string
}

type volume struct {
	w         *world
	name, id  string
	stack     map[string]*api.SnapshotStatus
	cut       string // suspended for it
	since     time.Time
	deadline  time.Time
	suspended []span
	granted   time.Time     // until when a grant is open
	grants    time.Duration // one is opened for so long once a snapshot was added
	opens     int
	breaks    bool
	clients   int
	leave     bool // they leave before the cut
}

type guest struct {
	off      bool
	frozen   []span
	pending  bool // a freeze that was asked for and is not done yet
	byItself time.Duration
}

func (g *guest) isFrozen() bool { return len(g.frozen) > 0 && g.frozen[len(g.frozen)-1].to.IsZero() }

// settle has time do what it does.
func (w *world) settle() {
	now := time.Now()
	for _, v := range w.volumes {
		if v.cut != "" && !now.Before(v.deadline) {
			v.resume(v.deadline)
			v.dropPending()
		}
	}
	if g := &w.guest; g.byItself > 0 && g.isFrozen() {
		if last := &g.frozen[len(g.frozen)-1]; now.Sub(last.from) >= g.byItself {
			last.to = last.from.Add(g.byItself)
		}
	}
}

func (v *volume) resume(at time.Time) {
	v.cut = ""
	v.suspended = append(v.suspended, span{v.since, at})
}

func (v *volume) dropPending() {
	for id, s := range v.stack {
		if s.State == api.SnapshotPending {
			delete(v.stack, id)
		}
	}
}

func (v *volume) die() {
	if v.cut != "" {
		v.resume(time.Now())
	}
	v.dropPending()
}

var errDead = errors.New("the daemon is dead")

// die ends the daemon; what its journal has now is the next one's.
func (w *world) die() {
	next := w.dir + "+"
	if err := os.CopyFS(next, os.DirFS(w.dir)); err != nil {
		panic(err)
	}
	w.dir = next
	w.gen++
	w.kill()
	close(w.dead)
	w.dead = make(chan struct{})
}

// call does f with what is to go wrong with it.
func (c caller) call(ctx context.Context, what string, v *volume, f func() error) error {
	w := c.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if c.gen != w.gen {
		return errDead
	}
	if v != nil {
		what += " " + v.name
	}
	what = fmt.Sprintf("%s %d", what, w.calls[what])
	w.calls[what[:len(what)-2]]++
	fault := w.choose(what)
	w.trace = append(w.trace, fmt.Sprintf("%s: %s: %v", time.Now().Format("04:05.000"), what, fault))
	do := func() error {
		w.settle()
		return f()
	}
	w.spend()
	defer w.spend()
	wait := func(d time.Duration) error {
		w.mu.Unlock()
		defer w.mu.Lock()
		return pause(ctx, d)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	switch fault {
	case refused:
		return errors.New("refused")
	case slow:
		if err := wait(3 * time.Second); err != nil {
			return err
		}
		return do()
	case late: // of the guest's agent: before the next thing it does
		go func() {
			time.Sleep(30 * time.Second)
			w.mu.Lock()
			defer w.mu.Unlock()
			_ = do()
		}()
		_ = wait(time.Hour)
		return ctx.Err()
	case engineDies:
		if v != nil {
			v.die()
		}
	case daemonDies:
		w.die()
		return errDead
	}
	if c.gen != w.gen {
		return errDead
	}
	err := do()
	switch fault {
	case lostReply:
		return errors.New("no reply")
	case engineDied:
		if v != nil {
			v.die()
		}
	case daemonDied:
		w.die()
		return errDead
	}
	return err
}

// spend has a call take its time.
func (w *world) spend() {
	w.mu.Unlock()
	time.Sleep(time.Millisecond)
	w.mu.Lock()
}

// caller is one daemon's way to the world.
type caller struct {
	w   *world
	gen int
}

type engine struct {
	caller
	v *volume
}

// Hold implements Engines.
func (c caller) Hold(ctx context.Context, id string) (Engine, func(), error) {
	v := c.w.volumes[id]
	if err := c.call(ctx, "hold", v, func() error { return nil }); err != nil {
		return nil, nil, err
	}
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	v.opens++
	return engine{c, v}, func() {
		c.w.mu.Lock()
		defer c.w.mu.Unlock()
		v.opens--
	}, nil
}

// Listed implements Engines.
func (c caller) Listed(ctx context.Context, id, snapshot string) (is bool, err error) {
	v := c.w.volumes[id]
	err = c.call(ctx, "listed", v, func() error { is = v.stack[snapshot] != nil; return nil })
	return is, err
}

// Unlist implements Engines: one volume has no engine unless it is held, the other always has one.
func (c caller) Unlist(ctx context.Context, id, snapshot string) error {
	v := c.w.volumes[id]
	return c.call(ctx, "unlist", v, func() error {
		if v.name != "v0" || v.opens > 0 || v.cut != "" {
			return errors.New("served")
		}
		delete(v.stack, snapshot)
		return nil
	})
}

// Make implements Stores.
func (c caller) Make(ctx context.Context, s Snapshot) (string, error) {
	return "/" + s.Snapshot, c.call(ctx, "make", c.w.volumes[s.Volume], func() error {
		if c.gen == c.w.gen { // what makes one dies with its daemon
			c.w.stores[s.Snapshot] = true
		}
		return nil
	})
}

// Delete implements Stores.
func (c caller) Delete(ctx context.Context, snapshot string) error {
	return c.call(ctx, "delete", nil, func() error {
		for _, v := range c.w.volumes {
			if v.stack[snapshot] != nil {
				panic("a store is deleted that a stack lists")
			}
		}
		delete(c.w.stores, snapshot)
		return nil
	})
}

// Running implements Guests.
func (c caller) Running(ctx context.Context, _ libvirtx.Domain) (is bool, err error) {
	err = c.call(ctx, "running", nil, func() error { is = !c.w.guest.off; return nil })
	return is, err
}

const fileSystems = 2

// Freeze implements Guests.
func (c caller) Freeze(ctx context.Context, _ libvirtx.Domain) (int, error) {
	g := &c.w.guest
	c.w.mu.Lock()
	g.pending = c.gen == c.w.gen
	c.w.mu.Unlock()
	return fileSystems, c.call(ctx, "freeze", nil, func() error {
		if g.pending && !g.isFrozen() {
			g.frozen = append(g.frozen, span{from: time.Now()})
		}
		g.pending = false
		return nil
	})
}

// Thaw implements Guests.
func (c caller) Thaw(ctx context.Context, _ libvirtx.Domain) (int, error) {
	g := &c.w.guest
	return fileSystems, c.call(ctx, "thaw", nil, func() error {
		g.pending = false // its agent does one after the other
		if !g.isFrozen() {
			return ErrNotFrozen
		}
		g.frozen[len(g.frozen)-1].to = time.Now()
		return nil
	})
}

func (e engine) do(ctx context.Context, what string, f func() error) (*api.EngineStatus, error) {
	var s *api.EngineStatus
	err := e.call(ctx, what, e.v, func() error {
		err := f()
		s = e.v.status()
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (v *volume) status() *api.EngineStatus {
	s := &api.EngineStatus{ControlVersion: 4, Volume: v.name, UUID: v.id, Connections: v.clients}
	for _, entry := range v.stack {
		s.Stack = append(s.Stack, *entry)
	}
	if time.Now().Before(v.granted) {
		s.Grants = []api.Grant{{}}
	}
	return s
}

func (e engine) Status(ctx context.Context) (*api.EngineStatus, error) {
	return e.do(ctx, "status", func() error { return nil })
}

func (e engine) AddSnapshot(ctx context.Context, r api.SnapshotAddRequest) (*api.EngineStatus, error) {
	return e.do(ctx, "add", func() error {
		if !e.w.stores[r.UUID] {
			return errors.New("no such store")
		}
		e.v.stack[r.UUID] = &api.SnapshotStatus{UUID: r.UUID, Cut: r.Cut, State: api.SnapshotPending, ChunkSize: 4096}
		if e.v.grants > 0 {
			e.v.granted, e.v.grants = time.Now().Add(e.v.grants), 0
		}
		return nil
	})
}

func (e engine) RemoveSnapshot(ctx context.Context, r api.SnapshotRequest) (*api.EngineStatus, error) {
	return e.do(ctx, "remove", func() error { delete(e.v.stack, r.UUID); return nil })
}

func (e engine) Cut(ctx context.Context, r api.CutRequest) (*api.EngineStatus, error) {
	return e.do(ctx, "cut", func() error {
		v := e.v
		switch {
		case time.Now().Before(v.granted):
			return errors.New("a grant is open")
		case v.cut != "" || len(v.stack) == 0:
			return errors.New("not now")
		}
		if v.leave {
			v.clients = 0
		}
		v.cut, v.since, v.deadline = r.Cut, time.Now(), time.Now().Add(time.Duration(r.DeadlineMillis)*time.Millisecond)
		return nil
	})
}

func (e engine) EndCut(ctx context.Context, r api.CutEndRequest) (*api.EngineStatus, error) {
	return e.do(ctx, fmt.Sprintf("end-%v", r.Keep), func() error {
		v := e.v
		if v.cut != r.Cut {
			return errors.New("no such cut")
		}
		v.resume(time.Now())
		if !r.Keep {
			v.dropPending()
		}
		for _, s := range v.stack {
			if s.Cut == r.Cut {
				s.State = api.SnapshotActive
				if v.breaks {
					s.State, s.Error = api.SnapshotBroken, "no room"
				}
			}
		}
		return nil
	})
}

var (
	theDomain = libvirtx.Domain{Name: "web1", UUID: uuid.MustParse("3f2a9c1e-0000-4000-8000-000000000009")}
	theCut    = "3f2a9c1e-0000-4000-8000-00000000000a"
)

func newWorld(dir string, volumes int, choose func(string) fault) *world {
	w := &world{
		dir: filepath.Join(dir, "journal"), volumes: map[string]*volume{}, stores: map[string]bool{}, calls: map[string]int{},
		choose: choose, dead: make(chan struct{}), kill: func() {},
	}
	for i := range volumes {
		id := fmt.Sprintf("3f2a9c1e-0000-4000-8000-%012d", i)
		w.volumes[id] = &volume{w: w, name: fmt.Sprintf("v%d", i), id: id, stack: map[string]*api.SnapshotStatus{}}
	}
	return w
}

// daemon begins the life of one.
func (w *world) daemon(log zerolog.Logger) (*Cutter, context.Context, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := caller{w, w.gen}
	ctx, cancel := context.WithCancel(context.Background())
	w.kill = cancel
	k, err := Open(Config{Dir: w.dir, Engines: c, Stores: c, Guests: c, Log: log})
	return k, ctx, err
}

func (w *world) request(quiesce string) Request {
	r := Request{
		Cut: theCut, Domain: theDomain, Quiesce: quiesce, Hold: 5 * time.Second, FreezeTimeout: 10 * time.Second,
		FrozenFor: 10 * time.Second, Patience: time.Minute, Waits: func(string) {},
	}
	for _, v := range w.volumes {
		r.Volumes = append(r.Volumes, Snapshot{Volume: v.id, Name: v.name})
	}
	return r
}
