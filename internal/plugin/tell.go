package plugin

import (
	"context"
	"slices"
	"time"
)

const (
	maxTold    = 1024             // events that wait
	maxTelling = 4                // events that are told at the same time
	dropLogged = 10 * time.Second // at most one log line about dropped events in this time
)

// queue has the events that plugins are still to be told of, oldest first. It is guarded by Runner.mu.
type queue struct {
	events  []Event
	busy    map[string]bool // volumes of which an event is being told
	workers int

	dropped    uint64 // for want of room, and at Close
	dropLogged time.Time
}

// Tell has all event plugins told of something that happened. It never waits. Events of one volume are told one
// after the other in the order of the calls. If too many wait the oldest is dropped.
func (r *Runner) Tell(e Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	q := &r.told
	if r.closed {
		r.drop(1)
		return
	}
	q.events = append(q.events, e)
	if len(q.events) > maxTold {
		q.events = slices.Delete(q.events, 0, 1)
		r.drop(1)
	}
	if q.workers < maxTelling {
		q.workers++
		r.calls.Add(1)
		go r.tellAll()
	}
}

// drop counts events that plugins will not be told of. The caller holds r.mu.
func (r *Runner) drop(n int) {
	r.failures.Add(uint64(n))
	r.told.dropped += uint64(n)
	if now := time.Now(); now.Sub(r.told.dropLogged) >= dropLogged {
		r.told.dropLogged = now
		r.config.Log.Error().Uint64("dropped", r.told.dropped).Msg("plugins are too slow: events were dropped, the oldest first")
	}
}

// tellAll tells of events until there is none of a volume that no other worker is busy with: that worker will find it.
func (r *Runner) tellAll() {
	defer r.calls.Done()
	r.mu.Lock()
	defer r.mu.Unlock()
	q := &r.told
	for {
		i := slices.IndexFunc(q.events, func(e Event) bool { return !q.busy[e.Volume.Name] })
		if i < 0 {
			q.workers--
			return
		}
		e := q.events[i]
		q.events = slices.Delete(q.events, i, i+1)
		q.busy[e.Volume.Name] = true
		r.mu.Unlock()
		r.tell(e)
		r.mu.Lock()
		delete(q.busy, e.Volume.Name)
	}
}

// tell tells all plugins of one event.
func (r *Runner) tell(e Event) {
	list, err := List(r.config.Dir)
	if err != nil {
		r.failures.Add(1)
		r.config.Log.Error().Err(err).Str("event", e.Event).Msg("plugins can't be told")
	}
	if len(list) == 0 {
		return
	}
	doc, err := r.encode(e, nil)
	if err != nil {
		r.failures.Add(1)
		r.config.Log.Error().Err(err).Str("event", e.Event).Msg("plugins can't be told")
		return
	}
	for _, p := range list {
		if p.Err != nil {
			r.logRefused(p)
			if !p.Off {
				r.failures.Add(1)
			}
			continue
		}
		if _, err := r.runEvent(r.ended, p, e.Event, doc); err != nil {
			r.failed(p, e.Event, err)
		}
	}
}

// Close ends the Runner: what waits is still told until ctx ends, then plugins that run are killed and what waits is
// dropped. It returns once nothing runs any more. It may be called more than once.
func (r *Runner) Close(ctx context.Context) error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	done := make(chan struct{})
	go func() {
		r.calls.Wait()
		close(done)
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = context.Cause(ctx)
		r.mu.Lock()
		if n := len(r.told.events); n > 0 {
			r.told.events = nil
			r.told.dropLogged = time.Time{}
			r.drop(n)
		}
		r.mu.Unlock()
		r.end(ErrClosed)
		<-done
	}
	r.end(ErrClosed)
	return err
}
