package backup

import (
	"cmp"
	"context"
	"slices"

	"github.com/virt-cow/virt-cow/internal/api"
)

// Status tells of the node: what is under way, and the last backup of each domain.
func (n *Node) Status(context.Context, struct{}) (api.NodeStatus, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := api.NodeStatus{
		Version: n.config.Version, Started: n.started.Unix(), Jobs: map[string]int{}, Running: []api.JobStatus{}, Backups: []api.BackupStatus{},
		Archive: n.archive,
	}
	last, success := map[string]*job{}, map[string]int64{}
	for _, j := range n.jobs {
		r := &j.rec
		s.Jobs[r.State]++
		if !r.ended() {
			s.Running = append(s.Running, j.status())
		}
		id := r.Reserve.UUID
		if r.State == api.JobDone {
			success[id] = max(success[id], r.Ended)
		}
		if l := last[id]; l == nil || later(r, &l.rec) {
			last[id] = j
		}
	}
	for id, j := range last {
		b := j.backup()
		b.LastSuccess = success[id]
		s.Backups = append(s.Backups, b)
	}
	slices.SortFunc(s.Running, func(a, b api.JobStatus) int {
		return cmp.Or(cmp.Compare(a.Reserved, b.Reserved), cmp.Compare(a.Job, b.Job))
	})
	slices.SortFunc(s.Backups, func(a, b api.BackupStatus) int {
		return cmp.Or(cmp.Compare(a.Domain, b.Domain), cmp.Compare(a.UUID, b.UUID))
	})
	return s, nil
}

// later says which of two jobs of a domain is its last: of those of one second the one that has not ended.
func later(a, b *record) bool {
	if a.Reserved != b.Reserved {
		return a.Reserved > b.Reserved
	}
	return !a.ended() && b.ended() || a.ended() == b.ended() && a.Job > b.Job
}

// backup is a job as the backup that it is of its domain. Called with mu.
func (j *job) backup() api.BackupStatus {
	s := j.status()
	return api.BackupStatus{
		Domain: s.Domain, UUID: s.UUID, Job: s.Job, State: s.State, Waits: s.Waits, Error: s.Error, Grade: s.Grade, GradeWhy: s.GradeWhy,
		HeldMicros: s.Held, Begun: s.Reserved, Ended: s.Ended, Size: s.Size, Read: s.Read, Zero: s.Zero, Reused: s.Reused, Written: s.Written,
	}
}
