package cut

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// Handover is a cut that was made and is to be handed over, perhaps again.
type Handover struct {
	Cut     string
	Domain  libvirtx.Domain
	Payload json.RawMessage
}

// Hand makes it durable that a cut was made, and what is to be handed over. Without it the next process undoes the cut.
func (k *Cutter) Hand(cut string, payload json.RawMessage) error {
	rec, err := k.made(cut)
	if err != nil {
		return err
	}
	return k.change(rec, func(rec *record) { rec.Phase, rec.Payload = phaseMade, payload })
}

// Handovers are those that an earlier process left.
func (k *Cutter) Handovers() []Handover {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []Handover
	for _, r := range k.records {
		if r.Phase == phaseMade && !r.owned {
			all = append(all, Handover{r.Cut, r.Domain, r.Payload})
		}
	}
	return all
}

// Done says that somebody else looks after a cut's snapshots from now on.
func (k *Cutter) Done(cut string) error {
	rec, err := k.made(cut)
	if err != nil {
		return err
	}
	err = k.change(rec, func(rec *record) { rec.Snapshots, rec.Payload, rec.Phase = nil, nil, phaseUndo })
	k.wake()
	return err
}

// Drop has a cut undone that was made.
func (k *Cutter) Drop(cut string) error {
	rec, err := k.made(cut)
	if err != nil {
		return err
	}
	err = k.change(rec, func(rec *record) { rec.Phase, rec.Payload = phaseUndo, nil })
	k.wake()
	return err
}

func (k *Cutter) made(cut string) (*record, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	rec := k.records[cut]
	if rec == nil || rec.owned {
		return nil, fmt.Errorf("cut %s: there is none that was made", cut)
	}
	return rec, nil
}

// Thaw has a guest thawed, until that is certain: its former host may have left it frozen.
func (k *Cutter) Thaw(d libvirtx.Domain) error {
	err := k.add(&record{Cut: uuid.NewString(), Phase: phaseUndo, Domain: d, Frozen: true})
	k.wake()
	return err
}

// add makes a record durable for the first time.
func (k *Cutter) add(rec *record) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.records[rec.Cut] != nil {
		return fmt.Errorf("cut %s: there is one already", rec.Cut)
	}
	if err := k.journal.put(rec); err != nil {
		return errors.Join(err, k.journal.remove(rec.Cut))
	}
	k.records[rec.Cut] = rec
	return nil
}

// change changes a record, in memory too if it could not be made durable: what it says is what was done, or is to be done.
func (k *Cutter) change(rec *record, f func(*record)) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	f(rec)
	return k.journal.put(rec)
}

// disown leaves a record to Run.
func (k *Cutter) disown(rec *record) {
	k.mu.Lock()
	rec.owned = false
	k.mu.Unlock()
	k.wake()
}

func (k *Cutter) wake() {
	for _, c := range []chan struct{}{k.toUndo, k.toThaw} {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// undo takes away what a cut has begun that failed. What does not succeed now is Run's.
func (m *making) undo(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	log := m.k.c.Log.With().Str("cut", m.r.Cut).Str("domain", m.r.Domain.Name).Logger()
	if err := m.k.change(m.record, func(rec *record) { rec.Phase = phaseUndo }); err != nil {
		log.Error().Err(err).Msg("a cut that failed") // one that was being made is undone as well
	}
	if m.froze != nil {
		m.froze.over(false)
		m.froze.wait()
		if m.k.maybeFrozen(m.record) { // Run thaws it on, whatever hangs while snapshots are removed
			m.k.disown(m.record)
			return
		}
	}
	if err := m.k.removeAll(ctx, m.record); err != nil {
		log.Error().Err(err).Msg("a cut that failed is not undone yet, trying on")
	}
	m.k.disown(m.record)
}

func (k *Cutter) maybeFrozen(rec *record) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return rec.Frozen
}

// removeAll takes away the snapshots of a cut, and forgets it if that is all.
func (k *Cutter) removeAll(ctx context.Context, rec *record) error {
	k.mu.Lock()
	snapshots := rec.Snapshots
	k.mu.Unlock()
	errs := make([]error, len(snapshots))
	var wg sync.WaitGroup
	for i, s := range snapshots {
		wg.Go(func() { errs[i] = k.Remove(ctx, s.Volume, s.Snapshot) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return k.settle(rec, func(rec *record) { rec.Snapshots = nil })
}

// settle changes a record, and forgets it if nothing is left to do.
func (k *Cutter) settle(rec *record, f func(*record)) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	f(rec)
	if rec.Frozen || rec.Phase != phaseUndo || len(rec.Snapshots) > 0 {
		return k.journal.put(rec)
	}
	if err := k.journal.remove(rec.Cut); err != nil {
		return err
	}
	delete(k.records, rec.Cut)
	return nil
}

// Remove takes a snapshot out of its volume's stack, and then deletes its store: not before, as a volume may be refused that
// lists one which is not there. In a volume that another host has it stays until that has taken it out.
func (k *Cutter) Remove(ctx context.Context, volume, snapshot string) error {
	if err := k.unlist(ctx, volume, snapshot); err != nil {
		return fmt.Errorf("snapshot %s of volume %s: %w", snapshot, volume, err)
	}
	if err := k.c.Stores.Delete(ctx, snapshot); err != nil {
		return fmt.Errorf("snapshot %s of volume %s: its store: %w", snapshot, volume, err)
	}
	return nil
}

func (k *Cutter) unlist(ctx context.Context, volume, snapshot string) error {
	listed, err := k.c.Engines.Listed(ctx, volume, snapshot)
	if err == nil && (!listed || k.c.Engines.Unlist(ctx, volume, snapshot) == nil) {
		return nil
	}
	e, release, err := k.c.Engines.Hold(ctx, volume)
	if err != nil {
		return err
	}
	defer release()
	s, err := e.Status(ctx)
	if err != nil {
		return err
	}
	entry := Entry(s, snapshot)
	if entry == nil {
		return nil
	}
	if entry.State == api.SnapshotPending {
		_, _ = e.EndCut(ctx, api.CutEndRequest{Cut: entry.Cut}) // it may be suspended
	}
	if s, err = e.RemoveSnapshot(ctx, api.SnapshotRequest{UUID: snapshot}); err != nil {
		if now, asked := e.Status(ctx); asked != nil || Entry(now, snapshot) != nil {
			return err
		}
		return nil
	}
	if Entry(s, snapshot) != nil {
		return errors.New("its engine has it still")
	}
	return nil
}

// undoBackoff is how often what could not be undone is tried again.
var undoBackoff = libvirtx.Backoff{Min: 500 * time.Millisecond, Max: 30 * time.Second}

// Run finishes what is unfinished, until ctx ends. What hangs while snapshots are removed keeps no guest frozen.
func (k *Cutter) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() {
		k.loop(ctx, k.toUndo, undoBackoff, func(r *record) bool { return r.Phase == phaseUndo && (len(r.Snapshots) > 0 || !r.Frozen) },
			func(ctx context.Context, r *record) error { return k.removeAll(ctx, r) })
	})
	k.loop(ctx, k.toThaw, thawBackoff, func(r *record) bool { return r.Frozen }, func(ctx context.Context, r *record) error {
		if _, err := k.thaw(ctx, r); err != nil && !errors.Is(err, ErrNotFrozen) {
			return err
		}
		k.wake()
		return nil
	})
	wg.Wait()
}

// roundTimeout bounds one attempt at all that there is to do: an engine may have to be started for it.
const roundTimeout = 5 * time.Minute

// loop does something with the records that have to do with it, until each succeeds.
func (k *Cutter) loop(ctx context.Context, wake <-chan struct{}, backoff libvirtx.Backoff, has func(*record) bool, do func(context.Context, *record) error) {
	for wait := time.Duration(0); ; {
		again := (<-chan time.Time)(nil)
		if !k.round(ctx, has, do) {
			wait = backoff.Next(wait)
			again = time.After(wait)
		} else {
			wait = 0
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-again:
		}
	}
}

// round says whether nothing is left to do.
func (k *Cutter) round(ctx context.Context, has func(*record) bool, do func(context.Context, *record) error) bool {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	k.mu.Lock()
	var todo []*record
	for _, r := range k.records {
		if !r.owned && has(r) {
			todo = append(todo, r)
		}
	}
	k.mu.Unlock()
	errs := make([]error, len(todo))
	var wg sync.WaitGroup
	for i, r := range todo {
		wg.Go(func() {
			if errs[i] = do(ctx, r); errs[i] != nil {
				k.c.Log.Warn().Err(errs[i]).Str("cut", r.Cut).Str("domain", r.Domain.Name).Msg("something is left of a cut, trying on")
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...) == nil
}
