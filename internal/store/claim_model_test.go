package store

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

var (
	claimSeeds  = flag.Int("claim.seeds", 3000, "random interleavings of three hosts to explore")
	claimDeaths = flag.Bool("claim.deaths", true, "explore all interleavings of two hosts also with the death of one")
)

// model is some hosts on one disk, one step at a time: before each read and write a host stops, and the model
// chooses who goes on. A host may die at any step; the write it had issued lands at any later one, or never.
//
// A wait of Claiming.Wait ends when every other host that was doing I/O at its beginning has come to a wait of its
// own, to its end or to its death: the one assumption about time that the protocol makes.
type model struct {
	choose func(n int) int
	disk   *blockdevtest.Memory
	hosts  []*modelHost
	late   []func()   // writes of the dead
	events chan event // of the host whose turn it is
	crash  int        // hosts that may still die
	all    bool       // any of them, not only the first
	holder *modelHost
	err    error

	firstCloses   bool // the first host has the store open when the others come
	noWait, blind bool // what is broken on purpose: waits end at once; no host sees another's claim
}

type modelHost struct {
	m       *model
	me      cowfmt.Owner
	owner   bool // its looks at its own header are no steps: nobody takes it over here
	started bool // stops at steps from its first claim on: what is before changes nothing
	alone   bool // does not stop at all
	state   hostState
	barrier map[*modelHost]bool // of whom a wait depends
	land    func()              // the write it stopped before
	grant   chan error
	result  error
}

type hostState int

const (
	running hostState = iota
	stopped           // before a step
	asleep
	gone // ended or dead
)

type event struct {
	h     *modelHost
	state hostState
}

var errDied = errors.New("the host died")

// modelDisk is the disk as one host has it.
type modelDisk struct {
	blockdev.Device
	h *modelHost
}

func (d modelDisk) ReadAt(p []byte, off int64) (int, error) {
	d.h.started = d.h.started || off == cowfmt.ClaimOffset
	if d.h.owner && off != cowfmt.ClaimOffset {
		return d.Device.ReadAt(p, off)
	}
	if err := d.h.stop(stopped, nil); err != nil {
		return 0, err
	}
	n, err := d.Device.ReadAt(p, off)
	if d.h.m.blind && off == cowfmt.ClaimOffset {
		for ; len(p) > 0; p = p[cowfmt.SlotSize:] {
			if uuid.UUID(p[8:24]) != d.h.me.Host {
				clear(p[:cowfmt.SlotSize])
			}
		}
	}
	return n, err
}

func (d modelDisk) WriteAt(p []byte, off int64) (int, error) {
	data := append([]byte(nil), p...)
	if err := d.h.stop(stopped, func() { _, _ = d.Device.WriteAt(data, off) }); err != nil {
		return 0, err
	}
	return d.Device.WriteAt(p, off)
}

// stop gives the turn back and returns when it comes again.
func (h *modelHost) stop(state hostState, land func()) error {
	if !h.started || h.alone {
		return nil
	}
	h.land = land
	h.m.events <- event{h, state}
	return <-h.grant
}

func (h *modelHost) claiming() Claiming {
	const wait = time.Hour // by the clock nobody is late
	return Claiming{Shared: true, Wait: wait, Patience: 1, sleep: func(_ context.Context, d time.Duration) error {
		if d < wait || h.m.noWait {
			return h.stop(stopped, nil)
		}
		h.barrier = map[*modelHost]bool{}
		for _, o := range h.m.hosts {
			h.barrier[o] = o != h && o.state == stopped && o.started
		}
		return h.stop(asleep, nil)
	}}
}

// start begins a host's work and waits until it stops or ends.
func (m *model) start(host uuid.UUID, work func(h *modelHost, dev blockdev.Device) error) {
	h := &modelHost{m: m, grant: make(chan error), started: m.firstCloses, alone: m.firstCloses && len(m.hosts) == 0}
	h.me = cowfmt.Owner{Host: host, Boot: host, Instance: uuid.New(), HostName: fmt.Sprint("h", len(m.hosts)), Since: 1}
	m.hosts = append(m.hosts, h)
	go func() {
		h.result = work(h, modelDisk{m.disk.Open(false), h})
		m.events <- event{h, gone}
	}()
	m.await()
}

// await waits for the host whose turn it is.
func (m *model) await() {
	e := <-m.events
	e.h.state = e.state
	if e.state != stopped { // it came to a wait, or to its end
		for _, o := range m.hosts {
			delete(o.barrier, e.h)
		}
	}
}

// turn hands the turn to a host; with an error it dies.
func (m *model) turn(h *modelHost, err error) {
	h.state = running
	h.grant <- err
	m.await()
	for err != nil && h.state != gone { // it must do nothing more
		h.state = running
		h.grant <- err
		m.await()
	}
}

// run goes on until all hosts have ended.
func (m *model) run() {
	for {
		var steps []func()
		alive := false
		for _, h := range m.hosts {
			alive = alive || h.state != gone
			ready := h.state == stopped
			if h.state == asleep {
				ready = true
				for _, waits := range h.barrier {
					ready = ready && !waits
				}
			}
			if ready {
				steps = append(steps, func() { m.turn(h, nil) })
			}
			if m.crash > 0 && h.state != gone && (m.all || h == m.hosts[0]) {
				steps = append(steps, func() { m.kill(h) })
			}
		}
		if !alive {
			break
		}
		for i, land := range m.late {
			steps = append(steps, func() {
				m.late = append(m.late[:i:i], m.late[i+1:]...)
				land()
			})
		}
		steps[m.choose(len(steps))]()
	}
	for _, land := range m.late {
		if m.choose(2) == 1 {
			land()
		}
	}
}

func (m *model) kill(h *modelHost) {
	m.crash--
	if h.land != nil && h.state == stopped {
		m.late = append(m.late, h.land)
	}
	if m.holder == h {
		m.holder = nil // what it holds now is in the header
	}
	m.turn(h, errDied)
}

func (m *model) fail(format string, args ...any) {
	if m.err == nil {
		m.err = fmt.Errorf(format, args...)
	}
}

// acquire is an engine that opens the store, uses it and, if it is to, closes it.
func acquire(closes bool) func(h *modelHost, dev blockdev.Device) error {
	return func(h *modelHost, dev blockdev.Device) error {
		s, err := Open(dev)
		if err != nil {
			return err
		}
		if _, err := s.Acquire(context.Background(), h.me, h.claiming()); err != nil {
			return err
		}
		if h.m.holder != nil {
			h.m.fail("%s owns the store while %s does", h.me.HostName, h.m.holder.me.HostName)
		}
		h.m.holder, h.owner = h, true
		if err := s.Update(func(hd *cowfmt.Header) { hd.Generation++ }); err != nil {
			return err
		}
		if !closes {
			return nil
		}
		h.m.holder, h.alone = nil, false // from here on another may come
		return s.Release()
	}
}

// newModel is a disk with a store on it, and slots that these hosts keep from earlier.
func newModel(t *testing.T, fresh *blockdevtest.Memory, choose func(int) int, keep ...uuid.UUID) *model {
	m := &model{choose: choose, disk: fresh.Fork(), events: make(chan event)}
	s := open(t, m.disk)
	for _, host := range keep {
		c := claim{s: s, mine: cowfmt.ClaimSlot{Host: host, Boot: host, Instance: host}}
		claims, err := s.Claims()
		check(t, err)
		slot, _ := c.choose(claims)
		check(t, s.writeSlot(slot, &c.mine))
	}
	return m
}

// verdict looks at what is left: no two owners, a header that both copies agree on where somebody owns the store, and
// in any case one that can be read.
func (m *model) verdict() error {
	if m.err != nil {
		return m.err
	}
	s, err := Open(m.disk)
	if err != nil {
		return fmt.Errorf("the store is broken: %w", err)
	}
	if m.holder == nil {
		return nil
	}
	if o := s.Header().Owner; o == nil || o.Host != m.holder.me.Host {
		return fmt.Errorf("%s owns the store, its header says %v", m.holder.me.HostName, o)
	}
	if p := s.Problems(); p[0] != nil || p[1] != nil {
		return fmt.Errorf("%s owns the store, but a header copy is not its own: %v", m.holder.me.HostName, p)
	}
	return nil
}

// every runs f for all sequences of choices.
func every(f func(choose func(n int) int) error) (runs int, err error) {
	var trail, sizes []int
	for {
		at := 0
		err := f(func(n int) int {
			if at == len(trail) {
				trail, sizes = append(trail, 0), append(sizes, n)
			}
			at++
			return trail[at-1]
		})
		runs++
		if err != nil {
			return runs, fmt.Errorf("choices %v: %w", trail[:at], err)
		}
		trail, sizes = trail[:at], sizes[:at]
		for at--; at >= 0 && trail[at]+1 == sizes[at]; at-- {
			trail, sizes = trail[:at], sizes[:at]
		}
		if at < 0 {
			return runs, nil
		}
		trail[at]++
	}
}

// hostsOfSlot are hosts whose first choice of a slot is the same.
func hostsOfSlot(n int) (out []uuid.UUID) {
	for i := uint64(1); len(out) < n; i++ {
		var id uuid.UUID
		binary.BigEndian.PutUint64(id[8:], i)
		if firstSlot(id) == 7 {
			out = append(out, id)
		}
	}
	return out
}

// Two hosts open a store: all interleavings of their steps, where each has a slot, where one or both have none and
// choose the same, and with one of them dying anywhere.
func TestClaimModelExhaustive(t *testing.T) {
	fresh := created(t, 1<<20, 4096, 512)
	hosts := hostsOfSlot(2)
	for _, c := range []struct {
		name   string
		keep   []uuid.UUID
		crash  int
		closes bool // the first host closes it while the second comes
	}{
		{"both have slots", hosts, 0, false},
		{"one has a slot", hosts[:1], 0, false},
		{"none has a slot", nil, 0, false},
		{"one closes it", hosts, 0, true},
		{"one closes it, the other has no slot", hosts[:1], 0, true},
		{"both have slots, one dies", hosts, 1, false},
		{"none has a slot, one dies", nil, 1, false},
		{"one closes it, one dies", hosts, 1, true},
	} {
		if c.crash > 0 && !*claimDeaths {
			continue
		}
		won := map[int]int{}
		runs, err := every(func(choose func(int) int) error {
			m := newModel(t, fresh, choose, c.keep...)
			m.crash, m.firstCloses, m.all = c.crash, c.closes, c.closes // else they are alike
			for i, id := range hosts {
				m.start(id, acquire(c.closes && i == 0))
			}
			m.run()
			n := 0
			for _, h := range m.hosts {
				switch {
				case h.result == nil:
					n++
				case !errors.Is(h.result, ErrOwned) && !errors.Is(h.result, ErrClaimed) && !errors.Is(h.result, errDied):
					return h.result
				}
			}
			won[n]++
			return m.verdict()
		})
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		t.Logf("%s: %d interleavings, won by none %d, by one %d, by two %d", c.name, runs, won[0], won[1], won[2])
		if !c.closes && won[2] > 0 || won[1] == 0 {
			t.Errorf("%s: %v", c.name, won)
		}
	}
}

// Three hosts that open and close, die and come again, at random.
func TestClaimModelRandom(t *testing.T) {
	fresh := created(t, 1<<20, 4096, 512)
	hosts := hostsOfSlot(3)
	opened, died, refused := 0, 0, 0
	for seed := range uint64(*claimSeeds) {
		rng := rand.New(rand.NewPCG(seed, 3))
		m := newModel(t, fresh, func(n int) int { return rng.IntN(n) }, hosts[:seed%4]...)
		if seed%2 == 1 {
			m.crash, m.all = 1, true
		}
		for i, id := range hosts {
			m.start(id, acquire(rng.IntN(4) > 0 || i == 0))
		}
		m.run()
		for _, h := range m.hosts {
			switch {
			case h.result == nil:
				opened++
			case errors.Is(h.result, errDied):
				died++
			case errors.Is(h.result, ErrOwned), errors.Is(h.result, ErrClaimed):
				refused++
			default:
				t.Fatalf("seed %d: %v", seed, h.result)
			}
		}
		if err := m.verdict(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	t.Logf("%d opened, %d died, %d refused", opened, died, refused)
	if opened == 0 || died == 0 || refused == 0 {
		t.Error("the model explores too little")
	}
}

// The model finds what is broken on purpose.
func TestClaimModelFindsMutants(t *testing.T) {
	fresh := created(t, 1<<20, 4096, 512)
	hosts := hostsOfSlot(2)
	for name, c := range map[string]struct {
		keep   []uuid.UUID
		mutate func(m *model)
	}{
		"a slot is taken without a wait": {nil, func(m *model) { m.noWait = true }},
		"others' claims are not seen":    {hosts, func(m *model) { m.blind = true }},
	} {
		runs, err := every(func(choose func(int) int) error {
			m := newModel(t, fresh, choose, c.keep...)
			c.mutate(m)
			for _, id := range hosts {
				m.start(id, acquire(false))
			}
			m.run()
			return m.verdict()
		})
		if err == nil {
			t.Errorf("%s: not found in %d interleavings", name, runs)
		}
	}
}
