package cut

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// Request is a cut to be made.
type Request struct {
	Cut     string // UUID
	Domain  libvirtx.Domain
	Volumes []Snapshot // what there is to say of them but UUID and cut

	Quiesce       string        // api.Quiesce…
	Hooks         bool          // the guest has freeze hooks, by the operator's word
	OnError       string        // api.Break…
	Hold          time.Duration // the engines' deadline
	FreezeTimeout time.Duration
	FrozenFor     time.Duration // at most; it is thawed then, whatever else is
	Patience      time.Duration // with a migration, at most
	Waits         func(string)  // is told for what it waits, "" when it no longer does
}

// Result is a cut that was made.
type Result struct {
	At        time.Time     // a moment at which all were suspended
	Held      time.Duration // from the first suspension, or before, to the last resumption, or after
	Grade     string
	Why       string // it is no better
	Snapshots []Snapshot
}

// Bounds of what has none of its own in the request.
const (
	askTimeout  = 10 * time.Second // a question
	addTimeout  = 5 * time.Minute  // a frozen table is written
	makeTimeout = 10 * time.Minute // a store
	keepTimeout = 30 * time.Second // a header is written
	undoTimeout = time.Minute      // of Make's own attempt; Run goes on
)

// waitBackoff is how often a migration is looked at.
var waitBackoff = libvirtx.Backoff{Min: 200 * time.Millisecond, Max: 2 * time.Second}

// errShared says that a volume is being handed over.
var errShared = errors.New("is shared with another host: its domain is migrating")

// Make makes a cut. What it began is undone before it returns an error, or by Run. After a success Hand, Done or Drop is to
// be called.
func (k *Cutter) Make(ctx context.Context, r Request) (*Result, error) {
	if err := canonical(r.Cut); err != nil {
		return nil, err
	}
	end, err := k.begin(r.Domain.UUID.String())
	if err != nil {
		return nil, err
	}
	defer end()
	var wait time.Duration
	for deadline := time.Now().Add(r.Patience); ; {
		k.setWorking(r.Domain.UUID.String(), true)
		result, err := k.once(ctx, r)
		k.setWorking(r.Domain.UUID.String(), false)
		if !errors.Is(err, errShared) || k.Has(r.Cut) {
			r.Waits("")
			return result, err
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("waited %s for a migration to end: %w", r.Patience, err)
		}
		r.Waits("a migration to end: " + err.Error())
		wait = waitBackoff.Next(wait)
		if pause(ctx, wait) != nil {
			return nil, err
		}
	}
}

// making is one attempt at a cut.
type making struct {
	k       *Cutter
	r       Request
	record  *record
	made    []Snapshot // as in the record, with what became of them
	engines []Engine
	clients []bool // somebody was connected to the volume's engine, before or after the cut
	froze   *freezing
}

// once makes the cut, unless a volume is being handed over.
func (k *Cutter) once(ctx context.Context, r Request) (*Result, error) {
	m := &making{k: k, r: r, engines: make([]Engine, len(r.Volumes)), clients: make([]bool, len(r.Volumes))}
	release, err := m.hold(ctx)
	defer release()
	if err != nil {
		return nil, err
	}
	if err := m.allReady(ctx); err != nil {
		return nil, err
	}
	m.record = &record{Cut: r.Cut, Phase: phaseMaking, Domain: r.Domain, owned: true}
	for _, s := range r.Volumes {
		s.Cut, s.Snapshot = r.Cut, uuid.NewString()
		m.record.Snapshots = append(m.record.Snapshots, s)
	}
	m.made = slices.Clone(m.record.Snapshots)
	if err := k.add(m.record); err != nil {
		return nil, err
	}
	result, err := m.make(ctx)
	if err != nil {
		err = m.why(ctx, err)
		m.undo(ctx)
		return nil, err
	}
	k.disown(m.record)
	return result, nil
}

// hold takes all engines.
func (m *making) hold(ctx context.Context) (release func(), err error) {
	var mu sync.Mutex
	var all []func()
	err = m.each(ctx, addTimeout, func(ctx context.Context, i int) error {
		e, release, err := m.k.c.Engines.Hold(ctx, m.r.Volumes[i].Volume)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		m.engines[i] = e
		all = append(all, release)
		return nil
	})
	return func() {
		for _, f := range all {
			f()
		}
	}, err
}

// each does something for all volumes at once, and has errors say whose they are.
func (m *making) each(ctx context.Context, timeout time.Duration, f func(context.Context, int) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	errs := make([]error, len(m.r.Volumes))
	var wg sync.WaitGroup
	for i, v := range m.r.Volumes {
		wg.Go(func() {
			if err := f(ctx, i); err != nil {
				errs[i] = fmt.Errorf("volume %s: %w", v.Name, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// ready says whether a cut of a volume may begin.
func (m *making) ready(ctx context.Context, i int) error {
	s, err := m.engines[i].Status(ctx)
	switch {
	case err != nil:
		return err
	case s.ControlVersion < 4:
		return fmt.Errorf("its engine is of version %s, which knows no snapshots: `virt-cow volume restart %s` first", s.Version, s.Volume)
	case s.Lost:
		return errors.New("another host has taken it over")
	case s.Divided():
		return errShared
	}
	return nil
}

func (m *making) allReady(ctx context.Context) error { return m.each(ctx, askTimeout, m.ready) }

// why has the cause found out of a failure: an engine refuses a cut while a grant is open.
func (m *making) why(ctx context.Context, err error) error {
	if ready := m.allReady(ctx); errors.Is(ready, errShared) {
		return fmt.Errorf("%w (%w)", ready, err)
	}
	return err
}

// make goes through the steps of the package's table.
func (m *making) make(ctx context.Context) (*Result, error) {
	if err := m.each(ctx, makeTimeout, func(ctx context.Context, i int) (err error) {
		m.made[i].Store, err = m.k.c.Stores.Make(ctx, m.made[i])
		return err
	}); err != nil {
		return nil, err
	}
	if err := m.each(ctx, addTimeout, func(ctx context.Context, i int) error {
		s, err := m.engines[i].AddSnapshot(ctx, api.SnapshotAddRequest{
			UUID: m.made[i].Snapshot, Store: m.made[i].Store, Cut: m.r.Cut, OnError: m.r.OnError,
		})
		m.clients[i] = err == nil && s.Connections > 0
		return err
	}); err != nil {
		return nil, err
	}
	ran, err := m.running(ctx)
	if err != nil {
		return nil, err
	}
	m.froze = &freezing{failed: "its file systems were not to be frozen"}
	if ran && m.r.Quiesce != api.QuiesceOff {
		if m.froze, err = m.k.freeze(ctx, m.record, m.r, m.allReady); err != nil {
			return nil, err
		}
	}
	if ran && m.froze.failed != "" && m.r.Quiesce == api.QuiesceRequire {
		m.froze.over(false)
		return nil, fmt.Errorf("%w: %s", ErrCrash, m.froze.failed)
	}
	result, err := m.suspended(ctx)
	if err != nil {
		m.froze.over(false)
		return nil, err
	}
	result.Grade, result.Why = m.grade(ctx, ran)
	if result.Grade == api.GradeCrash && m.r.Quiesce == api.QuiesceRequire {
		return nil, fmt.Errorf("%w: %s", ErrCrash, result.Why)
	}
	return result, nil
}

func (m *making) running(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return m.k.c.Guests.Running(ctx, m.r.Domain)
}

// suspended is the cut itself. The guest is thawed as soon as all volumes were suspended at once.
func (m *making) suspended(ctx context.Context) (*Result, error) {
	began := time.Now()
	err := m.each(ctx, m.r.Hold, func(ctx context.Context, i int) error {
		_, err := m.engines[i].Cut(ctx, api.CutRequest{Cut: m.r.Cut, DeadlineMillis: m.r.Hold.Milliseconds()})
		return err
	})
	if err != nil {
		m.letGo(ctx)
		return nil, err
	}
	// What is answered by a keep that was asked for only now was suspended now.
	at := time.Now()
	m.froze.over(true)
	if err := m.each(ctx, keepTimeout, m.keep); err != nil {
		return nil, err
	}
	return &Result{At: at, Held: m.held(time.Since(began), time.Since(at)), Snapshots: m.made}, nil
}

// held is how long the guest's I/O was held at most, from the first suspension to the last resumption: not longer than the whole
// took, and of each volume before the moment at which all were suspended not longer than its engine says.
func (m *making) held(whole, after time.Duration) time.Duration {
	var most time.Duration
	for _, s := range m.made {
		most = max(most, time.Duration(Entry(s.Status, s.Snapshot).HeldMicros)*time.Microsecond)
	}
	switch {
	case most == 0: // it does not say
		return whole
	case len(m.made) == 1:
		return min(whole, most)
	}
	return min(whole, most+after)
}

// letGo has all volumes go on, without waiting for the undoing.
func (m *making) letGo(ctx context.Context) {
	_ = m.each(context.WithoutCancel(ctx), askTimeout, func(ctx context.Context, i int) error {
		_, err := m.engines[i].EndCut(ctx, api.CutEndRequest{Cut: m.r.Cut})
		return err
	}) // one that did not hear it goes on at its deadline
}

// keep ends one volume's suspension, and makes sure that it has its snapshot.
func (m *making) keep(ctx context.Context, i int) error {
	s, err := m.engines[i].EndCut(ctx, api.CutEndRequest{Cut: m.r.Cut, Keep: true})
	if err != nil {
		return err
	}
	snapshot := &m.made[i]
	entry := Entry(s, snapshot.Snapshot)
	switch {
	case entry == nil:
		return errors.New("its engine has no such snapshot after the cut")
	case entry.State != api.SnapshotActive:
		return fmt.Errorf("its snapshot is %s right after the cut: %s", entry.State, entry.Error)
	}
	snapshot.Status, snapshot.ChunkSize = s, entry.ChunkSize
	m.clients[i] = m.clients[i] || s.Connections > 0
	return nil
}

// Entry is a snapshot in a volume's stack, nil if it is not there.
func Entry(s *api.EngineStatus, snapshot string) *api.SnapshotStatus {
	for i := range s.Stack {
		if s.Stack[i].UUID == snapshot {
			return &s.Stack[i]
		}
	}
	return nil
}

// grade says what the guest had made of its disks at the cut. ran: it was running before.
func (m *making) grade(ctx context.Context, ran bool) (grade, why string) {
	if !ran {
		switch runs, err := m.running(ctx); {
		case err != nil:
			return api.GradeCrash, "whether the domain was off during the cut is not known: " + err.Error()
		case runs:
			return api.GradeCrash, "the domain started during the cut"
		}
		if i := slices.Index(m.clients, true); i >= 0 {
			return api.GradeCrash, "somebody had volume " + m.r.Volumes[i].Name + " open, though no domain of this host did"
		}
		return api.GradeOff, ""
	}
	if why := m.froze.wait(); why != "" {
		return api.GradeCrash, why
	}
	if m.r.Hooks {
		return api.GradeApp, ""
	}
	return api.GradeFS, ""
}
