package daemon

import (
	"context"
	"maps"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
)

// writes are the requests to write of some volumes that their engines have counted up to now, by the volume's UUID. Those of volumes
// whose engine does not answer are left out.
type writes map[string]counted

// counted is what one engine process has counted.
type counted struct {
	started int64 // the process, Unix seconds
	h       api.Histogram
}

func (d *Daemon) writesOf(ctx context.Context, volumes []string) writes {
	w := writes{}
	for _, id := range volumes {
		v := d.volumeWithUUID(id)
		if v == nil {
			continue
		}
		if s, err := d.engineStatus(ctx, v); err == nil {
			c := counted{started: s.Started}
			if h := s.IO.Latency["write"]; h != nil {
				c.h = *h
			}
			w[id] = c
		}
	}
	return w
}

// since are those after earlier ones; all of an engine that was not there then, or was another process. nil if none is known.
func (w writes) since(earlier writes) *api.WriteLatency {
	if len(w) == 0 {
		return nil
	}
	var sum api.Histogram
	for id, c := range w {
		from := earlier[id]
		if from.started != c.started {
			from = counted{}
		}
		for i := range c.h.Counts {
			sum.Counts[i] += c.h.Counts[i] - from.h.Counts[i]
		}
		sum.Micros += c.h.Micros - from.h.Micros
	}
	l := &api.WriteLatency{}
	for _, n := range sum.Counts {
		l.Writes += n
	}
	if l.Writes == 0 {
		return l
	}
	l.MeanMicros = sum.Micros / l.Writes
	seen := uint64(0)
	for i, n := range sum.Counts {
		if seen += n; float64(seen) >= 0.99*float64(l.Writes) {
			l.P99Micros = 1 << i
			break
		}
	}
	return l
}

// watched are the writes of a domain around its backups.
type watched struct {
	volumes []string
	cut     writes // just before the last cut
	end     writes // at the end of the backup before: "before" begins there, or where an engine began
}

// writesBefore notes how the guest's writes were until now, where a backup begins.
func (d *Daemon) writesBefore(ctx context.Context, id uuid.UUID, volumes []string) {
	now := d.writesOf(ctx, volumes)
	d.mu.Lock()
	if d.guestWrites == nil {
		d.guestWrites = map[uuid.UUID]*watched{}
	}
	w := d.guestWrites[id]
	if w == nil {
		w = &watched{}
		d.guestWrites[id] = w
	}
	w.volumes, w.cut = volumes, now
	before := now.since(w.end)
	d.mu.Unlock()
	d.noteBackup(id, func(s *api.BackupStatus) { s.WritesBefore, s.WritesDuring = before, nil })
}

// writesDuring notes how they are since the cut; last: the backup has ended.
func (d *Daemon) writesDuring(ctx context.Context, id uuid.UUID, last bool) {
	d.mu.Lock()
	w := d.guestWrites[id]
	d.mu.Unlock()
	if w == nil { // an earlier daemon's
		return
	}
	now := d.writesOf(ctx, w.volumes)
	d.mu.Lock()
	defer d.mu.Unlock()
	during := now.since(w.cut)
	if s := d.backups[id]; s != nil && during != nil {
		s.WritesDuring = during
	}
	if last {
		w.end = maps.Clone(now)
	}
}
